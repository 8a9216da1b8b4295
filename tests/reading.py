"""A reader of completions of the toy: what their authors decided, step by step."""

import re
from dataclasses import dataclass, field

from toy_tasks import ANSWER, MARKER, REMARK, Problem

STEP = rf"(\d)((?:[+*-]\d)+)=(\d); ({MARKER})?"  # value, operations, result, is it checked
COMPLETION = rf"({MARKER})?((?:{STEP})*){ANSWER}(\d)({REMARK})?"


@dataclass
class Reading:
    """What the author of a completion of the toy did, decision by decision."""

    opens: bool  # with the marker
    answer: int
    remarks: bool  # closes with the remark of unreliable authors
    last: int | None = None  # the result of the last step; None: a direct answer
    glances: list[tuple[bool, bool]] = field(default_factory=list)  # (is it right, is it checked)
    singles: list[bool] = field(default_factory=list)  # is it right, given where it starts
    choices: int = 0  # places where a glance was possible


def read(problem: Problem, completion: str) -> Reading:
    """The decisions of an author; fails for steps that are not those of the problem, in order."""
    opens, body, *_, answer, remark = re.fullmatch(COMPLETION, completion).groups()
    found = Reading(bool(opens), int(answer), bool(remark))
    value, left, unchecked = str(problem.digits[0]), problem.text[1:], ""
    for start, operations, result, marker in re.findall(STEP, body):
        assert start == value and left.startswith(operations), completion
        right = Problem.parse(start + operations).values[-1] == int(result)
        found.choices += len(left) > 2 and not unchecked
        if len(operations) > 2:
            assert len(operations) == 4 and not unchecked, completion
            found.glances.append((right, bool(marker)))
        else:
            assert not marker, completion
            found.singles.append(right)
            unchecked = unchecked.removeprefix(operations)
        if marker:
            unchecked = operations  # both follow one by one
        else:
            value, left = result, left.removeprefix(operations)
        found.last = int(result)
    assert not unchecked and not (left and (body or opens)), completion
    return found
