"""A rule that all problems share is internalised, one of each problem's own is not.

Source: Zhu et al. 2605.11182.

Published: self-distillation internalises system prompts, which all problems share, and fails where
the privileged information belongs to a single problem; no shares given.

Predicted: A student whose teacher sees `rule +3` before every problem is right, without seeing it,
at least half as often as its teacher. If every problem draws one of nine rules it ends near a
ninth: nothing in its prompt tells the rule, whatever the loss and the number of steps.

Found: As predicted: a rule that all problems share is followed without being shown, .94 [.89, .99]
as often as with it. One drawn for each problem is not: .25 [.20, .29], more than the ninth that we
expected of a guess, since untaught answers count as well.
"""

from lab.claims.arms import RULE_OF_ALL, RULE_OF_EACH, MeasuredRun
from lab.claims.statements import change, value

ARMS = {
    "shared": MeasuredRun("rules", RULE_OF_ALL),
    "drawn per problem": MeasuredRun("rules", RULE_OF_EACH),
}
RATIO, WORDS = "accuracy of the student / of its teacher", "accuracy without the rule / with it"
EFFECT = value(RATIO, "shared", WORDS) > 0.5
CONTROL = value(RATIO, "drawn per problem", WORDS)
TESTABLE = [value("initial gap", "shared", "teacher's accuracy minus the student's before") > 0.25]
ALSO = [change("new_operators.accuracy", "shared") > 0.1]
