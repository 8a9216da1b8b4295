"""Self-distillation by the reverse KL ends at the geometric mean of teachers that disagree.

Source: Zhu et al. 2605.11182; minimisers as in forward_kl and reverse_kl of minisd.py.

Published: no numbers: the reverse KL has the normalised geometric mean of the teachers as optimum;
a post of April 2026 fears that nobody knows whether such an optimum is a good policy.

Predicted: The student cannot know whether the rule is 2 or 7; the odds are 4:1. Under the reverse
KL its next-token distribution ends nearer to the geometric mean of the teachers than to their
mixture, by a total variation of at least 0.03, and under the forward KL it does not: there it ends
nearer to the mixture. What that is worth: always following the likelier rule would be right 80 % as
often as the teacher. The geometric mean nearly does so; the mixture gives the rarer rule its share
and ends at 68 %, the price of matching a distribution. At odds 1:1 the reverse KL leaves more
completions that follow neither rule.

Found: As predicted the reverse KL ends nearer to the geometric mean, by .10 [.07, .12] of total
variation, and the forward KL nearer to the mixture, by .06 [.03, .09]. The reverse KL is worth .12
more of the teacher's accuracy. It gives the rarer rule .15 of its completions, less than its odds
of .2 but more than we expected.
"""

from lab.claims.arms import FORWARD_KL, RULE, MeasuredRun
from lab.claims.statements import Panel, Quantity, Runs, number, over_arms, value

ARMS = {
    "reverse KL": MeasuredRun("rules", f"{RULE} --rules 2,2,2,2,7"),
    "forward KL": MeasuredRun("rules", f"{RULE} --rules 2,2,2,2,7 {FORWARD_KL}"),
}
ONCE = {
    "reverse KL, 1:1": MeasuredRun("rules", f"{RULE} --rules 2,7"),
    "forward KL, 1:1": MeasuredRun("rules", f"{RULE} --rules 2,7 {FORWARD_KL}"),
}
RARER = "rule 7 among those that add a rule"
RATIO = "accuracy of the student / of its teacher"


def mixture_farther(arm: str) -> Quantity:
    words = "distance to the mixture minus to the geometric mean (total variation)"
    return value("mixture farther by", arm, words)


def follows(arm: str) -> Quantity:
    """How many completions add one of the two rules."""
    def share(runs: Runs) -> float:
        return number(runs, "share of 2", arm) + number(runs, "share of 7", arm)

    return Quantity("fresh completions that add either rule (fraction)", share, ((1, arm),))


EFFECT = mixture_farther("reverse KL") > 0.03
CONTROL = mixture_farther("forward KL")
TESTABLE = [follows("reverse KL") > 0.15, follows("forward KL") > 0.15]
ALSO = [
    mixture_farther("forward KL") < -0.03,
    value(RARER, "reverse KL", f"{RARER} (fraction; its odds are 0.2)") < 0.1,
    value(RARER, "forward KL", f"{RARER} (fraction; its odds are 0.2)") > 0.1,
    value(RATIO, "reverse KL") - value(RATIO, "forward KL") > 0.05,
    follows("reverse KL, 1:1") - follows("forward KL, 1:1") < 0,
]
PANELS = [
    Panel(
        "distance of the student (total variation)", "loss", list(ARMS),
        {
            "to the mixture": over_arms("distance to mixture", ARMS),
            "to the geometric mean": over_arms("distance to geometric mean", ARMS),
        },
        joined=False,
    ),
    Panel(
        "fresh completions that add the rule (fraction)", "loss", list(ARMS),
        {
            "rule 2, odds 0.8": over_arms("share of 2", ARMS),
            "rule 7, odds 0.2": over_arms("share of 7", ARMS),
        },
        joined=False,
    ),
]
