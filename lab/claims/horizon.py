"""Once a wrong value is written, a teacher that knows the solution is worse than none.

Source: Firth 2026; a thread by Partridge (second-hand); Zhu et al. 2605.11182; SFD 2605.30833.

Published: a teacher that knows 7 and finds itself having said 3 can only play a confused author
(an argument). KL -48 to -69 % and disagreement -75 to -80 % from the first to the last twentieth of
completions; teacher accuracy falls on student prefixes.

Predicted: From behind a wrong glance that nobody has checked yet the teacher, solution shown, is
right at least 20 points less often than the same model without the solution. From behind a right
one it is not, or by less than half as much, so that the error makes the difference and not the
weakness of a hinted author: knowing the answer, it could as well have been the better one. It does
not check (less than 40 % of the time; the unaided model more than 80 %). Where authors behind a
solution stay careful, who know as much and have said the same wrong value, little is lost: it is
the manner, not the contradiction. In wrong completions KL and disagreement at least halve from the
first to the last tenth; Firth's teacher saw feedback, here it sees the solution.

Found: As predicted in eight of eight: from behind a wrong glance the teacher that knows the
solution is right .57 [.44, .70] less often than the same model without it, from behind a right one
.10 [.04, .16]. It checks 10 % of such glances, the unaided model 98 %. Where authors behind a
solution stay careful nothing is lost (+.04): it is the manner, not the contradiction. KL and
disagreement fall by two thirds and more towards the end of wrong completions.
"""

import math

from lab.claims.arms import SWAPPED, Measure
from lab.claims.statements import Panel, Quantity, Runs, at, value

ARMS = {"measured": Measure("careful")}
ONCE = {
    "by position": Measure("horizon"),
    "careful behind a solution": Measure("careful", SWAPPED),
}


def lead(glance: str, arm: str = "measured") -> Quantity:
    """Accuracy from behind a wrong or a right glance: teacher minus the same model without it."""
    def measured(runs: Runs) -> float:
        teacher, unaided = (
            at(runs, arm, f"forced_{glance}_glance_{reader}") for reader in ("teacher", "unaided")
        )
        return teacher - unaided

    words = "accuracy from behind a glance (fraction), with minus without the solution"
    place = f"a {glance} glance" + f", {arm}" * (arm != "measured")
    return Quantity(words, measured, ((1, place),))


def checked(reader: str, who: str) -> Quantity:
    words = f"wrong glances that are checked (fraction), {who}"
    return value(f"forced_wrong_glance_{reader}_checked_frac", "measured", words)


def end_ratio(words: str, name: str) -> Quantity:
    """The last tenth of completions over the first, minus 1, of what was measured by position."""
    def measured(runs: Runs) -> float:
        first, last = (at(runs, "by position", name, i) for i in (0, -1))
        return last / (first or math.nan) - 1

    return Quantity(f"{words} in wrong completions, last tenth / first - 1", measured)


def accuracies(reader: str):
    """A curve: behind a right glance, behind a wrong one."""
    names = [f"forced_{glance}_glance_{reader}" for glance in ("right", "wrong")]
    return lambda runs: [at(runs, "measured", name) for name in names]


EFFECT = lead("wrong") < -0.2
CONTROL = lead("right")
TESTABLE = [
    value(
        "forced_wrong_glance_unaided", "measured",
        "accuracy from behind a wrong glance without the solution (fraction)",
    ) > 0.35,
]
ALSO = [
    checked("teacher", "with the solution") < 0.4,
    checked("unaided", "without the solution") > 0.8,
    lead("wrong", "careful behind a solution") > -0.1,
    end_ratio("KL(student || teacher)", "position_reverse_kl_incorrect") < -0.5,
    end_ratio("disagreement", "position_disagreement_incorrect") < -0.5,
]
PANELS = [
    Panel(
        "accuracy from behind a glance (fraction)", "the glance is", ["right", "wrong"],
        {
            "with the solution": accuracies("teacher"),
            "without the solution": accuracies("unaided"),
        },
        joined=False,
    ),
]
