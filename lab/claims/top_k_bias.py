"""The naive reverse KL on the top k tokens degenerates, corrected forms do not.

Source: Zhu et al. 2605.11182.

Published: naive top-20 and top-5 rise, then collapse; stop-gradient and renormalised do not.

Predicted: On a support of one or two tokens the naive form costs at least 5 points of fresh
accuracy against the stop-gradient form; stop-gradient, renormalised and bucket at k=2 stay within
5 points of the full vocabulary. With eight tokens nothing is lost.

Found (commit dce4e41, first edition): reproduced, 1 of 5 statements hold. With one token the
naive form collapses, with two it loses 9 points. With two tokens the other forms lie 2 to 3
points below the whole vocabulary, with one token stop-gradient 5; five seeds do not settle that
it is less than 5.
"""

from lab.claims.arms import FROZEN
from lab.claims.statements import Quantity, value

TOP_K = f"{FROZEN} --divergence top_k_reverse_kl"
ARMS = {
    "full": FROZEN,
    "naive, k=1": f"{TOP_K} --top_k 1 --top_k_tail naive",
    "naive, k=2": f"{TOP_K} --top_k 2 --top_k_tail naive",
    "naive, k=8": f"{TOP_K} --top_k 8 --top_k_tail naive",
    "stop_gradient, k=1": f"{TOP_K} --top_k 1 --top_k_tail stop_gradient",
    "stop_gradient, k=2": f"{TOP_K} --top_k 2 --top_k_tail stop_gradient",
    "renormalised, k=2": f"{TOP_K} --top_k 2 --top_k_tail renormalised",
    "bucket, k=1": f"{TOP_K} --top_k 1 --top_k_tail bucket",
    "bucket, k=2": f"{TOP_K} --top_k 2 --top_k_tail bucket",
}


def lead(arm: str, other: str) -> Quantity:
    return value("fresh.accuracy", arm) - value("fresh.accuracy", other)


STATEMENTS = [
    lead("naive, k=1", "stop_gradient, k=1") < -0.05,
    lead("naive, k=2", "stop_gradient, k=2") < -0.05,
    lead("stop_gradient, k=2", "full") > -0.05,
    lead("renormalised, k=2", "full") > -0.05,
    lead("bucket, k=2", "full") > -0.05,
]
CONTROL = lead("naive, k=8", "full")
SHOWN = ["fresh.accuracy", "fresh.tokens"]
