"""A claim as its file says it: texts from the docstring, the experiment from the names below it."""

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType

import lab.claims
from lab.claims.arms import Arm, Measure
from lab.claims.statements import Panel, Quantity, Runs, Statement

KEYS = ("Source", "Published", "Predicted")  # paragraphs that a claim must have


@dataclass(frozen=True)
class Claim:
    """What was published, predicted before the runs and found in them, and the experiment.

    control: the effect's quantity with the published cause removed. testable: what must hold for
    the experiment to say anything. once, also: looked at in universe 0 alone, without a verdict.
    found: written after the runs.
    """

    name: str
    title: str
    source: str
    published: str
    predicted: str
    found: str
    arms: dict[str, Arm]
    effect: Statement
    control: Quantity
    testable: list[Statement]
    once: dict[str, Arm]
    also: list[Statement]
    panels: list[Panel]

    @property
    def all_arms(self) -> dict[str, Arm]:
        return self.arms | self.once

    def arms_of(self, value) -> list[str]:
        """The names of the arms whose numbers value(runs) reads."""
        runs = Noted({arm: {} for arm in self.all_arms})
        value(runs)
        return [arm for arm in self.all_arms if arm in runs.read]

    @property
    def only_measures(self) -> bool:
        """Whether nothing is trained for its verdict, so that only seed and base model vary."""
        return all(isinstance(arm, Measure) for arm in self.arms.values())


class Noted(dict):
    """Runs that note which arms are looked at."""

    def __init__(self, runs: Runs):
        super().__init__(runs)
        self.read: set[str] = set()

    def __getitem__(self, arm: str):
        self.read.add(arm)
        return super().__getitem__(arm)


def modules() -> dict[str, ModuleType]:
    """The modules of this package by name, without the command itself."""
    names = [m.name for m in pkgutil.iter_modules(lab.claims.__path__) if m.name != "__main__"]
    return {name: importlib.import_module(f"lab.claims.{name}") for name in names}


def all_claims() -> dict[str, Claim]:
    """Every module of this package that has an EFFECT, by name."""
    return {n: claim_of(n, module) for n, module in modules().items() if hasattr(module, "EFFECT")}


def claim_of(name: str, module: ModuleType) -> Claim:
    """The claim in a module. Raises ValueError that names the file and what it lacks."""
    paragraphs = [" ".join(p.split()) for p in (module.__doc__ or "").split("\n\n")]
    texts = dict(p.split(": ", 1) for p in paragraphs[1:] if ": " in p)
    lacking = [key for key in KEYS if not texts.get(key)]
    lacking += [key for key in ("ARMS", "EFFECT", "CONTROL") if not hasattr(module, key)]
    if lacking:
        raise ValueError(f"lab/claims/{name}.py: lacks {', '.join(lacking)}")
    effect: Statement = module.EFFECT
    if (effect.above or 0) < 0 or (effect.below or 0) > 0:
        words = f"EFFECT {effect.words} {effect.bound}; allowed: a bound on the side of the effect"
        raise ValueError(f"lab/claims/{name}.py: {words}, or .within(margin)")
    once = getattr(module, "ONCE", {})
    if twice := module.ARMS.keys() & once.keys():
        raise ValueError(f"lab/claims/{name}.py: {', '.join(twice)} in ARMS and in ONCE")
    if "base" in module.ARMS | once:
        raise ValueError(f"lab/claims/{name}.py: an arm is called base, as the base model is")
    return Claim(
        name=name,
        title=paragraphs[0],
        source=texts["Source"].removesuffix("."),
        published=texts["Published"].removesuffix("."),
        predicted=texts["Predicted"],
        found=texts.get("Found", ""),
        arms=module.ARMS,
        effect=effect,
        control=module.CONTROL,
        testable=getattr(module, "TESTABLE", []),
        once=once,
        also=getattr(module, "ALSO", []),
        panels=getattr(module, "PANELS", []),
    )
