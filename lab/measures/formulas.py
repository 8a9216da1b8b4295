"""What the measures compute from tensors alone: means, information, gradients and their laws.

1 means and distances   2 entropy and information   3 gradients
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import minisd
from minisd import GPT

# 1. Means and distances ---------------------------------------------------------------------------


def ratio(part: float, whole: float) -> float | None:
    """part / whole; None, for not measured, of nothing."""
    return part / whole if whole else None


def mean_and_error(values: Tensor) -> list[float | None]:
    """[mean, standard error] of independent values; [None, None] of fewer than two."""
    if len(values) < 2:
        return [None, None]
    return [values.mean().item(), (values.std() / len(values) ** 0.5).item()]


def binned_means(values: Tensor, bins: Tensor, count: int) -> tuple[list[float | None], list[int]]:
    """Mean of the values in each of `count` bins, and how many there are; None for an empty one.

    values and bins have one shape; a bin below 0 leaves its value out.
    """
    picked = [values[bins == b] for b in range(count)]
    return [v.mean().item() if len(v) else None for v in picked], [len(v) for v in picked]


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of |p - q| over the last axis: the mass (0-1) on which they differ."""
    return (p - q).abs().sum(-1) / 2


# 2. Entropy and information -----------------------------------------------------------------------


@torch.no_grad()
def enumerated_entropy(
    model: GPT, prompt_ids: Tensor, *, max_new_tokens: int, end_id: int, least_mass: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropies (B,) of whole completions of prompts (B, P) without padding, in nats; two bounds.

    H = sum over prefixes of P(prefix) H(next token | prefix). Prefixes less likely than least_mass
    are not followed; each can add at most P(prefix) log V per token that may still come.
    Returns the entropy of the prefixes followed, a bound (B,) of what is missing, and the mass
    (B,) of the completions that were followed to their end.
    """
    B, _ = prompt_ids.shape
    rows, owner = prompt_ids, torch.arange(B, device=prompt_ids.device)
    # P(prefix) of each row; float64, since thousands of small ones are added up.
    mass = torch.ones(B, dtype=torch.float64, device=prompt_ids.device)
    total, bound, ended = (torch.zeros_like(mass) for _ in range(3))
    for left in reversed(range(max_new_tokens)):
        states = torch.cat([model.hidden(part)[:, -1] for part in rows.split(1024)])  # (R, C)
        logits = model.lm_head(states).double()
        total.index_add_(0, owner, mass * minisd.entropy(logits))
        next_mass = mass[:, None] * minisd.log_softmax(logits).exp()  # (R, V)
        follow = next_mass > least_mass if left else torch.zeros_like(next_mass, dtype=torch.bool)
        stop = torch.zeros_like(follow)
        stop[:, end_id] = True
        follow = follow & ~stop
        ended.index_add_(0, owner, (next_mass * (stop | (left == 0))).sum(1))
        dropped = (next_mass * ~(follow | stop)).sum(1)
        bound.index_add_(0, owner, dropped * left * math.log(next_mass.shape[1]))
        row, token = follow.nonzero(as_tuple=True)
        if len(row) == 0:
            break
        rows = torch.cat((rows[row], token[:, None]), dim=1)
        owner, mass = owner[row], next_mass[row, token]
    return total, bound, ended


def mutual_information_bounds(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Per completion y, (B,) each, in nats: on average below and above I(y; c), for random c.

    log pi(y|c_1) - log mean_m pi(y|c_m), y drawn from pi(.|c_1). With c_1 in the mean the estimate
    is at most log M and on average too low; with the others alone it is on average too high.
    log_probs: (B, M) of y given M >= 2 independent contexts; column 0 is the one that y saw.
    """
    B, M = log_probs.shape
    own, others = log_probs[:, 0], log_probs[:, 1:]
    lower = own - (log_probs.logsumexp(1) - math.log(M))
    return lower, own - (others.logsumexp(1) - math.log(M - 1))


# 3. Gradients -------------------------------------------------------------------------------------


def flat_gradients(values: list[Tensor], model: torch.nn.Module) -> list[Tensor]:
    """Gradient of each of some numbers in all weights of a model, as one vector each."""
    weights, last = list(model.parameters()), len(values) - 1
    gradients = [
        torch.autograd.grad(value, weights, retain_graph=i < last) for i, value in enumerate(values)
    ]
    return [torch.cat([part.flatten() for part in gradient]) for gradient in gradients]


def norm_and_cosine(vectors: Tensor) -> tuple[float, float]:
    """Mean norm of the rows (B, N), B >= 2, and mean cosine between two different ones."""
    B, _ = vectors.shape
    unit = F.normalize(vectors, dim=1)
    cosines = unit @ unit.T  # (B, B)
    mean_cosine = (cosines.sum() - cosines.trace()) / (B * (B - 1))
    return vectors.norm(dim=1).mean().item(), mean_cosine.item()


def estimator_laws(
    estimates: Tensor, probability: Tensor, truth: Tensor, counts: list[int],
    generator: torch.Generator, repeats: int = 128,
) -> dict[str, float | list[float]]:
    """How far an estimator of a gradient is from the truth, in units of the norm of the truth.

    bias: ||E g - truth||. std: sqrt(trace Cov g) of one sample. error: sqrt(bias^2 + std^2 / n) for
    every n in counts, the root of the expected squared error of the mean of n samples. cosine: its
    expected cosine to the truth, from `repeats` draws; limit_cosine: that of E g. All are exact but
    the cosine. estimates: (N, D), all that can occur; probability (N,), sum 1; truth (D,), not 0.
    """
    mean = probability @ estimates  # (D,)
    scale = truth.norm()
    bias = ((mean - truth).norm() / scale).item()
    variance = (probability @ (estimates - mean).square().sum(1) / scale**2).item()
    cosines = []
    for n in counts:
        drawn = torch.multinomial(probability, repeats * n, True, generator=generator)
        shares = torch.zeros(repeats, len(probability), dtype=estimates.dtype)
        shares.scatter_add_(1, drawn.view(repeats, n), torch.full((repeats, n), 1 / n).to(shares))
        cosines.append(F.cosine_similarity(shares @ estimates, truth, dim=-1).mean().item())
    return {
        "bias": bias, "std": math.sqrt(variance), "cosine": cosines,
        "error": [math.sqrt(bias**2 + variance / n) for n in counts],
        "limit_cosine": F.cosine_similarity(mean, truth, dim=0).item(),
    }


def signal_and_noise(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """||E g||^2 and trace Cov g, both unbiased, from n >= 2 independent estimates (n, D) of g.

    The squared norm of a mean of n holds 1/n of the trace, which is taken off: a signal that
    drowns in noise may come out below 0.
    """
    noise = gradients.var(0).sum()
    return gradients.mean(0).square().sum() - noise / len(gradients), noise


def cosine_of_means(a: Tensor, b: Tensor) -> float:
    """Cosine of the true means of independent estimates a (n, D) and b (m, D), noise corrected.

    Noise makes the cosine of two sample means too small, by the roots of their shares of signal. A
    share counts as at least 1/2: where less is known the correction would be noise itself.
    """
    cosine = F.cosine_similarity(a.mean(0), b.mean(0), dim=0)
    for gradients in (a, b):
        signal, noise = signal_and_noise(gradients)
        total = signal + noise / len(gradients)  # the squared norm of the sample mean
        cosine = cosine / (signal / total.clamp(min=1e-30)).clamp(min=0.5).sqrt()
    return cosine.item()
