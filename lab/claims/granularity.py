"""The finer the signal of the same teacher, the faster the student learns.

Source: Huebotter et al. 2601.20802.

Published: accuracy on LCBv6, with feedback shown: full vocabulary > sampled token > one advantage
per completion > GRPO.

Predicted: With feedback shown the whole vocabulary leads one advantage per completion by 2 points
or more of the mean reward of the training batches. Under a teacher that has nothing to tell (a
larger base model of the same documents, without a hint) there is no credit to assign, only noise to
bear, and less than half of that lead is left. The sampled token lies between. Against the published
order GRPO is not last: at a rate of its own it learns as fast not to guess.

Found: With feedback shown the whole vocabulary leads one advantage per completion by .031 [.020,
.042] of mean reward, as predicted. But it leads by .026 [.002, .050] under a teacher that has
nothing to tell as well, at twice the learning rate by as much or more: the finer signal drifts
less, it does not assign credit better. The sampled token lies .005 behind the whole vocabulary, and
GRPO is not last.
"""

from lab.claims.arms import CONTEXTS, GRPO, LARGER
from lab.claims.statements import Panel, Quantity, mean_reward, over_steps, room

AVERAGED, SAMPLED = "--credit averaged", "--credit sampled"
ARMS = {
    "full": CONTEXTS["feedback"],
    "averaged": f"{CONTEXTS['feedback']} {AVERAGED}",
    "full, nothing to tell": LARGER,
    "averaged, nothing to tell": f"{LARGER} {AVERAGED}",
}
ONCE = {"sampled": f"{CONTEXTS['feedback']} {SAMPLED}", "grpo": GRPO}


def lead(arm: str, other: str) -> Quantity:
    return mean_reward(arm) - mean_reward(other)


EFFECT = lead("full", "averaged") > 0.02
CONTROL = lead("full, nothing to tell", "averaged, nothing to tell")
TESTABLE = [room("train.accuracy", "full", ceiling=1)]
ALSO = [
    lead("full", "sampled") > 0,
    lead("sampled", "averaged") > 0,
    lead("grpo", "averaged") > 0,
]
PANELS = [
    Panel(
        "reward of the training batches (fraction)", "completions sampled",
        over_steps("curve.generations", "full"),
        {arm: over_steps("curve.reward", arm) for arm in ("full", "averaged", *ONCE)},
    )
]
