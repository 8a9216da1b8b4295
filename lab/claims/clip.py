"""The clip of OPSD moves the student away from its teacher while the loss that it reports falls.

Source: Zhao et al. 2601.18734 v3, its code; a review of it as a default, huggingface/trl PR 5990.

Published: the clip of every entry q log(q/p) at 0.05 keeps words of style from dominating: AIME24
49 without, 57 with (1.7B). That it can turn the direction round follows from its formula
(lab/extra_losses.py): a clipped token, which the teacher wants most, is pushed down.

Predicted: With the published clip KL(teacher || student) at the base model's own completions grows
by a quarter or more; the loss reported at the end is below zero. With a clip at the same 0.05
whose entries are Bregman divergences, q log(q/p) - q + p, it shrinks: the direction matters, not
that large entries are cut. Without a clip it at least halves. Along the student's own completions,
which lead elsewhere, the KL grows under the published clip as well.

Found: The published clip does move the student away from its teacher: at the base model's own
completions the KL grows 2.8-fold, in eight of eight, and in the first universe the loss that it
reports is below zero at the end. But we were wrong about the cause. The control grows 2.5-fold,
most at twice the learning rate: entries that are cut, even with the direction kept, pull at
nothing, and the student drifts. Only without any clip does the KL fall, to a fifth. So large
entries are what teaches here; which way they point is the smaller half of the damage.
"""

import math

from lab.claims.arms import MeasuredRun
from lab.claims.statements import Panel, Quantity, Runs, at, change, number, over_steps, value

OPSD = "--method opsd"
ARMS = {
    "published clip": MeasuredRun("distance", f"{OPSD} --divergence clipped_forward_kl"),
    "Bregman clip": MeasuredRun("distance", f"{OPSD} --divergence bregman_clipped_forward_kl"),
}
ONCE = {"no clip": MeasuredRun("distance", OPSD)}
KL = "KL(teacher || student)"


def growth(arm: str) -> Quantity:
    def measured(runs: Runs) -> float:
        before, after = (number(runs, f"forward KL {when}", arm) for when in ("before", "after"))
        return math.log2(after / before)

    words = f"log2 of {KL} after / before, at the base model's completions"
    return Quantity(words, measured, ((1, arm),))


def growth_on_policy(arm: str) -> Quantity:
    def measured(runs: Runs) -> float:
        first, last = (at(runs, arm, "curve.forward_kl", i) for i in (0, -1))
        return math.log2(last / first)

    words = f"log2 of {KL} in the last / in the first training batch"
    return Quantity(words, measured, ((1, arm),))


def last_loss(runs: Runs) -> float:
    return at(runs, "published clip", "curve.loss", -1)


EFFECT = growth("published clip") > 0.3
CONTROL = growth("Bregman clip")
TESTABLE = [value("forward KL before", "published clip", f"{KL} before (nats per token)") > 0.05]
ALSO = [
    Quantity("loss of the last batch (nats): published clip", last_loss) < 0,
    growth_on_policy("published clip") > 1,
    growth("no clip") < -1,
    change("fresh.accuracy", "published clip") < -0.1,
    change("fresh.accuracy", "Bregman clip") < -0.1,
]
PANELS = [
    Panel(
        "published clip, training batches (nats per token)", "step",
        over_steps("curve.step", "published clip"),
        {
            "loss that is reported": over_steps("curve.loss", "published clip"),
            KL: over_steps("curve.forward_kl", "published clip"),
        },
    ),
]
