"""Quantities of the runs of one universe, and what a claim predicts of them.

change("fresh.accuracy", "sdpo") < -0.1
value("fresh.accuracy", "live") - value("fresh.accuracy", "frozen") < -0.05
change("fresh.accuracy", "unguided").within(0.05)
room("fresh.accuracy", "sdpo", floor=0.1)
Quantity("ratio of x, minus 1", lambda runs: at(runs, "measured", "x", 0) - 1) < -0.5
"""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Runs = dict[str, dict[str, Any]]  # of one universe: the numbers of every arm, by name
ROOM = 0.25  # between a base model and the floor or ceiling of what is to move


@dataclass(frozen=True)
class Statement:
    """One number per universe, and what is predicted of it: above, below, or within +- a margin."""

    words: str
    value: Callable[[Runs], float]
    above: float | None = None
    below: float | None = None
    within: float | None = None

    def __post_init__(self):
        if sum(b is not None for b in (self.above, self.below, self.within)) != 1:
            raise ValueError(f"{self.words}: allowed: exactly one of above, below, within")

    def __bool__(self):  # as Python asks for in -0.05 < q < 0.05, which would forget the first
        raise TypeError(f"{self.words}: a statement has one bound; write .within(0.05)")

    @property
    def bound(self) -> str:
        """What is predicted, such as < -0.1."""
        if self.within is not None:
            return f"within \N{PLUS-MINUS SIGN}{self.within:g}"
        return f"> {self.above:g}" if self.below is None else f"< {self.below:g}"

    def holds(self, x: float) -> bool:
        """Whether a number is as predicted; nan never is."""
        if self.within is not None:
            return abs(x) < self.within
        return x > self.above if self.below is None else x < self.below


@dataclass(frozen=True)
class Quantity:
    """A number of one universe's runs. `<`, `>` and `within` make a statement; + - n * combine.

    terms: coefficients and arms, for the words of a combination.
    """

    what: str
    value: Callable[[Runs], float]
    terms: tuple[tuple[float, str], ...] = ()

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

    def __sub__(self, other: "Quantity | float") -> "Quantity":
        if isinstance(other, Quantity):
            return self.joined("-", other, -1 * other)
        return Quantity(f"({self.words}) - {other:g}", lambda runs: self.value(runs) - other)

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
        what = self.what if terms else f"{n:g} * ({self.what})"
        return Quantity(what, lambda runs: n * self.value(runs), terms)

    def __lt__(self, bound: float) -> Statement:
        return Statement(self.words, self.value, below=float(bound))

    def __gt__(self, bound: float) -> Statement:
        return Statement(self.words, self.value, above=float(bound))

    def within(self, margin: float) -> Statement:
        """No effect, up to this margin on either side."""
        return Statement(self.words, self.value, within=float(margin))


def value(name: str, arm: str, words: str = "") -> Quantity:
    """A number of an arm, such as fresh.accuracy: after training where there is a before."""
    return Quantity(words or in_words(name), lambda runs: number(runs, name, arm), ((1, arm),))


def change(name: str, arm: str) -> Quantity:
    """How much training has changed a number of an arm."""
    what = f"change of {in_words(name)}"
    return Quantity(what, lambda runs: changed(runs, name, arm), ((1, arm),))


def mean_reward(arm: str) -> Quantity:
    """The mean reward of the training batches that a run has logged."""
    return value("mean reward", arm, "mean reward of the training batches (fraction)")


def room(
    name: str, arm: str, *, floor: float | None = None, ceiling: float | None = None,
    least: float = ROOM,
) -> Statement:
    """The value before training is more than `least` above the floor, below the ceiling, or both.

    For a claim's TESTABLE: what cannot move shows nothing.
    """
    limits = [(-1, ceiling, "ceiling")] if ceiling is not None else []
    limits += [(1, floor, "floor")] if floor is not None else []

    def distance(runs: Runs) -> float:
        before = number(runs, f"before.{name}", arm)
        return min(sign * (before - limit) for sign, limit, _ in limits)

    ends = " and ".join(f"{end} {limit:g}" for _, limit, end in reversed(limits))
    words = f"room of {in_words(name)} before training to its {ends}: {arm}"
    return Statement(words, distance, above=least)


WORDS = {  # a measure -> what it is, and its unit
    "accuracy": ("accuracy", "fraction"),
    "markers": ("markers", "per completion"),
    "direct": ("share of direct answers", "fraction"),
    "tokens": ("completion length", "tokens"),
    "remark": ("share with the closing remark", "fraction"),
}
SPLITS = {
    "train": " on the pool", "fresh": " on fresh problems", "longer": " on longer problems",
    "new_operators": " on new operators", "teacher": " of the teacher, on the pool",
}


def in_words(name: str) -> str:
    """fresh.accuracy as `accuracy on fresh problems (fraction)`; other names are words."""
    found = re.fullmatch(r"(before\.)?(\w+)\.(\w+)", name)
    if not found or found[2] not in SPLITS:
        return name
    what, unit = WORDS.get(found[3], (found[3].replace("_", " "), ""))
    before = " before training" if found[1] else ""
    return f"{what}{SPLITS[found[2]]}{before}{unit and f' ({unit})'}"


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
    """Curves in a claim's picture: each gives one y for each x, universe by universe.

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
    """A curve that an arm has measured itself, such as curve.reward."""
    return lambda runs: runs[arm].get(name, [])
