"""Routing by outcome or pass rate, and gates of a schedule. Family R."""

from torch import Tensor

import minisd
from lab.fixes.row import Fix, Recipe
from lab.fixes.targets import OPSD
from minisd import entropy


def pass_rates(rewards: Tensor) -> Tensor:
    """Share of right completions of each completion's problem, (B, 1), of rewards (P, G)."""
    return (rewards == 1).float().mean(1, keepdim=True).expand(rewards.shape).reshape(-1, 1)


def learnable(rate: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """p^alpha (1 - p)^beta: 0 where all or none of a group are right. Source: PACED; SC-SDPO."""
    return rate**alpha * (1 - rate) ** beta


def sure_teacher(entropies: Tensor, beta: float = 1.0) -> Tensor:
    """e^{-beta H_T} (B, T). Source: SRPO 2604.02288."""
    return (-beta * entropies).exp()


def entropy_gate(history: list[dict], was_open: bool) -> bool:
    """Closed below .93, open again at 1 times the median H_T of the first five steps: AntiSD."""
    values = [row["teacher_entropy"] for row in history]
    if len(values) <= 5:
        return True
    warm = sorted(values[:5])[2]
    return values[-1] >= (0.93 if was_open else 1.0) * warm


def progress_gate(history: list[dict], was_open: bool) -> bool:
    """Refresh if the last ten steps earned more than the ten before and few are cut: CGTR."""
    last, before = history[-10:], history[-20:-10]
    if len(before) < 10:
        return False
    mean = [sum(row["reward"] for row in rows) / len(rows) for rows in (before, last)]
    return mean[1] > mean[0] and max(row["cut_frac"] for row in last) < 0.1


GATES = {"entropy": entropy_gate, "progress": progress_gate}


def wrong_by_sureness(batch, scores, m) -> Tensor:
    x = scores({"entropy": lambda s, t: entropy(t)})
    return sure_teacher(x["entropy"]) * (batch.rewards < 1)[:, None]


WEIGHTS = {
    "learnable": lambda batch, scores, m: learnable(pass_rates(batch.by_group())),
    "learnable_root": lambda batch, scores, m: learnable(pass_rates(batch.by_group()), 0.5, 0.5),
    "learnable_wrong": lambda batch, scores, m: 4 * learnable(
        pass_rates(batch.by_group())) * (batch.rewards < 1)[:, None],
    "wrong_sure": wrong_by_sureness,
    "sure": lambda batch, scores, m: sure_teacher(
        scores({"entropy": lambda s, t: entropy(t)})["entropy"]),
}
minisd.TOKEN_WEIGHTS.update(WEIGHTS)
# NOTE: the gate looks at what has happened until the step; the copy is made after it.
minisd.TEACHERS["gated"] = lambda m, step: float(m.is_open and step % m.teacher_every == 0)

# NOTE: a mean per completion would divide a weight per completion out again.
BY_TOKEN = OPSD | {"reduction": "token_mean"}
MIXED_JS = {"reward_weight": 0.5, "divergence": "jensen_shannon"}
FIXES = {
    "srpo": Fix("R", "right: GRPO; wrong: JSD weighted by e^-H_T", Recipe(
        "2604.02288", **MIXED_JS, **minisd.EMA, token_weights="wrong_sure",
        advantage="right_only"), "srpo_unrouted", "two weighted losses in one step", "code"),
    "sc_sdpo": Fix("R", "w = sqrt(p(1-p)) of the pass rate", Recipe(
        "2605.27765", **minisd.EMA, token_weights="learnable_root"), "sdpo"),
    "ssopd": Fix("R", "w = 4p(1-p), a right sibling teaches wrong rollouts", Recipe(
        "2605.17497", **BY_TOKEN, context="sibling", token_weights="learnable_wrong"),
        "sibling_wrong", "any right sibling and all wrong ones, not the shortest and the longest"),
    "paced": Fix("R", "w = p(1-p) of the pass rate", Recipe(
        "2603.11178", **BY_TOKEN, token_weights="learnable"), "opsd_token_mean",
        "alpha = beta = 1 are ours"),
    "correct_only": Fix("R", "KL(q || p) on right rollouts", Recipe(
        "2605.06188", **OPSD, token_weights="correct_only"), "wrong_only"),
    "cgtr": Fix("S", "teacher = student if reward rose and few are cut", Recipe(
        "2606.03532", teacher="gated", teacher_every=10, gate="progress"), "snapshot",
        "looked at every 10 steps; bounds are ours"),
    "half_and_half": Fix("D", ".5 GRPO + .5 KL(p||q), EMA", Recipe(
        "2601.20802, hybrid", **minisd.EMA, reward_weight=0.5), "half_other_problem",
        "halves, where the paper has .9", "code"),
    # Controls.
    "srpo_unrouted": Fix("R", "GRPO + JSD weighted by e^-H_T on all rollouts", Recipe(
        "control", **MIXED_JS, **minisd.EMA, token_weights="sure"), is_control=True),
    "sibling_wrong": Fix("R", "a right sibling teaches wrong rollouts", Recipe(
        "control", **BY_TOKEN, context="sibling", token_weights="wrong_only"), is_control=True),
    "opsd_token_mean": Fix("-", "KL(q || p), mean over all tokens", Recipe(
        "control", **BY_TOKEN), is_control=True),
    "wrong_only": Fix("R", "KL(q || p) on wrong rollouts", Recipe(
        "control", **OPSD, token_weights="wrong_only"), "opsd", is_control=True),
    "snapshot": Fix("S", "teacher = student every 10 steps", Recipe(
        "control", teacher="snapshot", teacher_every=10), is_control=True),
    "half_other_problem": Fix("D", ".5 GRPO + .5 KL(p||q), q sees another problem's", Recipe(
        "control", **minisd.EMA, reward_weight=0.5, context="other_problem"), is_control=True),
}
