"""Self-distillation under the solution takes the doubt out of completions, and accuracy with it.

Source: Kim et al. 2603.24472.

Published: AIME24 accuracy -40 % relative, counts of 'wait' -61 % (GRPO: +29 %).

Predicted: Self-distillation under the solution removes markers, shortens, and costs at least 10
points of fresh accuracy; GRPO raises markers and accuracy. In a world whose opening marker has no
function the accuracy does not fall.

Found (commit dce4e41, first edition): reproduced, 4 of 5 statements hold. GRPO opens with the
marker more often, and on 64 problems neither gains nor loses on fresh ones in so few steps: three
of five seeds fall.
"""

from lab.claims.arms import GRPO, NO_FUNCTION, SDPO
from lab.claims.statements import change

ARMS = {"sdpo": SDPO, "grpo": GRPO, "sdpo, no function": f"{SDPO} {NO_FUNCTION}"}
STATEMENTS = [
    change("fresh.accuracy", "sdpo") < -0.1,
    change("fresh.markers", "sdpo") < -0.4,
    change("fresh.tokens", "sdpo") < -5,
    change("fresh.accuracy", "grpo") > 0,
    change("fresh.markers", "grpo") > 0,
]
CONTROL = change("fresh.accuracy", "sdpo, no function")
SHOWN = ["fresh.accuracy", "fresh.markers", "fresh.tokens"]
