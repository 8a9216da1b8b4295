"""The finer the signal, the faster the student learns.

Source: Huebotter et al. 2601.20802.

Published: accuracy on LCBv6: full vocabulary > sampled token > averaged > GRPO.

Predicted: The finer the signal, the faster the pool is learned (mean reward of the training
batches): full vocabulary > sampled token > one advantage per completion > GRPO. Under a context
that tells nothing granularity does not matter.

Found (commit dce4e41, first edition): not reproduced, 2 of 4 statements hold. The whole
vocabulary beats the sampled token and the average. GRPO beats these two, and in four of five
seeds the whole vocabulary as well: it keeps the steps that make the base model right; and the
lead of the whole vocabulary remains under a context that tells nothing, so that it is one of less
noise, not of better credit.
"""

from lab.claims.arms import FROZEN, GRPO
from lab.claims.statements import Panel, mean_reward, over_steps

ARMS = {
    "full": FROZEN,
    "sampled": f"{FROZEN} --credit sampled",
    "averaged": f"{FROZEN} --credit averaged",
    "grpo": GRPO,
    "full, other problem": f"{FROZEN} --context other_problem",
    "averaged, other problem": f"{FROZEN} --credit averaged --context other_problem",
}
STATEMENTS = [
    mean_reward("full") - mean_reward("averaged") > 0,
    mean_reward("full") - mean_reward("sampled") > 0,
    mean_reward("sampled") - mean_reward("averaged") > 0,
    mean_reward("averaged") - mean_reward("grpo") > 0,
]
CONTROL = mean_reward("full, other problem") - mean_reward("averaged, other problem")
SHOWN = ["train.accuracy", "fresh.accuracy"]
PANELS = [
    Panel(
        "reward of the training batches (fraction)", "completions sampled",
        over_steps("curve.generations", "full"),
        {
            arm: over_steps("curve.reward", arm) for arm in ("full", "sampled", "averaged", "grpo")
        },
    )
]
