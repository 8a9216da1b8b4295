"""Reverse KL ends at the geometric mean of teachers that disagree, forward KL at their mixture.

Source: Zhu et al. 2605.11182; minimisers as in forward_kl and reverse_kl of minisd.py.

Published: no numbers: reverse KL has the normalised geometric mean of the teachers as optimum.

Predicted: The student cannot know whether the rule is 2 or 7. At odds 4:1 reverse KL ends nearer
to the normalised geometric mean of the teachers than to their mixture and drops the rarer rule;
forward KL ends nearer to the mixture and keeps the rarer rule. With one rule for all both
predictions are the same.

Found (commit dce4e41, first edition): reproduced, 3 of 5 statements hold. Under reverse KL the
student is nearer to the geometric mean, as derived; under forward KL nearer to the mixture in
four of five seeds only. After these few steps reverse KL has not dropped the rarer rule (0.22 of
the completions that add one; its odds are 0.20), it leaves it rarer than forward KL does (0.33).
The control is an identity (with one rule both predictions are the same): it checks the
measurement, not the experiment.
"""

from lab.claims.arms import FORWARD_KL, RULE, MeasuredRun
from lab.claims.statements import Panel, Quantity, number, over_arms, value

MIXED = {
    "reverse 1:1": MeasuredRun("rules", f"{RULE} --rules 2,7"),
    "reverse 4:1": MeasuredRun("rules", f"{RULE} --rules 2,2,2,2,7"),
    "forward 1:1": MeasuredRun("rules", f"{RULE} --rules 2,7 {FORWARD_KL}"),
    "forward 4:1": MeasuredRun("rules", f"{RULE} --rules 2,2,2,2,7 {FORWARD_KL}"),
}
ARMS = {**MIXED, "one rule": MeasuredRun("rules", f"{RULE} --rules 3")}
RARER = "rule 7 among those that add a rule"


def mixture_farther(arm: str) -> Quantity:
    words = "total variation distance to the mixture minus to the geometric mean"
    return value("mixture farther by", arm, words)


STATEMENTS = [
    mixture_farther("reverse 4:1") > 0.02,
    mixture_farther("forward 4:1") < -0.02,
    # Without any effect it would be the odds, 0.2.
    Quantity(
        f"{RARER}: reverse 4:1", lambda runs: number(runs, RARER, "reverse 4:1")
    ) < 0.1,
    value(RARER, "forward 4:1") > 0.1,
    value(RARER, "forward 1:1") > 0.35,
]
CONTROL = mixture_farther("one rule")
SHOWN = []
ODDS = "divergence, odds of rule 2 and rule 7"
PANELS = [
    Panel(
        "fresh completions that add the rule (fraction)", ODDS, list(MIXED),
        {"rule 2": over_arms("share of 2", MIXED), "rule 7": over_arms("share of 7", MIXED)},
        joined=False,
    ),
    Panel(
        "total variation distance of the student (0-1)", ODDS, list(MIXED),
        {
            "to the mixture": over_arms("distance to mixture", MIXED),
            "to the geometric mean": over_arms("distance to geometric mean", MIXED),
        },
        joined=False,
    ),
]
