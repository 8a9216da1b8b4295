"""More rows for the tables of the core, one function each: what the lecture does not need.

`train_gpt.py` imports this file, and so do the commands in lab/: importing it adds the rows.
"""

import torch
from torch import Tensor

import minisd
from lab.measures.errors import first_wrong_token
from minisd import Batch, Method
from toy_tasks import END_ID, PAD_ID, Example


def averaged_advantage_surrogate(
    student_log_probs: Tensor, teacher_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """Only its gradient matters: one advantage per completion, spread over its tokens, (B, T).

    -A log p(y_t), A = sg[mean over t of (log q(y_t) - log p(y_t))]. This is what the ablation of
    SDPO (2601.20802) calls sequence level; it is *not* the sequence KL: no token is told from its
    neighbours.
    """
    gap = (teacher_log_probs - student_log_probs).detach().masked_fill(~mask, 0.0)
    advantage = gap.sum(1) / mask.sum(1).clamp(min=1)  # (B,)
    return -advantage[:, None] * student_log_probs


def clipped_forward_kl(student_logits: Tensor, teacher_logits: Tensor, clip: float) -> Tensor:
    """sum_v min(q(v) log(q(v) / p(v)), clip) per position, (B, T), in nats: not a divergence.

    Negative entries stay, so that the sum may be below 0. A clamped entry pulls no more, but its
    token still pays for the others: with U the entries left, descent moves logit j by
    q_j 1[j in U] - p_j sum_U q, down for every clamped token, which the teacher wants most.
    Source: Zhao et al. 2601.18734 v3.
    """
    log_p, log_q = clip_arguments(student_logits, teacher_logits, clip)
    return (log_q.exp() * (log_q - log_p)).clamp(max=clip).sum(-1)


def bregman_clipped_forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, clip: float
) -> Tensor:
    """sum_v min(q(v) log(q(v) / p(v)) - q(v) + p(v), clip) per position, (B, T), in nats.

    Without the clip the forward KL: sum_v q - p is 0, and makes every entry a Bregman divergence,
    0 only where p(v) = q(v). With U the entries left, descent moves logit j by
    (q_j - p_j) 1[j in U] + p_j sum_U (p - q): clamped tokens, if the teacher wants them, still up.
    """
    log_p, log_q = clip_arguments(student_logits, teacher_logits, clip)
    p, q = log_p.exp(), log_q.exp()
    return (q * (log_q - log_p) - q + p).clamp(max=clip).sum(-1)


def clip_arguments(s: Tensor, t: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """log p and log q of the student's and the teacher's logits, for a clip above 0."""
    if clip <= 0:
        raise ValueError(f"clip: {clip}; allowed: above 0")
    return minisd.student_and_teacher(s, t)


# The tokens outside the support S of `minisd.top_k_reverse_kl`: (log p, log q, S) -> (B, T).


def naive(log_p: Tensor, log_q: Tensor, S: Tensor) -> Tensor:
    """sum_S p log(p/q), (B, T), in nats.

    Its gradient has an extra term, the gradient of the mass sum_S p: descent lowers the logits in S
    and mass leaks out of it. Source: Zhu et al. 2605.11182.
    """
    return (log_p.exp() * (log_p - log_q)).masked_fill(~S, 0.0).sum(-1)


def stop_gradient(log_p: Tensor, log_q: Tensor, S: Tensor) -> Tensor:
    """sum_S p (sg[log p] - log q), (B, T): the value of `naive` without that extra gradient."""
    return (log_p.exp() * (log_p.detach() - log_q)).masked_fill(~S, 0.0).sum(-1)


def renormalised(log_p: Tensor, log_q: Tensor, S: Tensor) -> Tensor:
    """KL of p and q, each divided by its mass in S, (B, T), in nats; blind to the mass outside.

    Where S is a single token it is 0 by construction, see `top_k_row`.
    """
    # Far below the floor, so that a distribution that is 0 in all of S does not leak out of S.
    log_p, log_q = (x.masked_fill(~S, 2 * minisd.LOG_PROB_FLOOR) for x in (log_p, log_q))
    value = minisd.kl(log_p.log_softmax(-1), log_q.log_softmax(-1))
    return value.masked_fill(~S.any(-1), 0.0)


def top_k_row(student_logits: Tensor, teacher_logits: Tensor, m: Method) -> Tensor:
    """The row of the core, which refuses what the tail renormalised makes identically 0."""
    if m.top_k == 1 and m.top_k_tail == "renormalised" and m.top_k_support != "union":
        raise ValueError("top_k: 1 with tail renormalised is identically 0; allowed: 2 or more")
    options = {"support": m.top_k_support, "tail": m.top_k_tail}
    return minisd.top_k_reverse_kl(student_logits, teacher_logits, m.top_k, **options)


PARTS = ("first", "last", "spread")


def token_part(mask: Tensor, share: float, part: str) -> Tensor:
    """The first, last or evenly spread `share` (0-1, rounded up) of each row's tokens, (B, T) bool.

    The tokens of mask (B, T) must stand together. Share 1 gives the mask itself.
    """
    if part not in PARTS:
        raise ValueError(f"token part: {part!r}; allowed: {', '.join(PARTS)}")
    rank, length = mask.cumsum(1) - 1, mask.sum(1, keepdim=True)  # of a token in its row; (B, 1)
    # Rounded, since 0.3 * 10 in float32 is a little above 3.
    kept = (length * share).round(decimals=4).ceil()
    # Spread: half a distance in, since the first token often decides on all others.
    spread = (rank * kept + length // 2) % length.clamp(min=1) < kept
    inside = {"first": rank < kept, "last": rank >= length - kept, "spread": spread}
    return mask & inside[part]


def share_of(part: str):
    """The row of TOKEN_WEIGHTS that distils that part of every completion alone."""

    def weights(batch: Batch, scores, method: Method) -> Tensor:
        if not 0 < method.token_share <= 1:
            raise ValueError(f"--token_share: {method.token_share}; allowed: above 0, to 1")
        return token_part(batch.completions.mask, method.token_share, part).to(torch.float32)

    return weights


def first_errors(batch: Batch, method: Method) -> Tensor:
    """Index (B, 1) of the first wrong token of every completion; its length if all are right."""
    places = []
    for row in batch.rows:
        if not isinstance(row.example, Example):
            allowed = "another; it reads the steps of the toy's arithmetic"
            raise ValueError(f"--token_weights: {method.token_weights!r}; allowed: {allowed}")
        tokens = [t for t, i in enumerate(row.ids) if i not in (PAD_ID, END_ID)]  # of its text
        wrong = first_wrong_token(row.example, row.text)
        places.append(len(row.ids) if wrong is None else tokens[wrong])
    return torch.tensor(places, device=batch.completions.mask.device)[:, None]


def scattered(mask: Tensor, kept: Tensor) -> Tensor:
    """`kept` (B, 1) tokens of each row of mask, without order and not drawn, (B, T) bool."""
    B, T = mask.shape
    # Multiples of the golden ratio, modulo 1: no period of theirs meets that of steps.
    multiples = torch.arange(1, B * T + 1, device=mask.device, dtype=torch.float64).view(B, T)
    order = (multiples * (5**0.5 - 1) / 2 % 1).masked_fill(~mask, 2.0)
    return mask & (order.argsort(1).argsort(1) < kept)


def as_many_scattered(mask: Tensor, before: Tensor, error: Tensor) -> Tensor:
    return scattered(mask, (mask & (before | error)).sum(1, keepdim=True))


ERROR_PARTS = {  # (mask, is a token before the first wrong one, is it that one), (B, T) bool each
    "before_error": lambda mask, before, error: mask & before,
    "error_token": lambda mask, before, error: mask & error,
    "until_error": lambda mask, before, error: mask & (before | error),
    "after_error": lambda mask, before, error: mask & ~(before | error),
    "until_error_scattered": as_many_scattered,  # as many of the same completion, anywhere in it
}


def part_by_error(part: str):
    """The row of TOKEN_WEIGHTS that distils what stands there from the first wrong token."""

    def weights(batch: Batch, scores, method: Method) -> Tensor:
        mask, first = batch.completions.mask, first_errors(batch, method)
        t = torch.arange(mask.shape[1], device=mask.device)
        return ERROR_PARTS[part](mask, t < first, t == first).to(torch.float32)

    return weights


minisd.DIVERGENCES["top_k_reverse_kl"] = top_k_row
minisd.DIVERGENCES["clipped_forward_kl"] = lambda s, t, m: clipped_forward_kl(s, t, m.clip)
minisd.DIVERGENCES["bregman_clipped_forward_kl"] = lambda s, t, m: bregman_clipped_forward_kl(
    s, t, m.clip)
minisd.CREDITS["averaged"] = lambda x, m: averaged_advantage_surrogate(
    x["student_log_probs"], x["teacher_log_probs"], x["mask"]
)
minisd.TOKEN_WEIGHTS.update({part: share_of(part) for part in PARTS})
minisd.TOKEN_WEIGHTS.update({part: part_by_error(part) for part in ERROR_PARTS})
TAILS = {"naive": naive, "stop_gradient": stop_gradient, "renormalised": renormalised}
minisd.TAILS.update(TAILS)
