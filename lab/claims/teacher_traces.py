"""With the solution in view a model is right without a word of doubt.

Source: Kim et al. 2603.24472, table 1.

Published: score / length / markers of a 7B model's own traces: unguided 0.30 / 13,054 / 182; with
the solution 0.98 / 1,873 / 9; with its part outside of the thinking 0.78 / 12,036 / 160.

Predicted: The share of completions that are right and have no marker rises by at least 30 points,
from about 10 %. Another problem's solution, whose readers are as sure and know nothing, makes it
rise by less than half of that: being sure is manner, being right as well is information. Score up
by at least 15 points, length down by a fifth or more, markers by at least two thirds; half of the
solution lies between. Where authors behind the solution stay careful, their teacher doubts as
before.

Found: As predicted, and larger: with the solution in view .76 [.74, .79] more completions are right
without a word of doubt; with another problem's, behind which authors are as sure, .14 [.11, .17].
Accuracy rises by .30, length falls by 42 %, markers by 91 %; half of the solution lies between.
Careful authors behind the solution doubt as before (+10 %).
"""

import math

from lab.claims.arms import SWAPPED, Measure
from lab.claims.statements import Panel, Quantity, Runs, Statement, at

ARMS = {"measured": Measure("traces"), "certainties swapped": Measure("traces", SWAPPED)}


def rise(name: str, words: str, arm: str, kind: str) -> Quantity:
    """A number of completions with the context minus without."""
    def measured(runs: Runs) -> float:
        return at(runs, arm, kind, name) - at(runs, arm, "none", name)

    return Quantity(words, measured, ((1, f"{arm}, {kind}"),))


def ratio(name: str, words: str, arm: str, kind: str = "solution") -> Quantity:
    """The same as a ratio, minus 1."""
    def measured(runs: Runs) -> float:
        return at(runs, arm, kind, name) / (at(runs, arm, "none", name) or math.nan) - 1

    return Quantity(f"{words}, with the context / without - 1", measured, ((1, f"{arm}, {kind}"),))


RIGHT = "right_undoubted_frac", "rise of completions that are right and have no marker (fraction)"
MARKERS, TOKENS = ("markers_per_completion", "markers"), ("completion_tokens", "length")
EFFECT = rise(*RIGHT, "measured", "solution") > 0.3
CONTROL = rise(*RIGHT, "certainties swapped", "other_problem")
TESTABLE = [
    Statement(
        "room of completions that are right and have no marker to their ceiling 1",
        lambda runs: 1 - at(runs, "measured", "none", RIGHT[0]), above=0.25,
    )
]
ALSO = [
    rise("accuracy_frac", "rise of accuracy (fraction)", "measured", "solution") > 0.15,
    ratio(*TOKENS, "measured") < -0.2,
    ratio(*MARKERS, "measured") < -0.67,
    ratio(*MARKERS, "measured") - ratio(*MARKERS, "measured", "partial") < -0.2,
    ratio(*MARKERS, "certainties swapped", "other_problem") < -0.67,
    ratio(*MARKERS, "certainties swapped").within(0.25),
]
KINDS = ["none", "other_problem", "partial", "answer", "sibling", "solution"]


def of_contexts(name: str):
    return lambda runs: [at(runs, "measured", kind, name) for kind in KINDS]


PANELS = [
    Panel(
        "the base model's own completions of fresh problems", "context that it sees", KINDS,
        {
            "accuracy (fraction)": of_contexts("accuracy_frac"),
            "markers per completion": of_contexts("markers_per_completion"),
            "right and no marker (fraction)": of_contexts("right_undoubted_frac"),
        },
        joined=False,
    )
]
