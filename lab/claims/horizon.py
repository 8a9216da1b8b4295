"""After the student's first wrong step the teacher's signal is worth little.

Source: Firth 2026; Zhu et al. 2605.11182; SFD 2605.30833; a thread by Partridge (second-hand).

Published: KL -48 to -69 % and disagreement -75 to -80 % from the first to the last twentieth;
pairwise gradient cosine 20-25 % higher early; teacher accuracy falls on student prefixes.

Predicted: From the student's prefix that ends with its first wrong step the teacher, solution
shown, is right at least 10 points less often than the same model without the solution, and not in
a world whose documents never need a check. In wrong completions KL and disagreement at least
halve from the first to the last tenth.
"""

import math

from lab.claims.arms import NO_FUNCTION, Measure
from lab.claims.statements import Panel, Quantity, Runs, at, over_steps

ARMS = {"measured": Measure("horizon"), "no function": Measure("horizon", NO_FUNCTION)}


def deficit(arm: str) -> Quantity:
    """Accuracy right after the forced error: teacher minus the same model without context."""
    def measured(runs: Runs) -> float:
        return at(runs, arm, "teacher_forced", 1) - at(runs, arm, "unaided_forced", 1)

    return Quantity(
        "accuracy from right after a wrong step, with minus without the solution (fraction)",
        measured, ((1, arm),),
    )


def end_ratio(words: str, name: str) -> Quantity:
    """The last tenth of completions over the first, minus 1, of what was measured by position."""
    def measured(runs: Runs) -> float:
        return at(runs, "measured", name, -1) / (at(runs, "measured", name, 0) or math.nan) - 1

    return Quantity(f"{words} in wrong completions, last tenth / first - 1", measured)


EFFECT = deficit("measured") < -0.1
CONTROL = deficit("no function")
TESTABLE = [
    Quantity(
        "accuracy without the solution, right after the wrong step (fraction)",
        lambda runs: at(runs, "measured", "unaided_forced", 1),
    ) > 0.35,
]
ALSO = [
    end_ratio("KL(student || teacher)", "position_reverse_kl_incorrect") < -0.5,
    end_ratio("disagreement", "position_disagreement_incorrect") < -0.5,
]
PANELS = [
    Panel(
        "accuracy of completions from a prefix (fraction)", "the prefix ends",
        ["before the\nwrong step", "after it", "+1 step", "+2", "+3"],
        {
            "with the solution, step wrong": over_steps("teacher_forced", "measured"),
            "without, step wrong": over_steps("unaided_forced", "measured"),
            "with the solution, step right": over_steps("teacher_unforced", "measured"),
        },
    ),
]
