"""A teacher that was adapted by reward teaches, and a larger one that was not does not.

Source: Zhu et al. 2605.11182.

Published: Qwen3-1.7B after GRPO, without privileged context, is a much better teacher than
Qwen3-8B; no table here.

Predicted: The base model, adapted by 60 steps of GRPO on the same problems and without a hint,
raises its student's accuracy on fresh problems by at least 10 points, to near .9. A teacher with a
layer more that has read the same documents raises it by less than half of that: it has the same
manner and nothing new. Self-distillation under the solution ends at least 30 points lower. Who has
the adapted teacher needs no student, though: GRPO itself ends within 10 points of it. A teacher
adapted with the solution in view learns to answer at once and makes its student worse.

Found: As predicted in seven of eight: a teacher adapted by reward raises accuracy on fresh problems
by .20 [.08, .32], a larger one that has read the same by .003 [-.008, .015]. GRPO itself ends as
high (.03 apart), and a teacher adapted with the solution in view costs its student .40. In the
eighth, at twice the learning rate on the weaker base, the adaptation itself had broken the teacher:
-.15.
"""

from lab.claims.arms import ADAPTED, GRPO, LARGER, SDPO
from lab.claims.statements import change, room, value

ARMS = {"adapted by reward": ADAPTED, "larger": LARGER}
EFFECT = change("fresh.accuracy", "adapted by reward") > 0.1
CONTROL = change("fresh.accuracy", "larger")
TESTABLE = [room("fresh.accuracy", "adapted by reward", ceiling=1)]
ONCE = {"itself with the solution": SDPO, "grpo": GRPO, "solution in view": "--method rlvr_teacher"}
ALSO = [
    value("fresh.accuracy", "adapted by reward")
    - value("fresh.accuracy", "itself with the solution") > 0.3,
    (value("fresh.accuracy", "adapted by reward") - value("fresh.accuracy", "grpo")).within(0.1),
    change("fresh.accuracy", "solution in view") < -0.1,
]
