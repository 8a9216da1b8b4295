"""A teacher that follows its student amplifies the loss of doubt.

Source: Kim et al. 2603.24472; Huebotter et al. 2601.20802, table 4.

Published: Kim: an EMA teacher of rate 0.05 suppresses more than a fixed one, and ends lower. SDPO,
best accuracy on LCBv6: live 36, frozen 49, EMA of rate 0.01 49.

Predicted: Under half of the solution the frozen teacher leaves about half of the markers; one that
follows at rate 0.05 leaves at least 0.05 per completion fewer, since each round starts from what
the last one left. Where authors behind that context stay careful, so that there is nothing to
amplify, it does not. A live teacher goes further, and costs accuracy. Under the whole solution,
the published setting, the frozen teacher alone leaves hardly any marker to be lost here.

Found: Fragile, and it hangs on the steps: after 60 the following teacher leaves .17 markers fewer
than the frozen one, after 120 it leaves .22 more. At twice the learning rate and the whole base it
has broken by then and stammers `wait` (`ema_trajectory` shows how). Where authors stay careful the
two differ by -.06 [-.16, .04]. In the first universe accuracy is .08 lower with the following
teacher and .03 lower with the live one. So the published loss is there while the teacher is whole;
for longer a following teacher does worse than to amplify it.
"""

from lab.claims.arms import CONTEXTS, FROZEN, LIVE, SWAPPED
from lab.claims.statements import Panel, Quantity, Runs, number, over_arms, value

PARTIAL = "--context partial"
FOLLOWS = f"{CONTEXTS['partial']} --teacher_update_rate 0.05"  # EMA is the row's own
ARMS = {
    "EMA 0.05": FOLLOWS,
    "frozen": f"{FROZEN} {PARTIAL}",
    "EMA 0.05, careful authors": f"{FOLLOWS} {SWAPPED}",
    "frozen, careful authors": f"{FROZEN} {PARTIAL} {SWAPPED}",
}
ONCE = {"live": f"{LIVE} {PARTIAL}", "frozen, whole solution": FROZEN}
SPLITS = ("train", "fresh", "new_operators")


def markers(arm: str) -> Quantity:
    """After training; of three splits, since the counts of one are noisy."""
    def mean(runs: Runs) -> float:
        return sum(number(runs, f"{split}.markers", arm) for split in SPLITS) / len(SPLITS)

    words = "markers (per completion; mean of pool, fresh problems and new operators)"
    return Quantity(words, mean, ((1, arm),))


EFFECT = markers("EMA 0.05") - markers("frozen") < -0.05
CONTROL = markers("EMA 0.05, careful authors") - markers("frozen, careful authors")
TESTABLE = [markers("frozen") > 0.15]
ALSO = [
    markers("live") - markers("frozen") < -0.1,
    value("fresh.accuracy", "EMA 0.05") - value("fresh.accuracy", "frozen") < 0,
    value("fresh.accuracy", "live") - value("fresh.accuracy", "frozen") < -0.05,
    markers("frozen, whole solution") < 0.2,
]
PANELS = [
    Panel(
        "markers of the teacher itself, with its context (per completion)", "teacher",
        ["frozen", "EMA 0.05", "live"],
        {
            "before": over_arms("before.teacher.markers", ["frozen", "EMA 0.05", "live"]),
            "after": over_arms("teacher.markers", ["frozen", "EMA 0.05", "live"]),
        },
        joined=False,
    )
]
