"""The more a context tells about the completion, the more expressions of doubt are lost.

Source: Kim et al. 2603.24472.

Published: an order by argument, none < part of the solution < regenerated answer < solution, with
markers per completion 182 / 160 / 24 / 9; I itself was not measured.

Predicted: The whole solution takes at least 0.2 markers per completion more than half of it does.
Where both contexts are another problem's solution, which tells nothing, and only the authors are as
sure as with these two, there is no such difference. Over seven contexts the loss of markers
follows the measured H(y|x) - H(y|x,c).
"""

from lab.claims.arms import CONTEXTS, Measure
from lab.claims.statements import Panel, Quantity, Runs, at, change, changed, room
from lab.statistics import rank_correlation

OTHER, SURE = CONTEXTS["other_problem"], "--world certainty.other_problem"
ARMS = {
    "solution": CONTEXTS["solution"],
    "partial": CONTEXTS["partial"],
    "nothing told, as sure as solution": f"{OTHER} {SURE}=0.93",
    "as sure as partial": f"{OTHER} {SURE}=0.4",
}


def lost(name: str, other: str) -> Quantity:
    return change("fresh.markers", name) - change("fresh.markers", other)


EFFECT = lost("solution", "partial") < -0.2
CONTROL = lost("nothing told, as sure as solution", "as sure as partial")
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
