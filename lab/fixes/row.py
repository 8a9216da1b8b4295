"""What a row of the arena is, beside the settings of `minisd.Method`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from minisd import GPT, Method, Prompts, Teacher, Terms


@dataclass(frozen=True)
class Recipe(Method):
    """A Method with what fixes need beside; `at` gives the one that a step trains by."""

    strength: float = 0.5  # lambda, alpha, beta of the fix: how much of it there is
    fade_steps: int = 0  # the strength falls linearly to 0 in so many steps; 0: it stays
    gate: str = ""  # a row of `routing.GATES`: when the fix, or the refresh of a teacher, is on
    is_open: bool = True  # what the gate says at this step
    progress: float = 0.0  # share of the steps that are done, 0 to 1
    combine: str = ""  # a row of `targets.COMBINATIONS`, instead of the log-linear target
    sampling_context: str = ""  # the student writes with this context in its own prompt

    def at(self, step: int, steps: int, is_open: bool = True) -> "Recipe":
        """The recipe of step number `step` of `steps`, counted from 0."""
        left = max(0.0, 1 - step / self.fade_steps) if self.fade_steps else 1.0
        return replace(
            self, strength=self.strength * left, progress=step / steps, is_open=is_open)


@dataclass(frozen=True)
class Fix:
    """A row: its recipe in words and in settings, and the row that shares all but its idea.

    differs: from the paper. seen: how its formula is known: `paper`, `code`, or `notes` of third
    parties, whose exact form is unverified. is_control: printed beside a fix, and no fix itself.
    """

    family: str
    formula: str
    recipe: Recipe
    control: str = ""
    differs: str = ""
    seen: str = "notes"
    is_control: bool = False


class Noted:
    """A model whose logits are noted; the last of several gives what `combine` makes of all."""

    def __init__(self, model: GPT, notes: list[Tensor], combine: Callable | None = None):
        self.model, self.notes, self.combine, self.hidden = model, notes, combine, model.hidden

    def lm_head(self, states: Tensor) -> Tensor:
        self.notes.append(self.model.lm_head(states))
        if self.combine is None:
            return self.notes[-1]
        logits, self.notes[:] = list(self.notes), []
        return self.combine(logits)


class CombinedTeacher(Teacher):
    """A teacher whose target may be any function of its terms' logits: the row's `combine`."""

    combinations: dict[str, Callable]

    def terms(self, shown: dict[str, Prompts]) -> Terms:
        terms, name = super().terms(shown), self.method.combine
        if not name:
            return terms
        notes: list[Tensor] = []
        rule, method = self.combinations[name], self.method
        found = [(0.0, Noted(model, notes), prompts) for _, model, prompts in terms]
        last = Noted(terms[-1][1], notes, lambda logits: rule(logits, method))
        return [*found[:-1], (1.0, last, terms[-1][2])]
