"""Where a step-by-step completion goes wrong, and how to make one go wrong.

A step takes one operation, `3*7=1; `, or more at a glance, `3*7+4=5; `. It is withdrawn, right or
wrong, if the next one stands behind the marker and takes the same operations from the same place.
"""

import random
import re
from dataclasses import dataclass

from toy_tasks import ANSWER, MARKER, Problem, encode, other_digit

STEP_PATTERN = re.compile(rf"({MARKER})?(\d(?:[+*-]\d)+=\d)")


@dataclass(frozen=True)
class Step:
    """A step of a completion, such as `3*7=1`: one token a character."""

    start: int  # where it begins in the completion, in characters
    text: str
    right: str  # what it ought to be, with fewer operations if it takes more than are left
    place: int  # operations done before it
    end: int  # and with it
    redoes: bool  # behind the marker, it takes the place of the step before it

    @property
    def wrong(self) -> int | None:
        """Index of its first wrong character, or None."""
        pairs = enumerate(zip(self.text, self.right.ljust(len(self.text))))
        return next((i for i, (a, b) in pairs if a != b), None)


def write_step(value: int, operators: str, digits: tuple[int, ...], result: int) -> str:
    """`3*7=1; ` or, of two operations, a glance `3*7+4=5; `."""
    return f"{Problem((value, *digits), operators).text}={result}; "


def right_step(problem: Problem, place: int, operations: int) -> str:
    """The step that takes so many operations from a place, or all that are left; empty if none."""
    end = min(place + operations, len(problem.operators))
    if place >= end:
        return ""
    start = (problem.digits[0], *problem.values)[place]
    part = Problem((start, *problem.digits[place + 1 : end + 1]), problem.operators[place:end])
    return f"{part.text}={problem.values[end - 1]}"


def right_steps(problem: Problem) -> list[str]:
    """The single steps of a faultless completion, such as `3*7=1`."""
    return [right_step(problem, place, 1) for place in range(len(problem.operators))]


def steps_of(problem: Problem, completion: str) -> list[Step]:
    """The steps of a completion, as far as the first wrong one that is not withdrawn."""
    steps, place = [], 0
    for found in STEP_PATTERN.finditer(completion):
        marker, text = found.groups()
        operations, last = len(text) // 2 - 1, steps[-1] if steps else None
        again = right_step(problem, last.place, operations) if marker and last else ""
        redoes = again[:-1] == text[:-1]
        if redoes:
            place = last.place
        elif last and last.wrong is not None:
            break  # the author went on from a wrong value
        right = right_step(problem, place, operations)
        steps.append(Step(found.start(2), text, right, place, place + operations, redoes))
        place += operations
    return steps


def first_wrong_step(problem: Problem, completion: str) -> int | None:
    """Index in `encode(completion)` of the first wrong token of a step that stands, or None.

    Wrong may be the result, an operand, the operator, or an operation too many. The answer is no
    step.

    >>> first_wrong_step(Problem.parse("3*7+4"), "3*7+4=2; wait 3*7=1; 1+4=5; answer 5")
    >>> first_wrong_step(Problem.parse("3*7+4"), "3*7=8; 8+4=2; answer 2")
    4
    """
    steps = steps_of(problem, completion)
    if not steps or steps[-1].wrong is None:  # one before the last is withdrawn if it is wrong
        return None
    return len(encode(completion[: steps[-1].start])) + steps[-1].wrong


def leaves_out(problem: Problem, completion: str) -> bool:
    """Whether the first fault of the steps is that an operation is missing.

    The next one stands in its place, or the steps end before the problem does.

    >>> leaves_out(Problem.parse("3*7+4-8"), "3*7=1; 1-8=3; answer 3")
    True
    >>> leaves_out(Problem.parse("3*7+4-8"), "3*7=1; 1+4=6; 6-8=8; answer 8")
    False
    """
    steps = steps_of(problem, completion)
    if not steps:
        return False
    last = steps[-1]
    if last.wrong is None:
        return last.end < len(problem.operators)
    following = right_step(problem, last.place + 1, 1)[1:3]  # such as -8
    return 0 < last.wrong < 3 and last.text[1:3] == following


def is_faultless(problem: Problem, completion: str, *, checked: bool = False) -> bool:
    """True if the completion is right steps that do the whole problem, and the right answer.

    checked: it may also have steps, right or wrong, that are withdrawn.
    """
    steps = steps_of(problem, completion)
    if not steps or steps[-1].wrong is not None or steps[-1].end < len(problem.operators):
        return False
    if any(step.redoes for step in steps) and not checked:
        return False
    written = MARKER * completion.startswith(MARKER)
    written += "".join(f"{MARKER * step.redoes}{step.text}; " for step in steps)
    return completion == f"{written}{ANSWER}{problem.values[-1]}"


def worked_from(problem: Problem, place: int, value: int) -> str:
    """Single steps from a value at a place to the end, and the answer that they give."""
    digits, operators = (value, *problem.digits[place + 1 :]), problem.operators[place:]
    rest = Problem(digits, operators)
    text = "".join(f"{step}; " for step in right_steps(rest))
    return f"{text}{ANSWER}{(value, *rest.values)[-1]}"


def force_wrong_step(problem: Problem, completion: str, rng: random.Random) -> str | None:
    """A completion with the result of a single step wrong and all that follows worked from it.

    The step is drawn from the single ones of a faultless completion; up to its result every token
    stays as it was. None if there is none.
    """
    singles = [s for s in steps_of(problem, completion) if s.end == s.place + 1]
    if not singles:
        return None
    step = rng.choice(singles)
    result = step.start + len(step.text) - 1
    wrong = other_digit(rng, int(step.right[-1]))
    return f"{completion[:result]}{wrong}; {worked_from(problem, step.end, wrong)}"


def force_glance(problem: Problem, right: bool, rng: random.Random) -> str:
    """The marker and a glance over the first two operations, `wait 3*7+4=5; `: right or wrong."""
    part = Problem(problem.digits[:3], problem.operators[:2])
    result = part.values[1] if right else other_digit(rng, part.values[1])
    return f"{MARKER}{part.text}={result}; "
