"""Self-distillation does well on few training problems and badly on many.

Source: Kim et al. 2603.24472.

Published: fast and short on pools of up to 128 problems, score hurt at 512; worse out of domain
throughout.

Predicted: On endless problems self-distillation ends at least 10 points of fresh accuracy below
GRPO; on 8 problems it learns the pool faster and further, so that the gap turns. The smaller the
pool, the worse on fresh problems; with one type of problem the gap is smaller. Where the marker
has no function there is no such gap.

Found (commit dce4e41, first edition): reproduced, 3 of 7 statements hold. On 8 problems
self-distillation leads while it learns, by 5 points of mean reward, and GRPO ends where it ends.
With one type of problem the gap is wider, not narrower: GRPO masters the type, and answers at a
glance stay guesses for three operations.
"""

from lab.claims.arms import ENDLESS, GRPO, NO_FUNCTION, SDPO
from lab.claims.statements import Panel, mean_reward, over_arms, value

METHODS = ["sdpo", "grpo"]
POOLS = ["1", "8", "64", "512", "endless"]
ONE_OPERATOR = f"{ENDLESS} --train_operators +"
ONE_TYPE = f"{ONE_OPERATOR} --train_operations 3"

ARMS = {}
for name, method in (("sdpo", SDPO), ("grpo", GRPO)):
    ARMS |= {
        f"{name}, 1": f"{method} --train_problems 1",
        f"{name}, 8": f"{method} --train_problems 8",
        f"{name}, 64": method,
        f"{name}, 512": f"{method} --train_problems 512",
        f"{name}, endless": f"{method} {ENDLESS}",
        f"{name}, one type": f"{method} {ONE_TYPE}",
        f"{name}, one operator": f"{method} {ONE_OPERATOR}",
        f"{name}, no function": f"{method} {ENDLESS} {NO_FUNCTION}",
    }


def lead(name: str, where: str):
    """Self-distillation minus GRPO."""
    return value(name, f"sdpo, {where}") - value(name, f"grpo, {where}")


STATEMENTS = [
    lead("fresh.accuracy", "endless") < -0.1,
    mean_reward("sdpo, 8") - mean_reward("grpo, 8") > 0,
    lead("train.accuracy", "8") > 0,
    lead("train.accuracy", "endless") < 0,
    value("fresh.accuracy", "sdpo, 1") - value("fresh.accuracy", "sdpo, endless") < 0,
    lead("longer.accuracy", "endless") < 0,
    lead("fresh.accuracy", "one type") - lead("fresh.accuracy", "endless") > 0.1,
]
CONTROL = lead("fresh.accuracy", "no function")
SHOWN = []


def curves(name: str, where: list[str]) -> dict:
    return {m: over_arms(name, [f"{m}, {w}" for w in where]) for m in METHODS}


PANELS = [
    Panel(
        "accuracy on fresh problems of the same types (fraction)", "types of problem, endless",
        ["one", "one operator", "all"],
        curves("fresh.accuracy", ["one type", "one operator", "endless"]),
    )
]
for split, words in (("train", "the pool's"), ("fresh", "fresh"), ("longer", "longer")):
    title, lines = f"accuracy on {words} problems (fraction)", curves(f"{split}.accuracy", POOLS)
    PANELS.append(Panel(title, "problems in the pool", POOLS, lines))
