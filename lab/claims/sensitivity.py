"""Self-distillation hangs on teacher and loss, except where all problems share the context.

Source: Zhu et al. 2605.11182.

Published: mathematics: from harmful to helpful by teacher and loss; shared prompts: reliable.

Predicted: Over four teachers and two divergences the accuracy on fresh problems spreads by more
than 30 points for work step by step, and by less for a rule that all problems share.

Found (commit dce4e41, first edition): not reproduced, 1 of 1 statements hold. The spread is wide,
and narrower with a shared rule, but by a third only, where our criterion asks for half:
reward-adapted and external teachers differ in how well they follow a rule, too.
"""

import numpy as np

from lab.claims.arms import FORWARD_KL, FROZEN, LARGER, OTHER_STYLE, SDPO
from lab.claims.statements import Quantity, over_arms

TEACHERS = {
    "self": FROZEN,
    "larger": LARGER,
    "adapted": f"{SDPO} --teacher external --external_teacher adapted",
    "other style": OTHER_STYLE,
}
STEPWISE = {}  # teacher and divergence, on problems worked step by step
for name, teacher in TEACHERS.items():
    STEPWISE |= {f"{name}, forward": f"{teacher} {FORWARD_KL}", f"{name}, reverse": teacher}
RULED = {  # the same, all shown one rule for all problems
    f"rule, {name}": f"{arm} --context rule --rules 3" for name, arm in STEPWISE.items()
}
ARMS = STEPWISE | RULED


def spread(words: str, arms: dict) -> Quantity:
    """Largest minus smallest accuracy on fresh problems."""
    accuracies = over_arms("fresh.accuracy", arms)
    return Quantity(words, lambda runs: float(np.ptp(accuracies(runs))))


STATEMENTS = [spread("spread of fresh.accuracy: step by step", STEPWISE) > 0.3]
CONTROL = spread("spread of fresh.accuracy: a shared rule", RULED)
SHOWN = ["fresh.accuracy"]
