"""A teacher that follows its student amplifies the loss of doubt.

Source: Kim et al. 2603.24472; Huebotter et al. 2601.20802, table 4.

Published: Kim: an EMA teacher suppresses more than a fixed one. SDPO, best accuracy: live 36,
frozen 49, EMA 49, trust region 51.

Predicted: The faster the teacher follows the student, the fewer markers remain; the live teacher
costs at least 5 points of fresh accuracy against the frozen one, and a trust region avoids that.
With a context that tells nothing there is nothing to amplify.

Found (commit dce4e41, first edition): not reproduced, 4 of 4 statements hold. All statements
hold, and still the claim does not: the live teacher falls twice as far under a context that tells
nothing. Here the collapse is that of a teacher without an anchor, not of an amplified
suppression: with the frozen teacher hardly any marker is left that could still be lost.
"""

from lab.claims.arms import FROZEN, LIVE, SDPO
from lab.claims.statements import Panel, Quantity, over_arms, value
from lab.statistics import rank_correlation

ARMS = {
    "frozen": FROZEN,
    "EMA 0.01": SDPO,
    "EMA 0.05": f"{SDPO} --teacher_update_rate 0.05",
    "EMA 0.2": f"{SDPO} --teacher_update_rate 0.2",
    "live": LIVE,
    "trust region 0.05": f"{SDPO} --teacher trust_region --teacher_update_rate 0.05",
    "frozen, other problem": f"{FROZEN} --context other_problem",
    "live, other problem": f"{LIVE} --context other_problem",
}
RATES = {"frozen": 0, "EMA 0.01": 0.01, "EMA 0.05": 0.05, "EMA 0.2": 0.2, "live": 1}
markers = over_arms("fresh.markers", RATES)

STATEMENTS = [
    value("fresh.accuracy", "live") - value("fresh.accuracy", "frozen") < -0.05,
    Quantity(
        "rank correlation of the rate (0, 0.01, 0.05, 0.2, live) and fresh markers",
        lambda runs: rank_correlation(list(RATES.values()), markers(runs)),
    ) < 0,
    value("fresh.accuracy", "EMA 0.2") - value("fresh.accuracy", "frozen") < 0,
    value("fresh.accuracy", "trust region 0.05") - value("fresh.accuracy", "live") > 0.05,
]
CONTROL = (
    value("fresh.accuracy", "live, other problem")
    - value("fresh.accuracy", "frozen, other problem")
)
SHOWN = ["fresh.accuracy"]
LABELS = ["0", "0.01", "0.05", "0.2", "1 (live)"]
PANELS = [
    Panel(
        "markers per completion, fresh problems", "teacher update rate", LABELS, {"EMA": markers}
    ),
    Panel(
        "length of completions, fresh problems (tokens)", "teacher update rate", LABELS,
        {"EMA": over_arms("fresh.tokens", RATES)},
    ),
]
