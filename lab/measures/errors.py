"""The first wrong token of a completion, whether its author takes it back or not."""

from lab.measures.steps import first_wrong_step
from toy_tasks import ANSWER, Example, Problem, encode, final_answer

STEP_END = "; "


def first_wrong_token(example: Example, completion: str) -> int | None:
    """Index in `encode(completion)` of the first wrong token of a step, else of the answer.

    None: nothing is wrong, or nothing can be told. A step counts even if it is checked and put
    right later: when it has just been written, nobody has done so yet.

    >>> first_wrong_token(Example(Problem.parse("3*7+4")), "3*7+4=2; wait 3*7=1; 1+4=5; answer 5")
    6
    >>> first_wrong_token(Example(Problem.parse("3*7+4")), "answer 9")
    1
    """
    problem, end = example.problem, 0
    if example.rule:  # one more step
        problem = Problem((*problem.digits, example.rule), problem.operators + "+")
    while end := completion.find(STEP_END, end) + 1:
        wrong = first_wrong_step(problem, completion[:end])
        if wrong is not None:
            return wrong
    answer = final_answer(completion)
    if answer is None or answer == example.answer:
        return None
    return len(encode(completion[: completion.rindex(ANSWER)])) + 1
