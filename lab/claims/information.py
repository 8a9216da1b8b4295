"""The more a context tells about the completion, the more expressions of doubt are lost.

Source: Kim et al. 2603.24472.

Published: an order by argument, none < part of the solution < regenerated answer < solution, with
markers per completion 182 / 160 / 24 / 9; I itself was not measured.

Predicted: The whole solution takes at least 0.2 markers per completion more than half of it does.
We expect this not to be for what it tells: another problem's solution tells nothing, and where the
authors behind it are as sure as behind the right one, it takes as much more than the half that does
tell something. Over seven contexts the loss of markers follows the measured H(y|x) - H(y|x,c), and
as closely the certainty of the documents' authors, which is put in by hand in about that order: by
contexts alone the two cannot be told apart.

Found: The whole solution takes .35 [.27, .44] markers more than half of it. As we expected it is
not for what it tells: a context that tells nothing, behind which authors are as sure, takes .31
[.20, .42] more. Over seven contexts the loss of markers follows the authors' certainty (rank
correlation .98), and what the context tells less than we thought (.57).
"""

from lab.claims.arms import CONTEXTS, NOTHING_TOLD, Measure
from lab.claims.statements import Panel, Quantity, Runs, at, change, changed, room
from lab.statistics import rank_correlation
from toy_tasks import CONTEXTS as ROWS

ARMS = {
    "solution": CONTEXTS["solution"],
    "partial": CONTEXTS["partial"],
    "nothing told, as sure as solution": NOTHING_TOLD,
}


def lost(name: str) -> Quantity:
    """More than under half of the solution."""
    return change("fresh.markers", name) - change("fresh.markers", "partial")


EFFECT = lost("solution") < -0.2
CONTROL = lost("nothing told, as sure as solution")
TESTABLE = [room("fresh.markers", "solution", floor=0)]
ONCE = {
    "measured": Measure("information"),
    **{name: flags for name, flags in CONTEXTS.items() if name not in ARMS},
}


def information(runs: Runs) -> list[float]:
    """Measured H(y|x) - H(y|x,c) of every context, in nats per completion."""
    return [at(runs, "measured", "information", c, 0) for c in CONTEXTS]


def certainty(runs: Runs) -> list[float]:
    """Of the authors behind every context, as the documents have it; it is measured nowhere."""
    return [ROWS[c].certainty for c in CONTEXTS]


def losses(runs: Runs) -> list[float]:
    """Markers lost per completion of fresh problems, under every context."""
    return [-changed(runs, "fresh.markers", c) for c in CONTEXTS]


ALSO = [
    Quantity(
        f"rank correlation of {words} and the loss of markers over 7 contexts",
        lambda runs, of=of: rank_correlation(of(runs), losses(runs)),
    ) > 0.7
    for words, of in (("H(y|x) - H(y|x,c)", information), ("the authors' certainty", certainty))
]
PANELS = [
    Panel(
        "what the context tells, what it takes (first universe)", "context", list(CONTEXTS),
        {"H(y|x) - H(y|x,c), nats per completion": information, "markers lost": losses},
        joined=False,
    )
]
