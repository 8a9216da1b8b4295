"""A teacher is right less often when it goes on from the student's prefixes.

Source: Zhu et al. 2605.11182; Li et al. 2604.13016.

Published: GPQA 62.1 on its own, 46.0 on the student's prefixes; lead +0.37 at 1k tokens, +0.02 at
16k.

Predicted: From three quarters of the student's completion the teacher is right at least 5 points
less often than from its own, and the gap grows from a quarter to three quarters; a teacher of
another style loses 10 points. Trained on-policy by it, a raw student stays 10 points of fresh
accuracy below one that imitates its samples. Where both write step by step, half of the gap at
most remains.

Found (commit dce4e41, first edition): reproduced, 1 of 4 statements hold. The teacher loses 25
points on the student's prefixes. Where both write step by step 5 of them are left: most of it is
a mismatch of style, since of itself the teacher answers at once. It hardly grows after the first
quarter, and a teacher of another style can be learned from on-policy as well as off-policy.
"""

from lab.claims.arms import FORWARD_KL, OFF_POLICY, OTHER_STYLE, Measure
from lab.claims.statements import Panel, Quantity, Runs, at, over_steps, value

ARMS = {
    "measured": Measure("prefixes"),
    "on-policy": f"{OTHER_STYLE} {FORWARD_KL}",
    "off-policy": f"{OTHER_STYLE} {FORWARD_KL} {OFF_POLICY}",
}
LENGTHS = [0.0, 0.25, 0.5, 0.75]  # of the prefix, as a share of the completion


def gap(runs: Runs, reader: str, length: float, which: str = "") -> float:
    """Accuracy from the student's prefixes minus from the reader's own."""
    i = LENGTHS.index(length)
    own = at(runs, "measured", f"{reader}_own_prefix{which}", i)
    return at(runs, "measured", f"{reader}_student_prefix{which}", i) - own


STATEMENTS = [
    Quantity(
        "teacher with solution, 75 % of a completion: student's minus own prefix",
        lambda runs: gap(runs, "teacher", 0.75),
    ) < -0.05,
    Quantity(
        "the same, 75 % minus 25 %",
        lambda runs: gap(runs, "teacher", 0.75) - gap(runs, "teacher", 0.25),
    ) < 0,
    Quantity(
        "teacher of another style, 75 %: student's minus own prefix",
        lambda runs: gap(runs, "external", 0.75),
    ) < -0.1,
    value("fresh.accuracy", "on-policy") - value("fresh.accuracy", "off-policy") < -0.1,
]
CONTROL = Quantity(
    "the same where both write step by step, so that only the student's errors differ",
    lambda runs: gap(runs, "teacher", 0.75, "_steps"),
)
SHOWN = ["fresh.accuracy"]
PANELS = [
    Panel(
        "accuracy of completions from a prefix (fraction)",
        "share of the completion given as prefix (fraction)",
        LENGTHS,
        {
            "teacher with solution, student's prefix": over_steps(
                "teacher_student_prefix", "measured"
            ),
            "teacher with solution, own": over_steps("teacher_own_prefix", "measured"),
            "another style, student's prefix": over_steps("external_student_prefix", "measured"),
            "another style, own": over_steps("external_own_prefix", "measured"),
        },
    )
]
