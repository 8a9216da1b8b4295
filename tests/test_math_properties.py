"""Laws of the pure functions for any shapes, masks and logits, drawn by hypothesis.

The same examples in every run. A failure prints the smallest example that it could find.
"""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny import build_gpt

import minisd
from lab.extra_losses import clipped_forward_kl
from minisd import (
    REDUCTIONS,
    SUPPORTS,
    TAILS,
    Prompts,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    top_k_reverse_kl,
)

# max_examples: of each law, so that the file takes seconds.
laws = settings(derandomize=True, database=None, deadline=None, max_examples=25)

FLOATS = {"allow_nan": False, "allow_infinity": False}
NUMBERS = st.floats(-100, 100, **FLOATS)
UNIT = st.floats(0, 1, **FLOATS)
INSIDE = st.floats(0.01, 0.99, **FLOATS)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4))  # (B, T)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def tensors(shape, elements=NUMBERS, dtype=np.float64):
    """A strategy of tensors; shape and elements may be strategies themselves."""
    return arrays.arrays(dtype, shape, elements=elements).map(tensor)


def masks(shape):
    return tensors(shape, st.booleans(), np.bool_)


@st.composite
def logit_pairs(draw, count=2, distinct=False):
    """`count` logits (B, T, V) of all magnitudes; distinct: without ties, which top k breaks."""
    B, T = draw(SHAPES)
    V = draw(st.integers(2, 6))
    elements = st.floats(-4, 4, **FLOATS) | st.floats(-1e4, 1e4, **FLOATS)
    if distinct:  # multiples of 1/4, and every token a little above the one before it
        elements = st.integers(-16, 16).map(lambda i: i / 4)
    ramp = torch.arange(V) / 100 if distinct else torch.zeros(V)
    return [draw(tensors((B, T, V), elements)) + ramp for _ in range(count)]


def rounding(*values: torch.Tensor) -> float:
    """What float64 may lose in a sum of a few numbers of this magnitude, in nats."""
    return 1e-14 * (1 + max(float(v.abs().max()) for v in values))


def total_variation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Half the sum of |a - b| over the last axis: 0 only for equal distributions."""
    return (a - b).abs().sum(-1) / 2


def close(actual, expected, atol):
    torch.testing.assert_close(actual, torch.as_tensor(expected).to(actual), atol=atol, rtol=1e-10)


def tails_of(support: str) -> list[str]:
    """Those that a support of k > 1 allows; an intersection may be a single token all the same."""
    return [tail for tail in TAILS if (support, tail) != ("intersection", "renormalised")]


@st.composite
def losses(draw, V: int):
    """Any of the divergences with any of its options, for a vocabulary of V."""
    if draw(st.booleans()):
        k = draw(st.integers(2, V)) if V > 2 else 2
        support = draw(st.sampled_from(list(SUPPORTS)))
        tail = draw(st.sampled_from(tails_of(support)))
        return lambda s, t: top_k_reverse_kl(s, t, k, support=support, tail=tail)
    weight, clip = draw(INSIDE), draw(st.floats(1e-3, 2))
    others = (lambda s, t: jensen_shannon(s, t, weight),)
    others += (lambda s, t: clipped_forward_kl(s, t, clip),)
    return draw(st.sampled_from((forward_kl, reverse_kl, *others)))


# Divergences --------------------------------------------------------------------------------------


@laws
@given(logit_pairs(), INSIDE)
def test_divergences_are_zero_at_equality_alone(pair, weight):
    """Catches a wrong sign or a missing term: Pinsker, KL >= 2 TV^2, holds for every distribution.

    With both of its halves weighed, the bound of Jensen-Shannon is 2 w (1 - w) TV^2.
    """
    s, t = pair
    bound, tolerance = 2 * total_variation(s.softmax(-1), t.softmax(-1)) ** 2, rounding(s, t)
    assert (forward_kl(s, t) >= bound - tolerance).all()
    assert (reverse_kl(s, t) >= bound - tolerance).all()
    weighed = jensen_shannon(s, t, weight)
    assert (weighed >= weight * (1 - weight) * bound - tolerance).all()
    close(reverse_kl(t, s), forward_kl(s, t), tolerance)
    entropy_of_weights = -weight * math.log(weight) - (1 - weight) * math.log(1 - weight)
    assert (weighed <= entropy_of_weights + tolerance).all()


@laws
@given(logit_pairs(count=1), st.data())
def test_divergences_of_equal_models_are_zero(single, data):
    """Catches a floor, a bucket or a support that differs between two equal models."""
    s = single[0]
    loss, shift = data.draw(losses(s.shape[-1])), data.draw(NUMBERS)
    close(loss(s, s + shift), torch.zeros(s.shape[:2]), 10 * rounding(s, s + shift))


@laws
@given(logit_pairs(distinct=True), st.data())
def test_divergences_know_neither_logit_shifts_nor_the_order_of_rows_and_tokens(pair, data):
    """Catches unnormalised logits, values that mix positions, and a dependence on token ids."""
    s, t = pair
    loss = data.draw(losses(s.shape[-1]))
    shifts = [data.draw(tensors((*s.shape[:2], 1))) for _ in pair]
    B, T, V = (torch.tensor(data.draw(st.permutations(range(n)))) for n in s.shape)
    moved = [x[B][:, T][..., V] + d for x, d in zip(pair, shifts)]
    close(loss(*moved), loss(s, t)[B][:, T], 10 * rounding(*moved))


@laws
@given(logit_pairs(), st.data())
def test_tails_of_top_k(pair, data):
    """Catches a tail with a wrong sign, a support that is not k tokens, a bucket left out.

    Coarsening cannot raise a KL (bucket); by the log-sum inequality the terms inside the support
    are worth at least what their masses are worth (naive).
    """
    s, t = pair
    k, support = data.draw(st.integers(2, s.shape[-1])), data.draw(st.sampled_from(list(SUPPORTS)))
    values = {a: top_k_reverse_kl(s, t, k, support=support, tail=a) for a in tails_of(support)}
    tolerance = 10 * rounding(s, t)
    log_p, log_q = s.log_softmax(-1), t.log_softmax(-1)
    inside = SUPPORTS[support](minisd.is_top(log_p, k), minisd.is_top(log_q, k))
    size = {"student": (k, k), "teacher": (k, k), "union": (k, 2 * k), "intersection": (0, k)}
    low, high = size[support]
    assert ((inside.sum(-1) >= low) & (inside.sum(-1) <= high)).all()
    p, q = ((x.exp() * inside).sum(-1) for x in (log_p, log_q))  # masses of the support
    close(values["stop_gradient"], values["naive"], 0)
    assert (values["bucket"] <= reverse_kl(s, t) + tolerance).all()
    assert (values["bucket"] >= 2 * (p - q) ** 2 - tolerance).all()
    assert (values.get("renormalised", p) >= -tolerance).all()
    worth = torch.where(p * q > 0, p * (p / q).log(), -torch.inf)
    assert (values["naive"] >= worth - tolerance).all()
    if k == s.shape[-1]:
        for value in values.values():
            close(value, reverse_kl(s, t), tolerance)


@laws
@given(logit_pairs(), st.floats(1e-3, 10))
def test_clipping_only_lowers_the_forward_kl(pair, clip):
    """Catches a clip from below, or of the sum instead of its terms."""
    s, t = pair
    clipped, tolerance = clipped_forward_kl(s, t, clip), rounding(s, t)
    assert (clipped <= forward_kl(s, t) + tolerance).all()
    assert (clipped <= s.shape[-1] * clip + tolerance).all()
    close(clipped_forward_kl(s, t, 1e9), forward_kl(s, t), tolerance)


@laws
@given(logit_pairs(count=1))
def test_entropy_stays_in_its_range(single):
    """Catches an entropy in bits or with the wrong sign."""
    entropy, tolerance = minisd.entropy(single[0]), rounding(single[0])
    assert (entropy >= -tolerance).all()
    assert (entropy <= math.log(single[0].shape[-1]) + tolerance).all()


@laws
@given(logit_pairs(count=2), st.floats(-2, 2), st.floats(-2, 2))
def test_a_sum_of_terms_is_linear_in_its_coefficients(pair, one, other):
    """Catches a coefficient that is lost or squared, also of a term that counts negatively."""
    a, b = pair
    mixed = minisd.log_linear([a, b], [one, other])
    expected = (one * a + other * b).log_softmax(-1)
    tolerance = 100 * rounding(a, b)
    close(mixed.log_softmax(-1), expected.clamp(min=mixed.log_softmax(-1).min()), tolerance)
    apart = [minisd.log_linear([x], [2 * c]) for x, c in ((a, one), (b, other))]
    close(sum(apart).log_softmax(-1), (2 * mixed).log_softmax(-1), tolerance)


@laws
@given(logit_pairs(count=3), UNIT)
def test_a_mixture_of_two_terms_is_between_them(logits, weight):
    """Catches weights that are swapped or applied to probabilities.

    Of all distributions it has the smallest weighted sum of KLs to its terms.
    """
    a, b, other = logits
    mixed = minisd.log_linear([a, b], [weight, 1 - weight])
    tolerance = 10 * rounding(a, b, other)

    def distance(x):
        return weight * reverse_kl(x, a) + (1 - weight) * reverse_kl(x, b)

    for rival in (a, b, other):
        assert (distance(mixed) <= distance(rival) + tolerance).all()
    same = minisd.log_linear([a, a + 1], [weight, 1 - weight])
    close(reverse_kl(same, a), torch.zeros(a.shape[:2]), tolerance)
    assert minisd.log_linear([a], [1.0]) is a


# Masks and means ----------------------------------------------------------------------------------

ANY_REDUCTION = st.sampled_from(["token_mean", "sequence_mean", "constant"])
ANY_NUMBER = st.floats(allow_nan=True, allow_infinity=True)


def mean(values, mask, reduction, limit):
    weights, total = REDUCTIONS[reduction](mask.float(), limit)
    return minisd.weighted_sum(values, weights) / total.clamp(min=1e-12)  # as in `loss_of`


@laws
@given(SHAPES.flatmap(masks), ANY_REDUCTION, st.integers(1, 9), st.data())
def test_weights_of_means_sum_to_one_and_parts_add_up(mask, reduction, max_tokens, data):
    """Catches micro-batches whose sum is not the batch, weight on padding, empty rows that count.

    For constant the sum is the share of tokens in use.
    """
    weights, total = REDUCTIONS[reduction](mask.float(), max_tokens)
    total = total.clamp(min=1e-12)  # as in `loss_of`
    expected = float(mask.any())
    if reduction == "constant":
        expected = float(mask.sum()) / (len(mask) * max_tokens)
    close(weights.sum() / total, expected, 1e-6)
    assert (weights[~mask] == 0).all() and (weights[mask] > 0).all()
    values, cut = data.draw(tensors(mask.shape)), data.draw(st.integers(0, len(mask)))
    parts = [minisd.weighted_sum(values[r], weights[r]) for r in (slice(cut), slice(cut, None))]
    whole = mean(values, mask, reduction, max_tokens)
    close((parts[0] + parts[1]) / total, whole, 1e-10)
    if mask.any() and reduction != "constant":
        inside = values[mask]
        assert inside.min() - 1e-4 <= whole <= inside.max() + 1e-4  # weights are float32


@laws
@given(SHAPES.flatmap(masks), ANY_REDUCTION, st.data())
def test_means_know_neither_padding_nor_the_order_of_rows(mask, reduction, data):
    """Catches nan from padding, and a mean over positions instead of over tokens."""
    B, T = mask.shape
    values, garbage = data.draw(tensors((B, T))), data.draw(tensors((B, T + 2), ANY_NUMBER))
    rows = torch.tensor(data.draw(st.permutations(range(B))))
    wider = torch.zeros(B, T + 2, dtype=torch.bool)
    wider[:, :T] = mask
    garbage[wider] = values[mask]
    whole = mean(values, mask, reduction, 7)
    close(mean(garbage, wider, reduction, 7), whole, 1e-10)
    # 1e-5: the weights are float32, and their sum in another order rounds otherwise.
    close(mean(values[rows], mask[rows], reduction, 7), whole, 1e-5)


@laws
@given(SHAPES.flatmap(masks), UNIT, st.data())
def test_future_sum_equals_a_double_loop(mask, discount, data):
    """Catches a token that counts itself, and a discount that starts one position late."""
    B, T = mask.shape
    values = data.draw(tensors((B, T)))
    expected = torch.zeros(B, T, dtype=torch.float64)
    for row in range(B):
        for t in range(T):
            for later in range(t + 1, T):
                if mask[row, later]:
                    expected[row, t] += discount ** (later - t) * values[row, later]
    values[~mask] = torch.nan
    close(minisd.future_sum(values, mask, discount), expected, 1e-10)


# Policy gradient ----------------------------------------------------------------------------------

GROUPS = st.tuples(st.integers(1, 3), st.integers(2, 6))  # (P, G)


@laws
@given(GROUPS.flatmap(lambda shape: tensors(shape, UNIT)), st.data())
def test_advantages_of_a_group_are_relative(rewards, data):
    """Catches means over the batch instead of the group, and rounding that becomes a signal.

    No deviation from a mean of G numbers is above (G - 1) / sqrt(G) of their standard deviations.
    """
    P, G = rewards.shape
    order = torch.tensor(data.draw(st.permutations(range(G))))
    for normalise in ("std", "mean"):
        advantages = minisd.group_advantages(rewards, normalise=normalise)
        close(advantages.sum(1), torch.zeros(P), 1e-9)
        moved = minisd.group_advantages(rewards[:, order], normalise=normalise)
        close(moved, advantages[:, order], 1e-9)
        # Rewards a rounding error apart may be in any order after the mean is taken off.
        gaps = rewards[:, :, None] - rewards[:, None]
        assert ((advantages[:, :, None] - advantages[:, None]) * gaps >= 0).all()
        equal = (rewards == rewards[:, :1]).all(1)
        assert (advantages[equal] == 0).all()
    assert (minisd.group_advantages(rewards).abs() <= (G - 1) / math.sqrt(G) + 1e-9).all()


LOG_PROBS = st.floats(-1e4, 0, **FLOATS) | st.floats(-5, 0, **FLOATS)


@laws
@given(SHAPES.flatmap(lambda shape: st.tuples(*[tensors(shape, LOG_PROBS)] * 2)))
def test_k3_is_never_negative_and_zero_at_equality_alone(pair):
    """Catches a penalty that rewards distance, or an exponential that overflows."""
    new, reference = pair
    k3, gap = minisd.k3_kl(new, reference), reference - new
    assert k3.isfinite().all() and (k3 >= 0).all()
    # x^2 / 2 - |x|^3 / 6 is below exp(x) - x - 1 for small x; beyond 1 the difference is above 0.3.
    small = gap.abs() < 1
    bound = torch.where(small, gap**2 / 2 - gap.abs() ** 3 / 6, 0.3)
    assert (k3 >= bound - 1e-12).all()
    assert (minisd.k3_kl(new, new) == 0).all()


@laws
@given(
    SHAPES.flatmap(lambda shape: st.tuples(*[tensors(shape, LOG_PROBS)] * 2, tensors(shape))),
    st.floats(0.1, 10),
    UNIT,
    UNIT,
)
def test_ratios_are_capped_and_clipping_is_pessimistic(given_, cap, low, high):
    """Catches an uncapped weight, and a clip that makes a step look better than it is."""
    new, old, advantages = given_
    weight = minisd.truncated_importance_weight(new, old, cap)
    assert ((weight >= 0) & (weight <= cap)).all()
    assert (minisd.truncated_importance_weight(new, new, cap) == min(1, cap)).all()
    options = {"clip_low": low, "clip_high": high}
    loss = minisd.clipped_policy_surrogate(new, old, advantages, **options)
    ratio = (new - old).clamp(max=minisd.MAX_LOG_RATIO).exp()
    assert loss.isfinite().all() and (loss >= -ratio * advantages).all()
    close(minisd.clipped_policy_surrogate(new, new, advantages, **options), -advantages, 1e-12)


# Sampling -----------------------------------------------------------------------------------------

DRAWN = st.integers(1, 4).flatmap(lambda B: st.tuples(
    tensors((B, 5), st.floats(-1e3, 1e3, width=32), np.float32),
    tensors((B,), st.floats(0, 1 - 2**-20, width=32), np.float32)))


@laws
@given(DRAWN, st.floats(0.05, 4))
def test_picked_tokens_are_possible(drawn, temperature):
    """Catches a token of probability 0, an index V, or another order than that of the tokens."""
    logits, uniform = drawn
    token = minisd.pick_token(logits, uniform, temperature)
    probs = (logits / temperature).softmax(-1)
    assert (probs.gather(1, token[:, None]) > 0).all()  # IndexError for an index V
    before = probs.cumsum(1) - probs
    assert (before.gather(1, token[:, None])[:, 0] <= uniform + 1e-5).all()
    assert (minisd.pick_token(logits, uniform / 2, temperature) <= token).all()
    assert torch.equal(minisd.pick_token(logits, uniform, 0), logits.argmax(-1))


MODEL = build_gpt()
IDS = st.integers(0, MODEL.config.vocab_size - 1)


@laws
@given(st.data(), st.integers(1, 3), st.integers(1, 4), IDS, IDS, st.integers(0, 3))
@torch.no_grad()
def test_training_states_know_neither_padding_nor_other_rows(data, B, T, pad, other_pad, extra):
    """Catches a shift by one, rotary positions that count padding, and attention to it."""
    prompts = data.draw(st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=B, max_size=B))
    completions = data.draw(tensors((B, T), IDS, np.int64))
    shown = Prompts.of(prompts, pad)
    padding = shown.pad_count.tolist()
    assert [row[n:] for row, n in zip(shown.ids.tolist(), padding)] == prompts
    hidden = minisd.completion_hidden(MODEL, shown, completions)
    for row, (prompt, completion) in enumerate(zip(prompts, completions.tolist())):
        plain = MODEL.hidden(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1]
        close(hidden[row], plain, 1e-10)
    other = Prompts.of(prompts, other_pad)
    wider = torch.nn.functional.pad(other.ids, (extra, 0), value=pad)
    wider = Prompts(wider, other.pad_count + extra)
    close(minisd.completion_hidden(MODEL, wider, completions), hidden, 1e-10)
    rows = torch.tensor(data.draw(st.permutations(range(B)))[: max(1, B - 1)])
    taken = minisd.completion_hidden(MODEL, shown.take(rows), completions[rows])
    close(taken, hidden[rows], 1e-10)
