"""The first tokens of a completion teach nearly everything.

Source: IW-OPD 2606.22600.

Published: training on the first 30 % of tokens keeps almost all, the last 30 % learn nothing.

Predicted: The first 30 % of the tokens keep at least 80 % of the loss of markers and of the gain
on the pool, the last 30 % at most 20 % of the loss of markers; as many tokens spread evenly keep
less than the first.

Found (commit dce4e41, first edition): reproduced, 3 of 5 statements hold. The first tokens decide
how a completion is written, as claimed. What they do not hold is the answer itself, the last
token but one of a short completion: the gain on the pool needs it, and so the last 30 % matter as
well.
"""

from lab.claims.arms import SDPO
from lab.claims.statements import change

ARMS = {
    "all": SDPO,
    "first": f"{SDPO} --token_weights first --token_share 0.3",
    "last": f"{SDPO} --token_weights last --token_share 0.3",
    "spread": f"{SDPO} --token_weights spread --token_share 0.3",
}
STATEMENTS = [
    change("fresh.markers", "first") - 0.8 * change("fresh.markers", "all") < 0,
    change("fresh.markers", "last") - 0.2 * change("fresh.markers", "all") > 0,
    change("train.accuracy", "first") - 0.8 * change("train.accuracy", "all") > 0,
    change("fresh.markers", "all") < -0.2,
    change("train.accuracy", "all") > 0,
]
CONTROL = change("fresh.markers", "spread") - 0.8 * change("fresh.markers", "all")
SHOWN = ["fresh.markers", "train.accuracy", "fresh.accuracy"]
