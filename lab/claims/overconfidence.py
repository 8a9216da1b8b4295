"""A student whose teacher knows the solution becomes surer of its answers than it is right.

Source: a post of April 2026, after Kim et al. 2603.24472.

Published: the student is trained to reason as if it knew what it does not; no calibration measured.

Predicted: On fresh problems the probability of the digit that the student answers with, minus its
accuracy, rises by at least 15 points under the solution, from about 0. We expect the cause to be
another one than published: where the teacher is told nothing and its authors are merely as sure,
the rise is at least half as large, since an unchecked wrong step is passed on with certainty
whoever taught it. Reward on the same problems leaves the student calibrated.

Found: Students do become surer than they are right, by .40 [.31, .50], and not with rewards
(-.005). But as we expected the published cause is not the only one: where the teacher is told
nothing and its authors are merely as sure, the rise is .25 [.19, .32]. Knowing the solution adds to
it at twice the learning rate, and less at half; so the verdict is fragile.
"""

from lab.claims.arms import GRPO, NOTHING_TOLD, SDPO, MeasuredRun
from lab.claims.statements import Panel, Quantity, Runs, at, room

ARMS = {
    "solution": MeasuredRun("calibration", SDPO),
    "nothing told, as sure": MeasuredRun("calibration", NOTHING_TOLD),
}
ONCE = {"grpo": MeasuredRun("calibration", GRPO)}
OVER = "confidence minus accuracy on fresh problems (fraction)"


def rise(arm: str, kind: str = "all") -> Quantity:
    """Of the completions of a kind: all, direct or steps."""
    def measured(runs: Runs) -> float:
        path = kind, "overconfidence"
        return at(runs, arm, "after", *path) - at(runs, arm, "before", *path)

    words = f"rise of {OVER}{'' if kind == 'all' else f', {kind}'}"
    return Quantity(words, measured, ((1, arm),))


def both(name: str):
    """A number of the solution's arm before and after training."""
    return lambda runs: [at(runs, "solution", when, "all", name) for when in ("before", "after")]


EFFECT = rise("solution") > 0.15
CONTROL = rise("nothing told, as sure")
TESTABLE = [room("fresh.accuracy", "solution", floor=0.1)]
ALSO = [
    Quantity(
        f"{OVER}: base model", lambda runs: at(runs, "solution", "before", "all", "overconfidence")
    ).within(0.1),
    rise("solution", "steps") > 0.15,
    rise("grpo") < 0.1,
]
PANELS = [
    Panel(
        "under the solution, fresh problems (fraction)", "training", ["before", "after"],
        {"confidence": both("confidence"), "accuracy": both("accuracy")},
    )
]
