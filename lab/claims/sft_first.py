"""Supervised steps on the teacher's samples first make unstable distillation stable.

Source: Zhu et al. 2605.11182.

Published: a supervised warm start on an external teacher's traces stabilises the student; no table.
The instability of the same paper is that of the naive reverse KL on the top k tokens.

Predicted: An external teacher of another manner teaches by the naive reverse KL on the likeliest
token, which degenerates. Fifty supervised steps on its right samples before leave at least 10
points more accuracy on fresh problems, and more than they add before the exact loss, where there
is nothing to stabilise. We expect this at half the learning rate and 60 steps alone: the warm
student starts higher and falls later, but the fixed point of that loss gives the likeliest token a
probability of q/e, however near the student was to its teacher.

Found: As we expected, at half the learning rate and 60 steps alone: there fifty supervised steps
before leave .55 more accuracy in the one universe with the whole base, .05 in the other. Everywhere
else the naive loss has destroyed the warm student as well (-.02 to .05). Before the exact loss they
change nothing, .00 [-.03, .03]. A start delays this collapse, it does not prevent it.
"""

from lab.claims.arms import OTHER_STYLE
from lab.claims.statements import Panel, Quantity, over_steps, value

NAIVE = f"{OTHER_STYLE} --divergence top_k_reverse_kl --top_k 1 --top_k_tail naive"
WARM = "--warm_start_steps 50"
ARMS = {
    "naive": NAIVE,
    "naive, warm": f"{NAIVE} {WARM}",
    "exact": OTHER_STYLE,
    "exact, warm": f"{OTHER_STYLE} {WARM}",
}


def lead(arm: str, other: str) -> Quantity:
    return value("fresh.accuracy", arm) - value("fresh.accuracy", other)


EFFECT = lead("naive, warm", "naive") > 0.1
CONTROL = lead("exact, warm", "exact")
TESTABLE = [lead("exact", "naive") > 0.1]
ALSO = [lead("exact, warm", "naive, warm") > 0.1]
PANELS = [
    Panel(
        "reward of the training batches (fraction)", "step", over_steps("curve.step", "naive"),
        {arm: over_steps("curve.reward", arm) for arm in ARMS},
    )
]
