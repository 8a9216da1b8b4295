"""Advantages that a teacher changes token by token: times it (M), or plus it (D).

Pure functions of advantages (B, T) and u = log q(y_t) - log p(y_t), or of the contrast
e = log q(y_t | right hint) - log q(y_t | wrong hint), both (B, T), nats.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

import minisd
from lab.fixes.row import Fix, Recipe
from lab.fixes.weights import shuffle_of, u_of
from minisd import entropy, group_advantages


def sign_kept(A: Tensor, u: Tensor, strength: float, low: float = 0.2, high: float = 0.2) -> Tensor:
    """A [(1 - l) + l clip(e^{sign(A) u}, 1 - low, 1 + high)], l = strength. Source: RLSD."""
    ratio = (A.sign() * u).clamp(max=20).exp().clamp(1 - low, 1 + high)
    return A * ((1 - strength) + strength * ratio)


def reversed_ratio(A: Tensor, u: Tensor, strength: float, clip: float = 0.5) -> Tensor:
    """A [(1 - l) + l clip(e^{-u}, 1 +- clip)] where A > 0, else A. Source: RLRT 2605.10781."""
    ratio = (-u).clamp(max=20).exp().clamp(1 - clip, 1 + clip)
    return torch.where(A > 0, A * ((1 - strength) + strength * ratio), A)


def contrast_scaled(A: Tensor, e: Tensor, strength: float, scale=0.02, gate=0.02) -> Tensor:
    """A (1 + sign(A) c), c = clip(l tanh(e / scale), +-2) where above the gate, else 0; sign kept.

    Source: RLCSD 2606.11709.
    """
    c = (strength * torch.tanh(e / scale)).clamp(-2, 2)
    c = c.masked_fill(c.abs() <= gate, 0.0)
    return A * (1 + A.sign() * c).clamp(min=0)


def against_teacher(A: Tensor, u: Tensor, strength: float) -> Tensor:
    """A - l (softplus(u) - ln 2) / 2: what the hint makes likelier pays. Source: AntiSD."""
    return A - strength * (F.softplus(u) - math.log(2)) / 2


def contrast_added(A: Tensor, e: Tensor, mask: Tensor, strength: float) -> Tensor:
    """A + b (e - mean e of the completion): a signal where all fail, too. Source: SIPO."""
    mean = e.masked_fill(~mask, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return A + strength * (e - mean)


def by_teacher_ratio(A: Tensor, q: Tensor, old: Tensor, cap: float = 3.0) -> Tensor:
    """max(A, 0) clip(q(y_t) / p_old(y_t), 1/cap, cap). Source: Distilled RL 2607.17247."""
    return A.clamp(min=0) * (q - old).clamp(-math.log(cap), math.log(cap)).exp()


def constant_negative(A: Tensor, old: Tensor, strength: float, bound: float = 0.5) -> Tensor:
    """A - l 1[p_old(y_t) < bound]: no teacher at all. Source: OPSA 2608.31046 (form unverified)."""
    return A - strength * (old.exp() < bound)


def A_of(batch) -> Tensor:
    return group_advantages(batch.by_group()).view(-1, 1).expand(batch.completions.mask.shape)


READ = {"log_z": lambda s, t: t.logsumexp(-1)}


def contrast_of(scores) -> Tensor:
    """e: the terms' sum has log_z for a normaliser, which the teacher's log-probs lack."""
    x = scores(READ)
    return x["teacher_log_probs"] + x["log_z"]


def anti_sd(batch, scores, m) -> Tensor:
    return against_teacher(A_of(batch), u_of(scores({})), m.strength * m.is_open)


def wrong_punished(batch, scores, m) -> Tensor:
    return constant_negative(A_of(batch), batch.completions.token_log_probs, m.strength)


ADVANTAGES = {
    "rlsd": lambda batch, scores, m: sign_kept(A_of(batch), u_of(scores({})), m.strength),
    "rlrt": lambda batch, scores, m: reversed_ratio(A_of(batch), u_of(scores({})), m.strength),
    "rlcsd": lambda batch, scores, m: contrast_scaled(
        A_of(batch), contrast_of(scores), m.strength),
    "cepo": lambda batch, scores, m: sign_kept(A_of(batch), contrast_of(scores), m.strength),
    "sipo": lambda batch, scores, m: contrast_added(
        A_of(batch), contrast_of(scores), batch.completions.mask, m.strength),
    "distilled": lambda batch, scores, m: by_teacher_ratio(
        A_of(batch), scores({})["teacher_log_probs"], batch.completions.token_log_probs),
    "anti_sd": anti_sd,
    "opsa": wrong_punished,
    "positive": lambda batch, scores, m: A_of(batch).clamp(min=0),
    "right_only": lambda batch, scores, m: A_of(batch) * (batch.rewards == 1)[:, None],
}
minisd.ADVANTAGES.update(ADVANTAGES)
minisd.ADVANTAGES.update(
    {f"{name}_shuffled": shuffle_of(f) for name, f in ADVANTAGES.items()})
READINGS = {"teacher_entropy": lambda s, t: entropy(t)}  # of a row with a gate

PG = {"reward_weight": 1.0, "reduction": "sequence_mean"}
SNAPSHOT = {"teacher": "snapshot", "teacher_every": 10}
PAIR = {"target": ((1.0, "snapshot", "solution"), (-1.0, "snapshot", "wrong")), "teacher_every": 10}


def with_shuffled(name: str, fix: Fix) -> dict[str, Fix]:
    """A fix, and its control: the same advantages in another order in each completion."""
    recipe = replace(fix.recipe, source="control", advantage=f"{fix.recipe.advantage}_shuffled")
    other = Fix(fix.family, f"the advantages of {name}, shuffled in each completion", recipe,
                is_control=True)
    return {name: replace(fix, control=f"{name}_shuffled"), f"{name}_shuffled": other}


FIXES = {
    **with_shuffled("rlsd", Fix(
        "M", "A [(1-l) + l clip(e^{sign(A) u}, .8, 1.2)], l .5 -> 0", Recipe(
            "2604.03128", **PG, **SNAPSHOT, advantage="rlsd", fade_steps=50),
        differs="snapshot every 10 steps as in RLCSD's code", seen="code")),
    "rlrt": Fix("M", "A [(1-l) + l clip(e^-u, .5, 1.5)] on right rollouts, l .5", Recipe(
        "2605.10781", **PG, **SNAPSHOT, advantage="rlrt"), "grpo", "epsilon .5 of three given"),
    **with_shuffled("rlcsd", Fix(
        "M", "A (1 + sign(A) .5 tanh(e/.02)), gate .02", Recipe(
            "2606.11709", **PG, **PAIR, advantage="rlcsd"),
        differs="one wrong hint, not four; chosen and other tokens normalised together",
        seen="code")),
    "antisd": Fix("D", "A - l (softplus(u) - ln 2)/2, l .5, gated by H_T", Recipe(
        "2605.11609", **PG, teacher="frozen", advantage="anti_sd", gate="entropy"), "opsa"),
    **with_shuffled("sipo", Fix("D", "A + b (e - mean e), b .1", Recipe(
        "2609.36742", **PG, **PAIR, advantage="sipo", strength=0.1),
        differs="b is ours; the mistake is a wrong solution, not the group's")),
    "cepo": Fix("M", "A [(1-l) + l clip(e^{sign(A) e}, .8, 1.2)], l .5 -> 0 in 25", Recipe(
        "2605.19436", **PG, **PAIR, advantage="cepo", fade_steps=25), "rlsd",
        "clip .2 is ours; its control also fades in 50 steps"),
    "distilled_rl": Fix("M", "max(A, 0) clip(q/p_old, 1/3, 3)", Recipe(
        "2607.17247", **PG, advantage="distilled"), "positive_only", "token ratios"),
    "sdpg": Fix("D", "clipped PG + .001 KL(p||q), live teacher + .001 k3", Recipe(
        "2606.04036", reward_weight=0.999, reduction="sequence_mean", teacher="live",
        kl_coef=0.001), "grpo", "k3 for its squared log ratio; control has kl_coef .04", "code"),
    "grpo": Fix("-", "A = (r - mean)/std, .04 k3", Recipe(
        "2402.03300", **PG, kl_coef=0.04), "", "", "code"),
    "dr_grpo": Fix("-", "A = r - mean, divided by a constant", Recipe(
        "2503.20783", reward_weight=1.0, advantage="group_without_std", reduction="constant"),
        "grpo", "", "code"),
    "dapo": Fix("-", "clip .8 to 1.28, equal groups drawn anew", Recipe(
        "2503.14476", reward_weight=1.0, clip_high=0.28, resample=2), "grpo",
        "at most 2 rounds of drawing anew; without overlong shaping", "code"),
    "off_context_grpo": Fix("S", "sampled WITH r, ratio p(y|x)/p_old(y|x,r), clipped", Recipe(
        "2607.19313", **PG, target=((1.0, "live", "none"),), sampling_context="solution"),
        "grpo", "clip .2 as in GRPO"),
    # Controls.
    "opsa": Fix("D", "A - .5 1[p_old < .5]: no teacher", Recipe(
        "2608.31046", **PG, advantage="opsa"), "grpo", "form unverified", is_control=True),
    "positive_only": Fix("-", "max(A, 0)", Recipe(
        "control", **PG, advantage="positive"), "grpo", is_control=True),
}
