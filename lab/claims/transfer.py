"""Only training that is dense and on-policy carries a rule to new problems.

Source: Kirkby and O'Neill 2026 (second-hand).

Published: only the arm that is dense and on-policy transferred; scores not known.

Predicted: Adding 3, taught on + and - problems, reaches * problems by at least 20 points if
training is dense and on-policy, 10 points more than with any of the other arms.

Found (commit dce4e41, first edition): not reproduced, 1 of 4 statements hold. The rule is one
more written step, and any correct sample teaches it: supervised and off-policy training carry it
to * problems as well. Only rewards alone fail, since the untaught student almost never writes
that step by chance.
"""

import numpy as np

from lab.claims.arms import FORWARD_KL, GRPO, OFF_POLICY, RULE, SFT
from lab.claims.statements import Quantity, change, changed, value

PLUS_MINUS = "--rules 3 --train_operators +-"
ARMS = {
    "dense, on-policy": f"{RULE} {PLUS_MINUS}",
    "dense, off-policy": f"{RULE} {FORWARD_KL} {OFF_POLICY} {PLUS_MINUS}",
    "sparse, on-policy": f"{GRPO} --context none {PLUS_MINUS}",
    "sparse, off-policy": f"{SFT} --context rule {PLUS_MINUS}",
    "dense, on-policy, forward KL": f"{RULE} {FORWARD_KL} {PLUS_MINUS}",
}
OTHERS = ["dense, off-policy", "sparse, on-policy", "sparse, off-policy"]


def reached(arm: str) -> Quantity:
    return value("new_operators.accuracy", arm)


STATEMENTS = [
    change("new_operators.accuracy", "dense, on-policy") > 0.2,
    reached("dense, on-policy, forward KL") - reached("dense, off-policy") > 0.1,
    reached("dense, on-policy") - reached("sparse, on-policy") > 0.1,
    reached("dense, on-policy") - reached("sparse, off-policy") > 0.1,
]
CONTROL = Quantity(
    "change of new_operators.accuracy: the best of the other arms",
    lambda runs: float(np.max([changed(runs, "new_operators.accuracy", arm) for arm in OTHERS])),
)
SHOWN = ["new_operators.accuracy", "fresh.accuracy"]
