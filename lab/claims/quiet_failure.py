"""Accuracy on fresh problems falls while the loss falls, so that the loss does not tell.

Source: a post of April 2026, after Kim et al. 2603.24472.

Published: self-distillation can silently strip away the capacity to act on doubt while the training
loss looks great (the post; no curves).

Predicted: Only those stretches of ten steps count in which the loss fell: over them accuracy on
fresh problems loses at least 10 points in all. Where the markers have no function it does not,
though the loss falls there as well. The loss ends at less than half of where it began. Accuracy on
the training problems does not show it either: it falls by less than 5 points, if at all.

Found: Fragile, and it hangs on the learning rate: in the stretches where the loss falls accuracy
loses .12 at half of it, nothing at twice. There the failure is not quiet at all. Within the first
ten steps accuracy falls from .65 to .36 while the loss per token doubles, since completions shrink
to the few tokens on which student and teacher disagree. In the first universe the loss ends 1.6
times where it began, not at less than half. Where the markers have no function it falls to nothing,
and no accuracy with it. So a rising loss per token was the warning here, and a falling one no
comfort.
"""

import itertools
import math

from lab.claims.arms import NO_FUNCTION, SDPO
from lab.claims.statements import Panel, Quantity, Runs, change, over_steps, room

LOGGED = f"{SDPO} --eval_every 10"
ARMS = {"sdpo": LOGGED, "sdpo, no function": f"{LOGGED} {NO_FUNCTION}"}


def losses(arm: str):
    """A curve: the loss at each evaluation, over the first; that before training is step 1's."""
    def curve(runs: Runs) -> list[float]:
        numbers = runs[arm]
        logged = dict(zip(numbers.get("curve.step", []), numbers.get("curve.loss", [])))
        first = logged.get(1, math.nan)
        evaluated = numbers.get("curve.evaluated", [])
        return [logged.get(max(1, step), math.nan) / first for step in evaluated]

    return curve


def while_the_loss_fell(arm: str) -> Quantity:
    def total(runs: Runs) -> float:
        points = list(zip(losses(arm)(runs), over_steps("curve.fresh.accuracy", arm)(runs)))
        if len(points) < 2 or any(math.isnan(loss) for loss, _ in points):
            return math.nan
        pairs = itertools.pairwise(points)
        return sum(after - before for (x, before), (y, after) in pairs if y < x)

    words = "change of accuracy on fresh problems (fraction), in the stretches where the loss fell"
    return Quantity(words, total, ((1, arm),))


def loss_left(arm: str) -> Quantity:
    def last(runs: Runs) -> float:
        return (losses(arm)(runs) or [math.nan])[-1] - 1

    return Quantity("loss at the end / at the start, minus 1", last, ((1, arm),))


EFFECT = while_the_loss_fell("sdpo") < -0.1
CONTROL = while_the_loss_fell("sdpo, no function")
TESTABLE = [room("fresh.accuracy", "sdpo", floor=0.1)]
ALSO = [
    loss_left("sdpo") < -0.5,
    loss_left("sdpo, no function") < -0.5,
    change("train.accuracy", "sdpo") > -0.05,
]
PANELS = [
    Panel(
        title, "step", over_steps("curve.evaluated", arm),
        {
            "loss / loss of the first step": losses(arm),
            "accuracy on fresh problems (fraction)": over_steps("curve.fresh.accuracy", arm),
            "on training problems (fraction)": over_steps("curve.train.accuracy", arm),
        },
    )
    for arm, title in zip(ARMS, ("self-distillation", "the same, markers without a function"))
]
