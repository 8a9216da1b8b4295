"""A teacher that was adapted by reward teaches better than an unadapted one.

Source: Zhu et al. 2605.11182.

Published: a 1.7B teacher adapted by reward taught better than an 8B one; no table.

Predicted: At equal cost (60 GRPO steps that adapt the teacher, context shown, against 60 more
steps of the student) the adapted teacher has the higher accuracy, and its student is better on
fresh problems and on the pool. Adapting for one step changes nothing.

Found (commit dce4e41, first edition): opposite, 1 of 4 statements hold. Reward makes the teacher
right more often, and its student worse: with the solution in view reward is earned by answering
at once, surely, and that manner is what the student copies. A larger teacher that sees no
solution teaches far better.
"""

from lab.claims.arms import FROZEN, LARGER
from lab.claims.statements import value

ARMS = {
    "adapted": "--method rlvr_teacher",
    "unadapted": f"{FROZEN} --steps 120",
    "adapted for one step": "--method rlvr_teacher --adapt_steps 1 --steps 119",
    "larger": LARGER,
}
STATEMENTS = [
    value("fresh.accuracy", "adapted") - value("fresh.accuracy", "unadapted") > 0,
    value("train.accuracy", "adapted") - value("train.accuracy", "unadapted") > 0,
    value("initial teacher accuracy", "adapted")
    - value("initial teacher accuracy", "unadapted") > 0,
    value("fresh.accuracy", "adapted") - value("fresh.accuracy", "larger") > 0,
]
CONTROL = (
    value("fresh.accuracy", "adapted for one step") - value("fresh.accuracy", "unadapted")
)
