"""A supervised warm start makes self-distillation better.

Source: Zhu et al. 2605.11182.

Published: a supervised warm start stabilises the student; no table.

Predicted: Fifty supervised steps on the teacher's correct samples before distillation raise fresh
accuracy, under the solution and, by 10 points, with an external teacher of another style; fifty
more steps of distillation instead do not.

Found (commit dce4e41, first edition): not reproduced, 0 of 2 statements hold. There was nothing
to stabilise: none of these runs is unstable, and the teacher's correct samples teach the same
manner that distillation teaches anyway. Fifty more steps of distillation raise fresh accuracy by
3 points, against the prediction; the warm start does not.
"""

from lab.claims.arms import OTHER_STYLE, SDPO
from lab.claims.statements import value

ARMS = {
    "sdpo": SDPO,
    "warm start": "--method sft_then_sdpo",
    "sdpo, 50 steps more": f"{SDPO} --steps 110",
    "other style": OTHER_STYLE,
    "other style, warm start": f"{OTHER_STYLE} --warm_start_steps 50",
}
STATEMENTS = [
    value("fresh.accuracy", "warm start") - value("fresh.accuracy", "sdpo") > 0,
    value("fresh.accuracy", "other style, warm start")
    - value("fresh.accuracy", "other style") > 0.1,
]
CONTROL = value("fresh.accuracy", "sdpo, 50 steps more") - value("fresh.accuracy", "sdpo")
