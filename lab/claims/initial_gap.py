"""The teacher's lead before training predicts what the student gains.

Source: He et al. 2605.30070 (second-hand).

Published: gain linear in the gap: slopes 0.66 to 1.51, R^2 0.95 to 0.996, on code.

Predicted: Over contexts and worlds the gain on the pool rises with the teacher's lead before
training (accuracy, context shown, minus the student's), with R^2 above 0.5, and so does the gain
on fresh problems. The gaps of other arms predict nothing.

Found (commit dce4e41, first edition): reproduced, 4 of 4 statements hold. The control is an
identity (the mean over all rotations is -1/8 of the slope): it checks the measurement, not the
experiment.
"""

import numpy as np

from lab.claims.arms import CONTEXTS, NO_FUNCTION, SDPO
from lab.claims.statements import Quantity, Runs, changed, number
from lab.statistics import slope_and_fit

ARMS = {
    **CONTEXTS,
    "solution, no function": f"{SDPO} {NO_FUNCTION}",
    "answer, no function": f"{CONTEXTS['answer']} {NO_FUNCTION}",
}
TRUE_CONTEXTS = [c for c in CONTEXTS if c != "wrong"]


def gap_line(runs: Runs, split: str, arms=tuple(ARMS), shift: int = 0) -> tuple[float, float]:
    """Slope and R^2 of the gain over the initial gap; shift: of the gaps of other arms."""
    gaps = [number(runs, "initial gap", arm) for arm in arms]
    gains = [changed(runs, f"{split}.accuracy", arm) for arm in arms]
    return slope_and_fit(gaps[shift:] + gaps[:shift], gains)


def rotated_slope(runs: Runs) -> float:
    """The mean slope over all rotations of the gaps but the right one."""
    slopes = [gap_line(runs, "train", shift=i)[0] for i in range(1, len(ARMS))]
    return float(np.mean(slopes))


STATEMENTS = [
    Quantity("slope on the pool", lambda runs: gap_line(runs, "train")[0]) > 0,
    Quantity("R^2 on the pool", lambda runs: gap_line(runs, "train")[1]) > 0.5,
    Quantity(
        "slope on the pool, contexts of one world that do not lie",
        lambda runs: gap_line(runs, "train", TRUE_CONTEXTS)[0],
    ) > 0,
    Quantity("slope on fresh problems", lambda runs: gap_line(runs, "fresh")[0]) > 0,
]
CONTROL = Quantity(
    "slope on the pool with the gaps of other arms, mean over all rotations", rotated_slope
)
SHOWN = ["train.accuracy", "fresh.accuracy"]
