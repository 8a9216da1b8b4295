"""The token-level gradient is biased, and nothing is gained by removing the bias.

Source: Fu et al. 2603.25562; Huebotter et al. 2601.20802 v2, appendix A.1.

Published: the token-level gradient of the sequence KL leaves out what a token does to later ones
and is biased, the sequence-level one unbiased with more variance (O(T^4) against O(T^2)). Huebotter
et al. measured no gain from it, Fu et al. none from longer credit.

Predicted: A student trained at sequence level is as often right on fresh problems as one trained at
token level, to within 5 points. That the measure could show a difference is shown by an estimator
with a far larger bias, one advantage for all tokens of a completion: it ends more than 5 points
away (above, since it learns less of what harms). On enumerated completions the token level is off
the exact gradient by more than a tenth of its norm, and the unbiased estimator is noisier.

Found: The opposite: a student trained at sequence level ends .23 [.14, .31] higher on fresh
problems, in seven of eight by more than .19. Removing the bias changes a lot here, since what later
tokens lose when doubt is dropped now counts against dropping it. The estimator with one advantage
for a whole completion, more biased still, ends .47 [.42, .51] higher: it learns less of what harms.
Bias and noise are as predicted: the token level is off the exact gradient by .44 of its norm, the
sequence level is 2.6 times as noisy.
"""

from lab.claims.arms import Measure
from lab.claims.statements import Panel, Quantity, Runs, at, over_steps, room, value

SEQUENCE_KL = "--method sequence_kl"
ARMS = {
    "token level": f"{SEQUENCE_KL} --discount 0",
    "sequence level": SEQUENCE_KL,
    "averaged": f"{SEQUENCE_KL} --credit averaged",
}
ONCE = {"measured": Measure("estimators")}


def lead(arm: str) -> Quantity:
    return value("fresh.accuracy", arm) - value("fresh.accuracy", "token level")


def bias(estimator: str, words: str) -> Quantity:
    name = f"bias.{estimator}"
    return value(name, "measured", f"bias / norm of the exact gradient, {words}")


def noise_ratio(runs: Runs) -> float:
    std = {level: at(runs, "measured", f"std.{level}_level") for level in ("sequence", "token")}
    return std["sequence"] / std["token"]


EFFECT = lead("sequence level").within(0.05)
CONTROL = lead("averaged")
TESTABLE = [room("fresh.accuracy", "token level", floor=0.1, ceiling=1)]
ALSO = [
    bias("token_level", "token level") > 0.1,
    bias("averaged_advantage", "averaged") - bias("token_level", "token level") > 0.2,
    Quantity("noise of one sample, sequence level / token level", noise_ratio) > 1,
]
PANELS = [
    Panel(
        "expected cosine to the exact gradient (first universe)",
        "completions per estimate, 4 to the power of", list(range(6)),
        {
            "token level": over_steps("cosine.token_level", "measured"),
            "sequence level": over_steps("cosine.sequence_level", "measured"),
            "sampled token": over_steps("cosine.sampled_token", "measured"),
            "averaged advantage": over_steps("cosine.averaged_advantage", "measured"),
        },
    )
]
