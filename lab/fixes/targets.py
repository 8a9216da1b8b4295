"""Targets and contexts: what the teacher says, from several contexts. Family T and C.

A combination: (logits of the terms, (1, N, V) each, recipe) -> logits of the target, (1, N, V).
"""

import math

import torch
from torch import Tensor

import minisd
from lab.fixes.row import CombinedTeacher, Fix, Recipe
from minisd import log_softmax

P0, HINTED, WRONG = ((1.0, "frozen", c) for c in ("none", "solution", "wrong"))
OPSD = {"learning_rate": 1e-3, "divergence": "forward_kl", "reduction": "sequence_mean"}


def anchored(initial: Tensor, hinted: Tensor, share: float) -> Tensor:
    """(1 - w) log p0 + w log q, unnormalised, w = share. Source: beta-OPSD 2607.28582."""
    return (1 - share) * log_softmax(initial) + share * log_softmax(hinted)


def purified(initial: Tensor, hinted: Tensor, alone: Tensor, beta: float = 1.0) -> Tensor:
    """log p0 + 10 tanh(D / 10) / beta, D = log pi(.|x, r) - log pi(.|r), centred over the tokens.

    alone: with the hint and without the problem. Source: Purified 2607.02234.
    """
    delta = log_softmax(hinted) - log_softmax(alone)
    delta = delta - delta.mean(-1, keepdim=True)
    return log_softmax(initial) + 10 * torch.tanh(delta / 10) / beta


def contrasted(initial: Tensor, right: Tensor, wrong: Tensor, a: float, clip: float = 5.0):
    """log p0 + a clip(log pi(.|r+) - log pi(.|r-), +-clip): what both contexts share cancels.

    Tokens that both find unlikely have noise for a difference; the clip (nats) bounds it.
    """
    difference = log_softmax(right) - log_softmax(wrong)
    return log_softmax(initial) + a * difference.clamp(-clip, clip)


def agreeing_views(initial: Tensor, views: list[Tensor], gain: float = 1.0) -> Tensor:
    """Geometric mean of the views + gain g J, J = log arithmetic - log geometric mean.

    g = |d| / mean |d_i| * |d| / (|d| + J), d_i = log q_i - log p0 of a view, d their mean: near 1
    where the views agree. Source: AVSD 2605.20643.
    """
    log_q = torch.stack([log_softmax(view) for view in views])
    geometric = log_q.mean(0)
    J = log_q.logsumexp(0) - math.log(len(views)) - geometric
    d = log_q - log_softmax(initial)
    size = d.mean(0).abs()
    g = size / d.abs().mean(0).clamp(min=1e-6) * size / (size + J).clamp(min=1e-6)
    return geometric + gain * g * J


def relevance_gated(initial: Tensor, hinted: Tensor) -> Tensor:
    """log((1 - g) p0 + g q), g = total variation of p0 and q at the position, in [0, 1].

    Source: RP-OPSD 2608.06347; its norm is not known, and this one is ours.
    """
    p, q = log_softmax(initial).exp(), log_softmax(hinted).exp()
    g = (p - q).abs().sum(-1, keepdim=True) / 2
    return ((1 - g) * p + g * q).clamp(min=1e-30).log()


COMBINATIONS = {
    "anchored": lambda x, m: anchored(*x, 0.5 + 0.3 * m.progress),
    "purified": lambda x, m: purified(*x),
    "contrast": lambda x, m: contrasted(*x, m.strength),
    "views": lambda x, m: agreeing_views(x[0], x[1:], m.strength),
    "relevance": lambda x, m: relevance_gated(*x),
}
CombinedTeacher.combinations = COMBINATIONS
minisd.TOKEN_WEIGHTS["behind_first"] = (
    lambda batch, scores, m: batch.completions.mask & (batch.completions.mask.cumsum(1) > 1))
minisd.TOKEN_WEIGHTS["wrong_only"] = lambda batch, scores, m: (batch.rewards < 1)[:, None]

CONTRAST = {"target": (P0, HINTED, WRONG), "combine": "contrast", "divergence": "forward_kl"}
VIEWS = (P0, *((1.0, "frozen", c) for c in ("solution", "partial", "answer")))
OURS = CONTRAST | {"reward_weight": 0.5, "token_weights": "behind_first"}
ALONE = (1.0, "frozen", "solution_alone")
MISMATCHED = "other_solution"
FIXES = {
    "opsd": Fix("-", "KL(q || p)", Recipe("Zhao et al. 2601.18734", **OPSD), "op2sd",
                "every token counts: without its clip", "code"),
    "sdpo": Fix("-", "KL(p || q), teacher EMA .01",
                Recipe("Huebotter et al. 2601.20802", **minisd.EMA), "reverse_frozen",
                "the solution as context", "code"),
    "op2sd": Fix("C", "KL(q || p), q sees another problem's solution",
                 Recipe("2608.09228", **OPSD, context="other_problem"), "opsd",
                 "in this world such documents are written with doubt"),
    "trust_region": Fix(
        "T", "log Q = (1-r) log q_init + r log q_live, r .05",
        Recipe("Huebotter et al. 2601.20802", teacher="trust_region", teacher_update_rate=0.05),
        "reverse_frozen", "", "code"),
    "beta_opsd": Fix(
        "T", "Q = p0^(1-w) q^w, w .5 -> .8",
        Recipe("2607.28582", **OPSD, target=(P0, HINTED), combine="anchored"), "opsd",
        "without return-to-go; notes disagree on beta"),
    "veto": Fix("T", "Q = q p^beta, beta .5",
                Recipe("2601.07155", **OPSD, target=(HINTED, (0.5, "live", "none"))), "opsd",
                "beta is ours"),
    "purified": Fix(
        "T", "Q = p0 exp(10 tanh(D/10)), D = log q(.|x,r) - log q(.|r), centred",
        Recipe("2607.02234", **OPSD | {"divergence": "jensen_shannon"},
               target=(P0, HINTED, ALONE), combine="purified"), "opsd_js",
        "r alone is `solution ... | =`"),
    "credit": Fix(
        "T", "log Q = log q(.|r) - l [log q(.|other r) - log p0], l .3",
        Recipe("2605.11613", **OPSD, target=(
            HINTED, (-0.3, "frozen", MISMATCHED), (0.3, "frozen", "none"))), "opsd",
        "exact form unverified; p0 keeps the exponents at 1; one other r, not the batch's mean"),
    "ogls_sd": Fix(
        "T", "log Q = log p0 + log q(.|r+) - log q(.|r-), on wrong rollouts",
        Recipe("2605.12400", **CONTRAST, token_weights="wrong_only", strength=1.0), "contrast",
        "r+ and r- are solutions, not the group's rollouts; without its SFT"),
    "avsd": Fix(
        "T", "log Q = geometric mean of three views + g J",
        Recipe("2605.20643", **OPSD, target=VIEWS, combine="views", strength=1.0),
        "avsd_geometric", "", "code"),
    "rp_opsd": Fix(
        "T", "Q = (1-g) p0 + g q, g by what the hint changes",
        Recipe("2608.06347", **OPSD, target=(P0, HINTED), combine="relevance"), "opsd",
        "g is the total variation: the paper's norm is unverified; p0 for the moving student"),
    "ours": Fix(
        "T+D", "GRPO + KL(Q || p) behind the first token, log Q = log p0 + a clip(log q(.|r+) - "
        "log q(.|r-), +-5), a .5", Recipe("this program", **OURS), "exact_anchor", "", "code"),
    # Controls.
    "reverse_frozen": Fix("-", "KL(p || q), frozen teacher",
                          Recipe("control of EMA and trust region"), "", is_control=True),
    "opsd_js": Fix("-", "Jensen-Shannon(p, q)",
                   Recipe("control", **OPSD | {"divergence": "jensen_shannon"}), is_control=True),
    "contrast": Fix("T", "log Q = log p0 + log q(.|r+) - log q(.|r-), all rollouts",
                    Recipe("control", **CONTRAST, strength=1.0), "opsd", is_control=True),
    "avsd_geometric": Fix("T", "log Q = mean of three views' log q",
                          Recipe("control", **OPSD, target=VIEWS, combine="views", strength=0.0),
                          is_control=True),
    "exact_anchor": Fix("D", "GRPO + KL(p0 || p) behind the first token, no teacher (a = 0)",
                        Recipe("control", **OURS, strength=0.0), is_control=True),
}
