"""Only training that is dense and on-policy carries a rule to new kinds of problems.

Source: Kirkby and O'Neill 2026 (second-hand).

Published: of five ways to train on a constitution only the one that is dense and on-policy
transferred out of its domain; off-policy distillation from the same teacher and sparse rewards did
not; scores not known.

Predicted: The rule to add 3, taught on problems with + and -, raises accuracy on problems with *
by at least 15 points if training is dense and on-policy. We expect the claim to fail all the same:
the rule is one more written step, which the teacher's own samples show as well, so that the same
loss on these (dense, off-policy) carries at least half as far. Rewards alone (sparse, on-policy)
carry nothing: an untaught student does not write that step by chance.

Found: As we expected the claim fails: the rule, taught densely and on-policy, raises accuracy on
problems with another operator by .35 [.32, .39], and densely and off-policy by as much, .36 [.32,
.40]. Rewards alone carry nothing (.00). Supervised training on right samples of the teacher, sparse
and off-policy, carries twice as far in the first universe (.78), at its own higher learning rate.
"""

import numpy as np

from lab.claims.arms import GRPO, OFF_POLICY, RULE_OF_ALL, SFT
from lab.claims.statements import Quantity, change, changed, value

ARMS = {
    "dense, on-policy": RULE_OF_ALL,
    "dense, off-policy": f"{RULE_OF_ALL} {OFF_POLICY}",
    "sparse, on-policy": f"{GRPO} --context none --rules 3",
}
ONCE = {"sparse, off-policy": f"{SFT} --context rule --rules 3"}
NAME = "new_operators.accuracy"
WITHOUT_ONE = ["dense, off-policy", "sparse, on-policy"]

EFFECT = change(NAME, "dense, on-policy") > 0.15
CONTROL = Quantity(
    "change of accuracy on new operators (fraction): the better of off-policy and sparse",
    lambda runs: float(np.max([changed(runs, NAME, arm) for arm in WITHOUT_ONE])),
)
TESTABLE = [
    value("initial gap", "dense, on-policy", "teacher's accuracy minus the student's before") > 0.25
]
ALSO = [
    change(NAME, "dense, off-policy") > 0.15,
    change(NAME, "sparse, on-policy") < 0.05,
    change(NAME, "sparse, off-policy") > 0.15,
    change("fresh.accuracy", "dense, on-policy") > 0.15,
]
