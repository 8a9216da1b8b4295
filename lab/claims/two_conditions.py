"""A teacher must think compatibly and know something new; either alone teaches little.

Source: Li et al. 2604.13016.

Published: overlap of the 16 likeliest tokens 72 to 91 % in runs that succeed, flat in others; gap
recovered 15.6 % from a same-pipeline teacher, 58.6 % from one with reinforcement learning behind it
(Qwen).

Predicted: The base model after GRPO (compatible and new) raises accuracy on fresh problems by at
least 15 points. A larger model of the same documents (compatible, nothing new) does not. A model
that always writes every step (new, another manner) does: whatever it writes is within the
student's reach, who writes so, too, though seldom. So we expect the second condition to hold and
the first not to be needed: the control keeps the effect. Its overlap starts lower and rises.

Found: The second condition holds, the first is not needed, as we expected: a teacher of another
manner raises accuracy by .30 [.28, .31], more than the compatible one adapted by reward, .20 [.08,
.32], and a larger one with nothing new by .01. Its overlap does start .26 lower, but it
hardly rises (.01): the student moves along with its own completions.
"""

import numpy as np

from lab.claims.arms import ADAPTED, LARGER, OTHER_STYLE
from lab.claims.statements import Panel, Quantity, at, change, changed, over_steps, room

ARMS = {"compatible and new": ADAPTED, "nothing new": LARGER, "another manner": OTHER_STYLE}
LACKING = ["nothing new", "another manner"]
OVERLAP = "overlap of the 4 likeliest tokens of student and teacher (fraction)"


def overlap(arm: str, place: int) -> Quantity:
    """At a logged step: 0 the first, -1 the last."""
    words = f"{OVERLAP}, {'first' if place == 0 else 'last'} step"
    return Quantity(words, lambda runs: at(runs, arm, "curve.top_k_overlap", place), ((1, arm),))


def rise(arm: str) -> Quantity:
    first, last = overlap(arm, 0).value, overlap(arm, -1).value
    return Quantity(f"rise of {OVERLAP}", lambda runs: last(runs) - first(runs), ((1, arm),))


EFFECT = change("fresh.accuracy", "compatible and new") > 0.15
CONTROL = Quantity(
    "change of accuracy on fresh problems (fraction): the better of those that lack a condition",
    lambda runs: float(np.max([changed(runs, "fresh.accuracy", arm) for arm in LACKING])),
)
TESTABLE = [
    room("fresh.accuracy", "compatible and new", ceiling=1),
    overlap("compatible and new", 0) - overlap("another manner", 0) > 0.05,
]
ALSO = [
    change("fresh.accuracy", "nothing new").within(0.1),
    change("fresh.accuracy", "another manner") > 0.15,
    rise("another manner") > 0.05,
    rise("nothing new") < 0.05,
]
PANELS = [
    Panel(
        OVERLAP, "step", over_steps("curve.step", "compatible and new"),
        {arm: over_steps("curve.top_k_overlap", arm) for arm in ARMS},
    )
]
