"""A rule that all problems share is internalised, one of each problem's own is not.

Source: Zhu et al. 2605.11182.

Published: rules shared by all prompts are internalised; no shares given.

Predicted: Without the rule in its prompt the student keeps at least 70 % of the teacher's
accuracy if all problems share the rule; if each draws its own, less.

Found (commit dce4e41, first edition): reproduced, 1 of 1 statements hold. The shared rule is
internalised, 87 % of it. The control was changed after the first results: of two rules drawn at
random a student keeps half by guessing, so that our criterion could not be met; now nine are
drawn.
"""

from lab.claims.arms import RULE, MeasuredRun
from lab.claims.statements import value

ARMS = {
    "shared": MeasuredRun("rules", f"{RULE} --rules 3"),
    "drawn per problem": MeasuredRun("rules", f"{RULE} --rules 1,2,3,4,5,6,7,8,9"),
}
STATEMENTS = [value("accuracy of the student / of its teacher", "shared") > 0.7]
CONTROL = value("accuracy of the student / of its teacher", "drawn per problem")
SHOWN = ["fresh.accuracy", "train.accuracy"]
