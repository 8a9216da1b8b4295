"""Another problem's solution serves the teacher nearly as well as the right one.

Source: OP2SD 2608.09228.

Published: AIME24 avg@12 at 1.7B, 4B, 8B: another problem's solution 55.4, 31.5, 55.8, the right
one 55.4, 30.8, 45.0, before 49.9, 23.2, 28.5.

Predicted: Shown another problem's solution the teacher teaches nearly as well as with the right
one: at most 5 points lower on the pool, not lower on fresh problems, which it improves. A wrong
solution does not do.

Found (commit dce4e41, first edition): opposite, 1 of 3 statements hold. In these documents the
solution of another problem tells nothing, and it makes the teacher right less often than it is
without any context (0.43 instead of 0.57 on the pool); the student follows it down there and, by
16 points, on fresh problems. That is less harm on fresh problems than the right solution does,
and nothing is learned about the pool.
"""

from lab.claims.arms import CONTEXTS
from lab.claims.statements import change, value

ARMS = {
    "its own": CONTEXTS["solution"],
    "another's": CONTEXTS["other_problem"],
    "a wrong one": CONTEXTS["wrong"],
}
STATEMENTS = [
    value("train.accuracy", "another's") - value("train.accuracy", "its own") > -0.05,
    value("fresh.accuracy", "another's") - value("fresh.accuracy", "its own") > 0,
    change("fresh.accuracy", "another's") > 0,
]
CONTROL = value("train.accuracy", "a wrong one") - value("train.accuracy", "its own")
SHOWN = ["train.accuracy", "fresh.accuracy", "fresh.markers"]
