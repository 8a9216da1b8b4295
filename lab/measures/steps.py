"""Where a step-by-step completion goes wrong, and how to make one go wrong."""

import random
import re

from toy_tasks import ANSWER, MARKER, Problem, World, encode, other_digit, write_steps

STEP_PATTERN = re.compile(rf"({MARKER})?(\d[+*-]\d=\d)")


def right_steps(problem: Problem) -> list[str]:
    """The steps of a faultless completion, such as `3*7=1`: one token a character."""
    lefts = (problem.digits[0], *problem.values)
    parts = zip(lefts, problem.operators, problem.digits[1:], problem.values)
    return [f"{left}{operator}{digit}={value}" for left, operator, digit, value in parts]


def first_wrong_step(problem: Problem, completion: str) -> int | None:
    """Index in `encode(completion)` of the first wrong token of an uncorrected step, or None.

    Wrong may be the result, an operand, the operator, or a step too many. A wrong step is corrected
    if the next one stands behind the marker and is right; until then more attempts behind the
    marker may be wrong. The marker may also repeat the last right step. The answer is no step.

    >>> first_wrong_step(Problem.parse("3*7+4"), "3*7=1; 1+4=6; wait 1+4=5; answer 5")
    >>> first_wrong_step(Problem.parse("3*7+4"), "3*7=8; 8+4=2; answer 2")
    4
    """
    wanted, done, wrong = right_steps(problem), 0, None
    for found in STEP_PATTERN.finditer(completion):
        marker, step = found.groups()
        if wrong is not None and not marker:
            break  # the author went on from a wrong value
        right = wanted[done] if done < len(wanted) else " " * len(step)
        if step == right:
            done, wrong = done + 1, None
        elif wrong is None and not (marker and done and step == wanted[done - 1]):
            offset = [a == b for a, b in zip(step, right)].index(False)
            wrong = len(encode(completion[: found.start(2)])) + offset
    return wrong


def is_faultless(problem: Problem, completion: str) -> bool:
    """True if every step is restated right at the first go, and then the right answer."""
    parts = [*right_steps(problem), f"{ANSWER}{problem.values[-1]}"]
    return completion.removeprefix(MARKER) == "; ".join(parts)


def force_wrong_step(problem: Problem, completion: str, rng: random.Random) -> str:
    """A faultless completion with one result wrong and all that follows worked from it.

    The step is drawn uniformly; up to its result every token stays as it was.
    """
    steps, end = right_steps(problem), 0
    k = rng.randrange(len(steps))
    for step in steps[: k + 1]:
        end = completion.index(step, end) + len(step)
    wrong = other_digit(rng, problem.values[k])
    rest = Problem((wrong, *problem.digits[k + 2 :]), problem.operators[k + 1 :])
    text, value = write_steps(rest, World(), rng, hesitant=False, unreliable=False)
    return f"{completion[: end - 1]}{wrong}; {text}{ANSWER}{value}"
