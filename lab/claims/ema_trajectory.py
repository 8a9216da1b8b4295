"""The faster a teacher follows its student, the sooner doubt is gone; a slow one only delays it.

Source: Huebotter et al. 2601.20802, table 4 and its bound; Kim et al. 2603.24472.

Published: the drift of an EMA teacher of rate a over k steps is bounded by a multiple of
(1 - (1 - a)^k)^2, small while a k is; a = 0.01 does as well as frozen (49 and 49 on LCBv6, live 36;
Huebotter et al.), a = 0.05 worse than frozen (Kim et al.).

Predicted: Under half of the solution the rate 0.05 leaves at least 0.05 markers per completion
fewer than 0.01 after the same steps, and not where authors behind that context stay careful. In 300
steps markers fall to a quarter at every rate above 0: in a linear model of the loop the rate
decides how fast it goes, and not whether. The rate 0.05 is later than the live teacher by about
1 / 0.05 = 20 steps or less, 0.01 at least 40 later than 0.05. The frozen teacher never gets there.

Found: Fragile, and it hangs on the steps: after 60 the faster teacher leaves .09 markers fewer,
after 120 it leaves .27 more. What we had not thought of: a teacher that follows loses doubt first,
and then its language. In 300 steps of the first universe the rate 0.05 brings the markers from .76
to .16 at step 120; then they rise to 1.2 per completion, a stammer, while accuracy falls to .12.
Live they are a quarter after 18 steps and 57 per completion at the end. So a count of markers is no
measure of doubt once a teacher has broken. The times came out in the predicted order, the gaps
wider: a quarter is left after 18 steps live, after 68 at 0.05, after 275 at 0.01. The frozen
teacher keeps .43 throughout.
"""

import itertools
import math

from lab.claims.arms import CONTEXTS, FROZEN, LIVE, SWAPPED
from lab.claims.feedback_loop import FOLLOWS, PARTIAL, markers
from lab.claims.statements import Panel, Quantity, Runs, over_steps, value

SLOW = CONTEXTS["partial"]  # the rate of the row, 0.01
ARMS = {
    "EMA 0.05": FOLLOWS,
    "EMA 0.01": SLOW,
    "EMA 0.05, careful authors": f"{FOLLOWS} {SWAPPED}",
    "EMA 0.01, careful authors": f"{SLOW} {SWAPPED}",
}
LONG = "--steps 300 --eval_every 20"
ONCE = {
    f"{name}, 300 steps": f"{flags} {LONG}"
    for name, flags in {
        "frozen": f"{FROZEN} {PARTIAL}", "EMA 0.01": SLOW, "EMA 0.05": FOLLOWS,
        "live": f"{LIVE} {PARTIAL}",
    }.items()
}


def collapse(name: str) -> Quantity:
    """Between two evaluations a straight line; nan of a run that does not get there."""
    arm = f"{name}, 300 steps"

    def steps(runs: Runs) -> float:
        curve = runs[arm].get("curve.fresh.markers", [])
        points = list(zip(runs[arm].get("curve.evaluated", []), curve))
        for (before, high), (after, low) in itertools.pairwise(points):
            least = curve[0] / 4
            if low <= least < high:
                return before + (after - before) * (high - least) / (high - low)
        return math.nan

    words = "steps until markers on fresh problems are a quarter of what they were"
    return Quantity(words, steps, ((1, arm),))


EFFECT = markers("EMA 0.05") - markers("EMA 0.01") < -0.05
CONTROL = markers("EMA 0.05, careful authors") - markers("EMA 0.01, careful authors")
TESTABLE = [markers("EMA 0.01") > 0.15]
ALSO = [
    collapse("EMA 0.01") > 0,  # at all
    collapse("EMA 0.01") - collapse("EMA 0.05") > 40,
    (collapse("EMA 0.05") - collapse("live")).within(30),
    value("fresh.markers", "frozen, 300 steps") > 0.25,
]
PANELS = [
    Panel(
        "markers on fresh problems (per completion; first universe)", "step",
        over_steps("curve.evaluated", "live, 300 steps"),
        {arm: over_steps("curve.fresh.markers", arm) for arm in ONCE},
    )
]
