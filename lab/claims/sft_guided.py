"""Correct completions that were written with the solution in view are harmful to imitate.

Source: Kim et al. 2603.24472, table 2.

Published: AIME24 54.8; after SFT on guided correct traces 20.2, on unguided ones 51.0.

Predicted: Supervised training on correct completions written with the solution in view costs at
least 10 points of fresh accuracy and shortens; on correct completions written without it, it
costs less than 5.

Found (commit dce4e41, first edition): reproduced, 3 of 3 statements hold.
"""

from lab.claims.arms import NO_FUNCTION, SFT
from lab.claims.statements import change

ARMS = {
    "guided": SFT,
    "unguided": f"{SFT} --context none",
    "guided, no function": f"{SFT} {NO_FUNCTION}",
}
STATEMENTS = [
    change("fresh.accuracy", "guided") < -0.1,
    change("fresh.accuracy", "unguided") > -0.05,
    change("fresh.tokens", "guided") < -5,
]
CONTROL = change("fresh.accuracy", "guided, no function")
