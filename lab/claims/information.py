"""The more a context tells about the completion, the more expressions of doubt are lost.

Source: Kim et al. 2603.24472.

Published: an order by argument, none < part of the solution < regenerated answer < solution, with
markers per completion 182 / 160 / 24 / 9; I itself was not measured.

Predicted: The whole solution takes at least 0.2 markers per completion more than half of it does,
and as much more where documents with these two contexts have swapped how sure their authors are,
while what the contexts tell stays: information, not manner, would be the cause. Over seven
contexts the loss of markers follows the measured H(y|x) - H(y|x,c).
"""

from lab.claims.arms import CONTEXTS, Measure
from lab.claims.statements import Panel, Quantity, Runs, at, change, changed, room
from lab.statistics import rank_correlation

SWAPPED = "--world certainty.solution=0.4,certainty.partial=0.93"
ARMS = {
    "solution": CONTEXTS["solution"],
    "partial": CONTEXTS["partial"],
    "solution, swapped": f"{CONTEXTS['solution']} {SWAPPED}",
    "partial, swapped": f"{CONTEXTS['partial']} {SWAPPED}",
}
EFFECT = change("fresh.markers", "solution") - change("fresh.markers", "partial") < -0.2
CONTROL = change("fresh.markers", "solution, swapped") - change("fresh.markers", "partial, swapped")
TESTABLE = [room("fresh.markers", "solution", floor=0)]
ONCE = {
    "measured": Measure("information"),
    **{name: flags for name, flags in CONTEXTS.items() if name not in ARMS},
}


def information(runs: Runs) -> list[float]:
    """Measured H(y|x) - H(y|x,c) of every context, in nats per completion."""
    return [at(runs, "measured", "information", c, 0) for c in CONTEXTS]


def losses(runs: Runs) -> list[float]:
    """Markers lost per completion of fresh problems, under every context."""
    return [-changed(runs, "fresh.markers", c) for c in CONTEXTS]


ALSO = [
    Quantity(
        "rank correlation of H(y|x) - H(y|x,c) and the loss of markers over 7 contexts",
        lambda runs: rank_correlation(information(runs), losses(runs)),
    ) > 0.7,
]
PANELS = [
    Panel(
        "what the context tells, what it takes (first universe)", "context", list(CONTEXTS),
        {"H(y|x) - H(y|x,c), nats per completion": information, "markers lost": losses},
        joined=False,
    )
]
