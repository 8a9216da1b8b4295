"""Weights per token, divergences that look at the teacher's entropy, and credit. Family W.

Weights are pure functions of (B, T) tensors: u = log q(y_t) - log p(y_t), entropies, the mask.
"""

import torch
from torch import Tensor

import minisd
from lab.extra_losses import first_errors
from lab.fixes.row import Fix, Recipe
from lab.fixes.targets import OPSD
from minisd import entropy, forward_kl, is_top, kl, reverse_kl, student_and_teacher


def late(mask: Tensor, floor: float = 0.25, centre: float = 0.3, width: float = 0.1) -> Tensor:
    """floor + (1 - floor) sigmoid((t/T - centre) / width). Source: PW-OPSD 2605.21606."""
    place = (mask.cumsum(1) - 1) / mask.sum(1, keepdim=True).clamp(min=1)
    return floor + (1 - floor) * torch.sigmoid((place - centre) / width)


def front_loaded(u: Tensor, mask: Tensor, gamma: float = 0.5) -> Tensor:
    """1 + gamma (1 - sum_{s<=t} |u_s| / sum |u|). Source: IW-OPD 2606.22600."""
    size = u.abs().masked_fill(~mask, 0.0)
    return 1 + gamma * (1 - size.cumsum(1) / size.sum(1, keepdim=True).clamp(min=1e-9))


def top_share(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """Which tokens of the batch have the largest values, a share (0-1) of the masked; bool."""
    kept = values[mask]
    if not len(kept):
        return mask
    bound = kept.kthvalue(min(len(kept), int((1 - share) * len(kept)) + 1)).values
    return mask & (values >= bound)


def informative(entropies: Tensor, divergence: Tensor, mask: Tensor) -> Tensor:
    """The half with the largest H_S, and of the rest the tenth with the largest KL; bool.

    Source: TIP 2604.14084; the tenth is ours.
    """
    unsure = top_share(entropies, mask, 0.5)
    return unsure | top_share(divergence, mask & ~unsure, 0.1)


def agreement_gate(u: Tensor, mask: Tensor, beta: float = 0.9) -> Tensor:
    """sigmoid of the momentum m_t = beta m_{t-1} + (1 - beta) s_t of s_t = u_t. Source: PCSD."""
    momentum, gates = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        momentum = beta * momentum + (1 - beta) * u[:, t].masked_fill(~mask[:, t], 0.0)
        gates.append(torch.sigmoid(momentum))
    return torch.stack(gates, 1)


def decayed_sum(d: Tensor, mask: Tensor, kappa: float = 1.0) -> Tensor:
    """A_t = d_t + l_t A_{t+1}, l_t = sigmoid(-kappa (d_t - mean d)) (B, T). Source: DASH."""
    d = d.masked_fill(~mask, 0.0)
    mean = d.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    decay, A, sums = torch.sigmoid(-kappa * (d - mean)), torch.zeros_like(d[:, 0]), []
    for t in reversed(range(d.shape[1])):
        A = d[:, t] + decay[:, t] * A
        sums.append(A)
    return torch.stack(sums[::-1], 1)


FLOOR = torch.log(torch.tensor(0.1)).item() / 0.9  # of u, nats: log l / (1 - l), l = .1; REOPOLD


def floored_surrogate(p: Tensor, q: Tensor, floor: float = FLOOR) -> Tensor:
    """Only its gradient matters: -sg[max(log q - log p, floor)] log p. Source: REOPOLD."""
    return -(q - p).clamp(min=floor).detach() * p


def entropy_switched(s: Tensor, t: Tensor, alpha: float = 1.0, bound=0.8, k: int = 16) -> Tensor:
    """KL(p || q) + alpha 1[H_T > bound] KL(q || p on the teacher's top k). Source: EOPD."""
    log_p, log_q = student_and_teacher(s, t)
    inside = is_top(log_q, min(k, log_q.shape[-1]))
    log_q = log_q.masked_fill(~inside, 2 * minisd.LOG_PROB_FLOOR).log_softmax(-1)
    forward = kl(log_q, log_p.clamp(min=minisd.LOG_PROB_FLOOR))
    return reverse_kl(s, t) + alpha * (entropy(t.detach()) > bound) * forward


READ = {"entropy": lambda s, t: entropy(s), "kl": forward_kl}


def u_of(x: dict) -> Tensor:
    return x["teacher_log_probs"] - x["student_log_probs"]


def reopold_weights(batch, scores, m) -> Tensor:
    """First half of the steps: without floored tokens; then the fifth with the largest H_S."""
    x, mask = scores(READ), batch.completions.mask
    return top_share(x["entropy"], mask, 0.2) if m.progress >= 0.5 else mask & (u_of(x) > FLOOR)


def tip_weights(batch, scores, m) -> Tensor:
    x = scores(READ)
    return informative(x["entropy"], x["kl"], batch.completions.mask)


def from_error(batch, scores, m) -> Tensor:
    mask = batch.completions.mask
    t = torch.arange(mask.shape[1], device=mask.device)
    return mask & (t >= first_errors(batch, m))


def shuffled(values: Tensor, mask: Tensor) -> Tensor:
    """The values of each row's masked tokens, (B, T), in another order: the same histogram.

    The order is drawn by a generator seeded with the row's length and the batch's size.
    """
    out = values.expand(mask.shape).clone()
    generator = torch.Generator().manual_seed(int(mask.sum()))
    for row, inside in zip(out, mask):
        row[inside] = row[inside][torch.randperm(int(inside.sum()), generator=generator)]
    return out


def shuffle_of(function):
    """The row of a table whose values change places within each completion."""
    return lambda batch, scores, m: shuffled(
        function(batch, scores, m).float() * batch.completions.mask, batch.completions.mask)


WEIGHTS = {
    "late": lambda batch, scores, m: late(batch.completions.mask),
    "front_loaded": lambda batch, scores, m: front_loaded(
        u_of(scores({})), batch.completions.mask),
    "reopold": reopold_weights,
    "informative": tip_weights,
    "from_error": from_error,
    "agreement": lambda batch, scores, m: agreement_gate(
        u_of(scores({})), batch.completions.mask),
}
minisd.TOKEN_WEIGHTS.update(WEIGHTS)
minisd.TOKEN_WEIGHTS.update({f"{name}_shuffled": shuffle_of(f) for name, f in WEIGHTS.items()})
minisd.CREDITS["floored"] = lambda x, m: floored_surrogate(
    x["student_log_probs"], x["teacher_log_probs"])
minisd.CREDITS["dash"] = lambda x, m: -x["student_log_probs"] * decayed_sum(
    u_of(x).detach(), x["mask"])
minisd.DIVERGENCES["entropy_switched"] = lambda s, t, m: entropy_switched(s, t)


def weighted(source: str, weights: str, formula: str, name: str, differs: str, seen="notes"):
    """OPSD with these token weights, and its control: the same weights, shuffled."""
    row = Fix("W", formula, Recipe(source, **OPSD, token_weights=weights), f"{name}_shuffled",
              differs, seen)
    other = Recipe("control", **OPSD, token_weights=f"{weights}_shuffled")
    return {name: row, f"{name}_shuffled": Fix(
        "W", f"the weights of {name}, shuffled", other, is_control=True)}


SAMPLED = OPSD | {"credit": "sampled"}
MIXED = {"reward_weight": 0.5, "divergence": "reverse_kl"}
FIXES = {
    "opsd_clip": Fix("W", "sum_v min(q log(q/p), .05)", Recipe(
        "2601.18734 v3", **OPSD | {"divergence": "clipped_forward_kl"}), "opsd", "", "code"),
    "bregman_clip": Fix("W", "sum_v min(q log(q/p) - q + p, .05)", Recipe(
        "this program", **OPSD | {"divergence": "bregman_clipped_forward_kl"}), "opsd", "", "code"),
    **weighted("2605.21606", "late", "w = .25 + .75 sigmoid((t/T - .3)/.1)", "pw_opsd",
               "without the clip of .05", "code"),
    **weighted("2606.22600", "front_loaded", "w = 1 + .5 (1 - cumulated |u|)", "iw_opd",
               "", "code"),
    **weighted("2604.14084", "informative", "top half by H_S, or large KL at low H_S", "tip",
               "large is the top tenth: unverified"),
    **weighted("2605.28014", "from_error", "tokens from the first wrong one on", "rosd",
               "the solution as context, not a reflection on siblings"),
    "prefix": Fix("W", "first 30 % of the tokens", Recipe(
        "2605.27028", **OPSD, token_weights="first"), "prefix_spread",
        "the rest is sampled too, so that tokens are equal: it cannot win time here"),
    "eopd": Fix("W", "KL(p||q) + 1[H_T > .8] KL(q||p) on the teacher's top 16", Recipe(
        "2603.07079", divergence="entropy_switched"), "reverse_frozen",
        "alpha 1 is ours", "code"),
    "reopold": Fix("W", "-max(u, -2.56) log p; tokens by floor, then by H_S", Recipe(
        "2603.11137", **OPSD | {"credit": "floored"}, token_weights="reopold"), "sampled",
        "its step 50 is half of the steps here", "code"),
    "dash": Fix("W", "A_t = u_t + l_t A_{t+1}, l_t = sigmoid(-(u_t - mean u))", Recipe(
        "2608.06243", **OPSD | {"credit": "dash"}), "sampled", "kappa 1 is ours"),
    "pcsd": Fix("D", "GRPO + sigmoid(momentum of u) KL(p||q)", Recipe(
        "2608.01837", **MIXED, token_weights="agreement"), "pcsd_shuffled",
        "exact form of s and m unverified"),
    # Controls.
    "pcsd_shuffled": Fix("D", "the gates of pcsd, shuffled", Recipe(
        "control", **MIXED, token_weights="agreement_shuffled"), is_control=True),
    "prefix_spread": Fix("W", "30 % of the tokens, spread", Recipe(
        "control", **OPSD, token_weights="spread"), is_control=True),
    "sampled": Fix("-", "-sg[u] log p", Recipe("control", **SAMPLED), is_control=True),
}
