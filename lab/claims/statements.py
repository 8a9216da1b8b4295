"""Quantities of the runs of one seed, and what a claim predicts of them.

change("fresh.accuracy", "sdpo") < -0.1
value("fresh.accuracy", "live") - value("fresh.accuracy", "frozen") < -0.05
Quantity("what it is, in words", lambda runs: ...) > 0
"""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Runs = dict[str, dict[str, Any]]  # of one seed: the numbers of every arm, by name


@dataclass(frozen=True)
class Statement:
    """One number per seed, and the bound that it is predicted to lie above or below.

    none: what the number would be without any effect; only beyond that is it the opposite.
    """

    words: str
    value: Callable[[Runs], float]
    above: float | None = None
    below: float | None = None
    none: float = 0.0

    def __bool__(self):  # as Python asks for in -0.05 < q < 0.05, which would forget the first
        raise TypeError(f"{self.words}: a statement has one bound; write two statements")


@dataclass(frozen=True)
class Quantity:
    """A number of one seed's runs. `<` and `>` make a statement of it; + - and n * combine.

    terms: coefficients and arms, for the words of a combination; none: see `Statement`.
    """

    what: str
    value: Callable[[Runs], float]
    terms: tuple[tuple[float, str], ...] = ()
    none: float = 0.0

    @property
    def words(self) -> str:
        if not self.terms:
            return self.what
        if len(self.terms) == 1 and self.terms[0][0] == 1:
            return f"{self.what}: {self.terms[0][1]}"
        # Names of arms may have commas: quoted, so that a reader can tell them apart.
        parts = [
            f"{'-' if n < 0 else '+'} {'' if abs(n) == 1 else f'{abs(n):g} * '}'{arm}'"
            for n, arm in self.terms
        ]
        return f"{self.what}: {' '.join(parts).removeprefix('+ ')}"

    def __add__(self, other: "Quantity") -> "Quantity":
        return self.joined("+", other, other)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return self.joined("-", other, -1 * other)

    def joined(self, sign: str, other: "Quantity", signed: "Quantity") -> "Quantity":
        """The sum of this and the signed other; in words, of arms if both are the same of arms."""
        same = self.terms and other.terms and self.what == other.what
        return Quantity(
            self.what if same else f"({self.words}) {sign} ({other.words})",
            lambda runs: self.value(runs) + signed.value(runs),
            self.terms + signed.terms if same else (),
        )

    def __rmul__(self, n: float) -> "Quantity":
        terms = tuple((n * k, arm) for k, arm in self.terms)
        what = self.what if terms else f"{n:g} * {self.what}"
        return Quantity(what, lambda runs: n * self.value(runs), terms)

    def __lt__(self, bound: float) -> Statement:
        return Statement(self.words, self.value, below=float(bound), none=self.none)

    def __gt__(self, bound: float) -> Statement:
        return Statement(self.words, self.value, above=float(bound), none=self.none)


def value(name: str, arm: str, words: str = "") -> Quantity:
    """A number of an arm, such as fresh.accuracy: after training where there is a before."""
    return Quantity(words or in_words(name), lambda runs: number(runs, name, arm), ((1, arm),))


def change(name: str, arm: str) -> Quantity:
    """How much training has changed a number of an arm."""
    what = f"change of {in_words(name)}"
    return Quantity(what, lambda runs: changed(runs, name, arm), ((1, arm),))


def mean_reward(arm: str) -> Quantity:
    """The mean reward of the training batches that a run has logged."""
    return value("mean reward", arm, "mean reward of the training batches")


def in_words(name: str) -> str:
    """fresh.accuracy as `accuracy (fresh problems)`; other names are words."""
    found = re.fullmatch(r"(train|fresh|longer|new_operators)\.(\w+)", name)
    return f"{found[2]} ({found[1].replace('_', ' ')} problems)" if found else name


def number(runs: Runs, name: str, arm: str) -> float:
    """A number of an arm; nan where it was not measured, as in a run that failed."""
    found = runs[arm].get(f"after.{name}", runs[arm].get(name))
    return math.nan if found is None else found


def changed(runs: Runs, name: str, arm: str) -> float:
    """The number after training minus before."""
    return number(runs, name, arm) - number(runs, f"before.{name}", arm)


def at(runs: Runs, arm: str, name: str, *path) -> float:
    """A number inside a list or dict that an arm has measured; nan where there was none."""
    numbers = runs[arm]
    try:
        found = functools.reduce(operator.getitem, path, numbers[name])
    except (KeyError, IndexError, TypeError):
        found = None
    return math.nan if found is None else found


@dataclass(frozen=True)
class Panel:
    """Curves in a claim's picture: each gives one y for each x, seed by seed.

    joined: whether a line leads from one x to the next, as it should where x has an order.
    """

    title: str
    x_label: str
    x: list | Callable[[Runs], list]
    curves: dict[str, Callable[[Runs], list[float]]]
    joined: bool = True


def over_arms(name: str, arms: Iterable[str]) -> Callable[[Runs], list[float]]:
    """A curve: the same number in several arms."""
    arms = list(arms)
    return lambda runs: [number(runs, name, arm) for arm in arms]


def over_steps(name: str, arm: str) -> Callable[[Runs], list[float]]:
    """A curve that an arm has measured itself."""
    return lambda runs: runs[arm].get(name, [])
