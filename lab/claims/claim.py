"""A claim as its file says it: texts from the docstring, the experiment from the names below it."""

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType

import lab.claims
from lab.claims.arms import Arm
from lab.claims.statements import Panel, Quantity, Statement

KEYS = ("Source", "Published", "Predicted")  # paragraphs that a claim must have


@dataclass(frozen=True)
class Claim:
    """What was published, predicted before the runs and found in them, and the experiment.

    statements: the first is the heart of the claim; control: the same quantity where the effect
    should be gone. shown: what the picture compares between arms. found: written after the runs.
    """

    name: str
    title: str
    source: str
    published: str
    predicted: str
    found: str
    arms: dict[str, Arm]
    statements: list[Statement]
    control: Quantity
    shown: list[str]
    panels: list[Panel]


def all_claims() -> dict[str, Claim]:
    """Every module of this package that has ARMS, by name."""
    found = {}
    for module in pkgutil.iter_modules(lab.claims.__path__):
        if module.name != "__main__":
            content = importlib.import_module(f"lab.claims.{module.name}")
            if hasattr(content, "ARMS"):
                found[module.name] = claim_of(module.name, content)
    return found


def claim_of(name: str, module: ModuleType) -> Claim:
    """The claim in a module. Raises ValueError that names the file and what it lacks."""
    paragraphs = [" ".join(p.split()) for p in (module.__doc__ or "").split("\n\n")]
    texts = {}
    for paragraph in paragraphs[1:]:
        key, _, text = paragraph.partition(": ")
        texts["Found" if key.startswith("Found") else key] = text
    lacking = [key for key in KEYS if not texts.get(key)]
    lacking += [key for key in ("STATEMENTS", "CONTROL") if not hasattr(module, key)]
    if lacking:
        raise ValueError(f"lab/claims/{name}.py: lacks {', '.join(lacking)}")
    return Claim(
        name=name,
        title=paragraphs[0],
        source=texts["Source"].removesuffix("."),
        published=texts["Published"].removesuffix("."),
        predicted=texts["Predicted"],
        found=texts.get("Found", ""),
        arms=module.ARMS,
        statements=module.STATEMENTS,
        control=module.CONTROL,
        shown=getattr(module, "SHOWN", ["fresh.accuracy", "fresh.markers"]),
        panels=getattr(module, "PANELS", []),
    )
