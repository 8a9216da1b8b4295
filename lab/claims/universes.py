"""The universes that every claim is tried in: what a paper could have chosen differently.

Eight, the full grid of two learning rates, two numbers of steps and two base models. They were
declared before any run, for all claims alike. The number of a universe is its seed.
"""

import dataclasses
import itertools
from dataclasses import dataclass

import lab.extra_losses  # noqa: F401 (importing it adds its rows to the table of methods)
from lab.runs import Flags
from minisd import METHODS
from toy_tasks import Toy

RATES = {"half": 0.5, "twice": 2.0}  # times the row's own best
STEPS = (60, 120)
BASES = {"full": 1.0, "70 %": 0.7}  # of the steps of pretraining


@dataclass(frozen=True)
class Universe:
    number: int
    learning_rate: str
    steps: int
    base: str

    @property
    def words(self) -> str:
        return f"{self.learning_rate} the learning rate, {self.steps} steps, {self.base} base"

    def measured(self, flags: Flags) -> Flags:
        """The flags of a measure in this universe: its base model and its seed."""
        found = flags | {"--seed": str(self.number)}
        if self.base != "full":
            steps = float(flags.get("--pretrain_steps") or Toy.pretrain_steps)
            found["--pretrain_steps"] = str(max(1, round(BASES[self.base] * steps)))
        return found

    def trained(self, flags: Flags) -> Flags:
        """The flags of a training run in this universe.

        A learning rate that the flags name takes the place of the row's; steps that they name stay.
        """
        own = flags.get("--learning_rate") or own_rate(flags["--method"])
        rate = f"{RATES[self.learning_rate] * float(own):g}"
        return self.measured({"--steps": str(self.steps), **flags, "--learning_rate": rate})


UNIVERSES = [
    Universe(n, *cell) for n, cell in enumerate(itertools.product(RATES, STEPS, BASES))
]
FACTORS = {"learning_rate": "the learning rate", "steps": "the steps", "base": "the base model"}


def own_rate(row: str) -> float:
    """The learning rate that suits a row of the method table best."""
    if row not in METHODS:
        raise ValueError(f"--method: {row!r}; allowed: {', '.join(METHODS)}")
    return METHODS[row].learning_rate


def as_dict(universe: Universe) -> dict:
    """Number and settings of a universe, as claims.json has them."""
    settings = dataclasses.asdict(universe)
    return {"universe": settings.pop("number"), **settings}
