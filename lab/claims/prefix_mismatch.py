"""A teacher is right less often when it goes on from the student's prefixes.

Source: Zhu et al. 2605.11182; Li et al. 2604.13016; SFD 2605.30833.

Published: GPQA 62.1 from the teacher's own prefixes, 46.0 from the student's; lead over the student
+0.37 at 1k tokens, +0.02 at 16k.

Predicted: We expect less than published: from three quarters of the student's completion the
teacher, solution shown, is right some 5 points less often than from its own, not 10, since the
student's wrong glances are followed by their checks, which a teacher goes on with. What is lost is
lost to wrong values in the prefix: where all of it is right so far, in the student's manner as
ever, the teacher loses nothing. The loss grows from a quarter to three quarters.

Found: As we expected, less than published: from three quarters of the student's completion the
teacher is right .02 [-.01, .05] less often than from its own. Where the prefix is right so far it
loses nothing (+.02). The student's wrong glances are followed by their checks, which the teacher
goes on with.
"""

from lab.claims.arms import Measure
from lab.claims.statements import Panel, Quantity, at, over_steps

ARMS = {"measured": Measure("prefixes")}
LENGTHS = [0.0, 0.25, 0.5, 0.75]  # of the prefix, as a share of the completion


def from_prefixes(name: str, length: float):
    """Accuracy of completions from prefixes of that length, as a function of runs."""
    return lambda runs: at(runs, "measured", name, LENGTHS.index(length))


def gap(length: float, which: str = "") -> Quantity:
    """From the student's prefixes minus from the teacher's own."""
    names = (f"teacher_student_prefix{which}", f"teacher_own_prefix{which}")
    student, own = (from_prefixes(name, length) for name in names)
    place = f"{length:.0%} of a completion" + ", all of it right" * bool(which)
    words = "accuracy of the teacher (fraction), from the student's prefixes minus from its own"
    return Quantity(words, lambda runs: student(runs) - own(runs), ((1, place),))


EFFECT = gap(0.75) < -0.1
CONTROL = gap(0.75, "_sound")
TESTABLE = [
    Quantity(
        "accuracy of the teacher from 75% of its own completions (fraction)",
        from_prefixes("teacher_own_prefix", 0.75),
    ) > 0.35,
]
ALSO = [gap(0.75) - gap(0.25) < 0]
PANELS = [
    Panel(
        "accuracy of completions from a prefix (fraction)",
        "share of the completion given as prefix (fraction)",
        LENGTHS,
        {
            "teacher, student's prefix": over_steps("teacher_student_prefix", "measured"),
            "teacher, its own": over_steps("teacher_own_prefix", "measured"),
            "teacher, student's, all right": over_steps("teacher_student_prefix_sound", "measured"),
            "student, its own": over_steps("unaided_student_prefix", "measured"),
        },
    )
]
