"""A style that a context asks for on every problem is learnt as its teacher has it.

Source: Zhu et al. 2605.11182.

Published: system prompts, characters and alignment preferences are internalised, faster than by
GRPO and PPO; reasoning is compressed without loss; no table.

Predicted: A context that tells nothing of its problem, behind which authors are brief and sure,
takes the student at least half of the way to its teacher's accuracy on fresh problems. The
solution, behind which they are as sure, does not: its teacher is right far more often, and the
student ends farther from it than it began. But the teacher of the shared style is right less often
than the student was: brevity without a hint costs what doubt was for, so that what is learnt
faithfully is a loss. A teacher that always writes every step is followed as well, to a gain.

Found: As predicted, and fully: a context that tells nothing, behind which authors are brief and
sure, takes the student all of the way to its teacher (1.03 [.93, 1.12]); the solution takes it as
far in the other direction (-1.2). What is learnt faithfully is a loss, -.27 of accuracy in the
first universe. A teacher that writes every step is followed as well, to a gain of .29.
"""

import math

from lab.claims.arms import NOTHING_TOLD, OTHER_STYLE, SDPO
from lab.claims.statements import Quantity, Runs, change, changed, number

ARMS = {"brief and sure on every problem": NOTHING_TOLD, "the solution of each": SDPO}
ONCE = {"every step, by another model": OTHER_STYLE}


def lead(runs: Runs, arm: str) -> float:
    """Of the teacher before training."""
    teacher = number(runs, "before.teacher.accuracy", arm)
    return teacher - number(runs, "before.fresh.accuracy", arm)


def way(arm: str) -> Quantity:
    """Change of the student's accuracy over what was missing to that of its teacher."""
    def measured(runs: Runs) -> float:
        return changed(runs, "fresh.accuracy", arm) / (lead(runs, arm) or math.nan)

    words = "share of the way to the teacher's accuracy, fresh problems"
    return Quantity(words, measured, ((1, arm),))


def distance(arm: str) -> Quantity:
    words = "accuracy of the teacher and of the student before training, distance (fraction)"
    return Quantity(words, lambda runs: abs(lead(runs, arm)), ((1, arm),))


EFFECT = way("brief and sure on every problem") > 0.5
CONTROL = way("the solution of each")
TESTABLE = [distance(arm) > 0.1 for arm in ARMS]
ALSO = [
    change("fresh.markers", "brief and sure on every problem") < -0.3,
    change("fresh.accuracy", "brief and sure on every problem") < -0.1,
    way("every step, by another model") > 0.5,
    change("fresh.accuracy", "every step, by another model") > 0.1,
]
