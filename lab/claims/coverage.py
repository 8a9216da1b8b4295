"""Self-distillation does well on few training problems and badly on many.

Source: Kim et al. 2603.24472.

Published: fast in its domain, with completions an eighth as long, on pools of up to 128 problems;
score hurt at 512; out of domain below the base model throughout, and more so the smaller the pool.

Predicted: On what it trains on, self-distillation gains on 8 problems and loses on endless ones:
the change of accuracy differs by at least 20 points, about 50. Memory alone is not the reason:
GRPO, which suppresses nothing and sees the same problems, gains on both, with less than half of
that difference. Where the markers have no function, endless problems do no harm. Outside of the
pool accuracy falls whatever its size, and the smaller the pool, the further.

Found: As predicted, and larger: on 8 problems self-distillation gains, on endless ones it loses,
.58 [.52, .64] apart. GRPO sees the same problems and differs by .04 [-.02, .10]. Outside of the
pool accuracy falls either way, and further with the smaller pool. Where markers have no function
endless problems do no harm.
"""

from lab.claims.arms import ENDLESS, GRPO, NO_FUNCTION, SDPO
from lab.claims.statements import Panel, Quantity, change, over_arms, room, value

METHODS = {"sdpo": SDPO, "grpo": GRPO}
POOLS = {
    "8": "--train_problems 8", "64": "", "512": "--train_problems 512", "endless": ENDLESS,
}
EVERY = {f"{m}, {p}": f"{METHODS[m]} {POOLS[p]}".strip() for m in METHODS for p in POOLS}
ENDS = ("8", "endless")
ARMS = {name: flags for name, flags in EVERY.items() if name.endswith(ENDS)}
ONCE = {
    **{name: flags for name, flags in EVERY.items() if name not in ARMS},
    "sdpo, endless, no function": f"{SDPO} {ENDLESS} {NO_FUNCTION}",
}


def turn(method: str) -> Quantity:
    """What training changes on its own problems: few of them against endless ones."""
    few, many = (change("train.accuracy", f"{method}, {pool}") for pool in ENDS)
    return few - many


EFFECT = turn("sdpo") > 0.2
CONTROL = turn("grpo")
TESTABLE = [room("train.accuracy", "sdpo, endless", floor=0.1)]
ALSO = [
    change("train.accuracy", "sdpo, 8") > 0.1,
    change("train.accuracy", "sdpo, endless") < -0.1,
    change("train.accuracy", "sdpo, endless, no function") > -0.05,
    change("new_operators.accuracy", "sdpo, 8") < -0.1,
    change("new_operators.accuracy", "sdpo, endless") < -0.1,
    value("new_operators.accuracy", "sdpo, 8") - value("new_operators.accuracy", "sdpo, endless")
    < 0,
]
PANELS = [
    Panel(
        f"accuracy on {words} (fraction)", "problems in the pool", list(POOLS),
        {m: over_arms(f"{split}.accuracy", [f"{m}, {p}" for p in POOLS]) for m in METHODS},
    )
    for split, words in (("train", "the pool"), ("new_operators", "new operators"))
]
