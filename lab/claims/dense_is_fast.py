"""The dense signal of self-distillation learns from fewer completions than rewards do.

Source: Huebotter et al. 2601.20802; a post of April 2026 (second-hand).

Published: with feedback shown, the final accuracy of GRPO after a quarter of its completions
(LCBv6). The post: sft dense and biased, rewards sparse and unbiased, self-distillation dense and
unbiased; neither signal nor bias was measured.

Predicted: With feedback shown self-distillation has a higher mean reward over the training batches
than GRPO, by 2 points or more; the same teacher's signal as one number per completion, as sparse as
a reward, has not, or by less than half as much. The lead is small: both first learn the same, not
to answer at once. Under the solution the dense signal is the slower one, since it teaches another
manner first. The gradient of a batch has the higher signal-to-noise ratio, and is not unbiased:
under the solution its cosine to the gradient of the reward is lower than GRPO's by 0.3 or more,
with feedback higher than under the solution.

Found: There is no lead to speak of: .010 [-.010, .030] of mean reward. At twice the learning rate
it is there in three of four, at half it is not: a method that is limited by its rate gains from a
higher one. As one number per completion the same signal is slower than rewards, -.021 [-.036,
-.006]. As predicted the dense signal has the higher signal-to-noise ratio, and under the solution
it points against the reward's gradient.
"""

from lab.claims.arms import CONTEXTS, GRPO, SDPO, Measure
from lab.claims.granularity import AVERAGED
from lab.claims.statements import Panel, Quantity, at, mean_reward, over_steps, room

ARMS = {
    "sdpo, feedback": CONTEXTS["feedback"],
    "one number, feedback": f"{CONTEXTS['feedback']} {AVERAGED}",
    "grpo": GRPO,
}
ONCE = {"sdpo, solution": SDPO, "measured": Measure("signal")}
METHODS = {  # name: as the measure has it
    "sft": "sft", "grpo": "grpo", "sdpo, solution": "sdpo", "sdpo, feedback": "sdpo_feedback",
}


def lead(arm: str) -> Quantity:
    return mean_reward(arm) - mean_reward("grpo")


def of_gradients(reading: str, words: str, method: str, other: str) -> Quantity:
    """A reading of the first gradients, one method minus another."""
    a, b = (f"{reading}.{METHODS[name]}" for name in (method, other))
    words = f"{words}: '{method}' - '{other}'"
    return Quantity(words, lambda runs: at(runs, "measured", a) - at(runs, "measured", b))


def of_methods(reading: str):
    return lambda runs: [at(runs, "measured", f"{reading}.{m}") for m in METHODS.values()]


RATIO, COSINE = "signal-to-noise ratio of a batch's gradient", "cosine to the reward's gradient"
EFFECT = lead("sdpo, feedback") > 0.02
CONTROL = lead("one number, feedback")
TESTABLE = [
    room("train.accuracy", "sdpo, feedback", ceiling=1),
    room("train.accuracy", "grpo", ceiling=1),
]
ALSO = [
    lead("sdpo, solution") < 0,
    of_gradients("snr", RATIO, "sdpo, feedback", "grpo") > 0,
    of_gradients("cosine", COSINE, "sdpo, solution", "grpo") < -0.3,
    of_gradients("cosine", COSINE, "sdpo, feedback", "sdpo, solution") > 0,
]
PANELS = [
    Panel(
        "reward of the training batches (fraction)", "completions sampled",
        over_steps("curve.generations", "grpo"),
        {arm: over_steps("curve.reward", arm) for arm in (*ARMS, "sdpo, solution")},
    ),
    Panel(
        f"{COSINE} (first universe)", "whose first gradient", list(METHODS),
        {COSINE: of_methods("cosine")}, joined=False,
    ),
]
