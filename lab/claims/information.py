"""The more a context tells about the completion, the more expressions of doubt are lost.

Source: Kim et al. 2603.24472.

Published: an order by argument, none < part of the solution < regenerated answer < solution, with
markers per completion 182 / 160 / 24 / 9; I itself was not measured.

Predicted: The loss of markers follows the measured I(y;c|x) over the contexts (rank correlation
above 0.7), in the order none < partial < answer < solution; a context that tells nothing of the
answer suppresses nothing. Of contexts that are random given the problem, a verdict tells more of
the completion than a sibling does, and suppresses more.

Found (commit dce4e41, first edition): reproduced, 5 of 7 statements hold. The loss of markers
follows the gap of entropies, not the true information of random contexts: a sibling, which tells
little that the student could not write itself (0.1 nats), suppresses more than a verdict (0.3
nats). What is copied is the manner that documents with such a context have. That this claim
counts as reproduced says only that the solution suppresses, and that another problem's solution
suppresses less than half as much (-0.15 of -0.75; whether at all, five seeds do not settle);
order and correlation are among the other statements.
"""

from lab.claims.arms import CONTEXTS, Measure
from lab.claims.statements import Panel, Quantity, Runs, at, change, changed, value
from lab.statistics import rank_correlation

ARMS = {"measured": Measure("information"), **CONTEXTS}


def information(runs: Runs) -> list[float]:
    """Measured H(y|x) - H(y|x,c) of every context, in nats per completion."""
    return [at(runs, "measured", "information", c, 0) for c in CONTEXTS]


def random_information(runs: Runs, context: str) -> float:
    """I(y;c|x) in nats of a context that is random given x: the middle of its two bounds."""
    bounds = (at(runs, "measured", "mutual_information", context, b, 0) for b in ("below", "above"))
    return sum(bounds) / 2


STATEMENTS = [
    change("fresh.markers", "solution") < -0.1,
    Quantity(
        "rank correlation of H(y|x) - H(y|x,c) and the loss of markers over 7 contexts",
        lambda runs: rank_correlation(
            information(runs), [-changed(runs, "fresh.markers", c) for c in CONTEXTS]
        ),
    ) > 0.7,
    change("fresh.markers", "partial") < 0,
    value("fresh.markers", "answer") - value("fresh.markers", "partial") < 0,
    value("fresh.markers", "solution") - value("fresh.markers", "answer") < 0,
    Quantity(
        "true I(y;c|x) of random contexts (nats): a verdict minus a sibling",
        lambda runs: random_information(runs, "feedback") - random_information(runs, "sibling"),
    ) > 0,
    value("fresh.markers", "feedback") - value("fresh.markers", "sibling") < 0,
]
CONTROL = change("fresh.markers", "other_problem")
PANELS = [
    Panel(
        "what the context tells (nats per completion)", "context", list(CONTEXTS),
        {
            "H(y|x) - H(y|x,c)": information,
            "I(y;c|x), where c is random": lambda runs: [
                random_information(runs, c) for c in CONTEXTS
            ],
        },
        joined=False,
    )
]
