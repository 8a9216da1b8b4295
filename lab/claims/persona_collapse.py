"""A teacher that sees a demonstration teaches a remark about answers that contradict it.

Source: reports collected in a post of April 2026 (second-hand).

Published: with gold demonstrations as context students ended with `This was a demonstration of an
example answer`, a way to reconcile the demonstration with a wrong completion; no rate given.

Predicted: In the documents only unreliable authors answer against a solution that they see, and
only they close with ` demo`. The teacher therefore expects the remark at least 10 points more after
a wrong answer than the same model does without the solution. Under the forward KL and on problems
that never repeat, so that answers stay wrong, at least 5 points more of the student's fresh
completions end with the remark; not if completions that contradict the solution are left out of
the loss. The reverse KL averages logarithms, so that a remark which half of the teachers exclude
stays below 5 points.

Found: Not testable here. Only one author in a hundred closes with the remark in this world, and the
base model has not learnt that such authors are the ones who contradict a solution: after a wrong
answer the teacher expects the remark no more with the solution than without (-.004). No student
took it up.
"""

from lab.claims.arms import ENDLESS, SDPO, Measure
from lab.claims.statements import Panel, Quantity, Runs, at, change

OPSD = f"--method opsd {ENDLESS}"  # the forward KL
ARMS = {
    "all completions": OPSD,
    "right ones alone": f"{OPSD} --token_weights correct_only",
    "measured": Measure("remark"),
}
ONCE = {"reverse KL": f"{SDPO} {ENDLESS}", "demonstration of a sibling": "--method sdft"}
SIGHTS = ("with the solution", "without")


def expected(sight: str, answer: str) -> Quantity:
    """The probability of the remark after an answer."""
    words = f"probability of the remark after a {answer} answer, {sight}"
    return Quantity(words, lambda runs: at(runs, "measured", sight, answer))


def after_both(sight: str):
    def curve(runs: Runs) -> list[float]:
        return [expected(sight, answer).value(runs) for answer in ("wrong", "right")]

    return curve


EFFECT = change("fresh.remark", "all completions") > 0.05
CONTROL = change("fresh.remark", "right ones alone")
TESTABLE = [expected("with the solution", "wrong") - expected("without", "wrong") > 0.1]
ALSO = [
    change("fresh.remark", "reverse KL") < 0.05,
    change("fresh.remark", "demonstration of a sibling") < 0.05,
]
PANELS = [
    Panel(
        "probability of the remark, base model", "after an answer that is", ["wrong", "right"],
        {sight: after_both(sight) for sight in SIGHTS}, joined=False,
    )
]
