"""Laws of the divergences per position and of the masked means that reduce them."""

import math

import pytest
import torch
import torch.nn.functional as F

import minisd
from minisd import (
    REDUCTIONS,
    SUPPORTS,
    Method,
    entropy,
    forward_kl,
    is_top,
    jensen_shannon,
    kl,
    log_linear,
    log_softmax,
    reverse_kl,
    token_log_probs,
    top_k_reverse_kl,
    weighted_sum,
)

B, T, V, K = 2, 5, 7, 3


def top_k(support, tail="bucket", k=K):
    return lambda s, t: top_k_reverse_kl(s, t, k, support=support, tail=tail)


LOSSES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": lambda s, t: jensen_shannon(s, t, 0.3),
    **{f"{u}_bucket": top_k(u) for u in SUPPORTS},  # others: lab/test_extra_losses.py
}

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def random_logits(seed, scale=1.5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(B, T, V, generator=generator)).to(dtype)


def logits_of(*probabilities):
    """(1, 1, V) logits of one distribution, shifted by a constant that must not matter."""
    return torch.tensor([[probabilities]], dtype=torch.float64).log() + 3.0


def close(actual, expected, atol=1e-6):
    expected = torch.as_tensor(expected, dtype=actual.dtype).expand_as(actual)
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# Values worked by hand ----------------------------------------------------------------------------


def test_kl_values_by_hand():
    """The two directions exchanged, or a logarithm of base 2."""
    p, q = logits_of(1 / 2, 1 / 2), logits_of(1 / 4, 3 / 4)
    close(forward_kl(p, q), 0.130812)  # 1/4 ln(1/2) + 3/4 ln(3/2) = -0.173287 + 0.304099
    close(reverse_kl(p, q), 0.143841)  # 1/2 ln 2 + 1/2 ln(2/3) = 0.346574 - 0.202733


def test_jensen_shannon_value_by_hand():
    """The teacher's weight used for the student."""
    p, q = logits_of(1 / 2, 1 / 2), logits_of(1 / 4, 3 / 4)
    # m = 1/4 q + 3/4 p = (7/16, 9/16).
    # KL(q||m) = 1/4 ln(4/7) + 3/4 ln(4/3) = -0.139904 + 0.215762 = 0.075858
    # KL(p||m) = 1/2 ln(8/7) + 1/2 ln(8/9) = 0.066766 - 0.058892 = 0.007874
    close(jensen_shannon(p, q, 0.25), 0.024870)  # 1/4 * 0.075858 + 3/4 * 0.007874


P3, Q3 = (0.5, 0.3, 0.2), (0.3, 0.2, 0.5)


@pytest.mark.parametrize("support, k, expected", [
    ("student", 1, 0.087177),  # 0.5 ln(0.5/0.3) + 0.5 ln(0.5/0.7) = 0.255413 - 0.168236
    ("teacher", 1, 0.192745),  # 0.2 ln(0.2/0.5) + 0.8 ln(0.8/0.5) = -0.183258 + 0.376003
    ("union", 1, 0.193795),  # 0.255413 - 0.183258 + 0.3 ln(0.3/0.2), all tokens: the reverse KL
    ("intersection", 1, 0.0),  # the two best tokens differ: nothing in common
    ("intersection", 2, 0.087177),  # {0, 1} and {2, 0} share token 0
])
def test_top_k_values_by_hand(support, k, expected):
    """The wrong model's top k, or a tail that is dropped, doubled or divided by the wrong mass."""
    close(top_k_reverse_kl(logits_of(*P3), logits_of(*Q3), k, support=support), expected)


def test_entropy_by_hand():
    """Bits instead of nats."""
    close(entropy(logits_of(1 / 2, 1 / 4, 1 / 4)), 1.5 * math.log(2))


@pytest.mark.parametrize("k, sets", [
    (1, {"student": {0}, "teacher": {2}, "union": {0, 2}, "intersection": set()}),
    (2, {"student": {0, 1}, "teacher": {0, 2}, "union": {0, 1, 2}, "intersection": {0}}),
])
def test_supports_by_hand(k, sets):
    """Union and intersection exchanged, or the least likely tokens."""
    for name, tokens in sets.items():
        inside = SUPPORTS[name](is_top(logits_of(*P3), k), is_top(logits_of(*Q3), k))
        assert set(inside[0, 0].nonzero()[:, 0].tolist()) == tokens


def test_token_log_probs_by_hand():
    """The log-probability of the next or of the wrong row's token."""
    logits = torch.cat((logits_of(*P3), logits_of(*Q3)), dim=1)  # (1, 2, 3)
    close(token_log_probs(logits, torch.tensor([[2, 1]])), [[math.log(0.2), math.log(0.2)]])
    close(token_log_probs(logits, torch.tensor([[0, 2]])), [[math.log(0.5), math.log(0.5)]])
    with pytest.raises(ValueError, match="ids: expected"):
        token_log_probs(logits, torch.tensor([[0]]))


# Agreement with plain formulas --------------------------------------------------------------------


def test_kls_agree_with_torch():
    """Any slip in value: F.kl_div(input, target) is KL(target || input)."""
    s, t = random_logits(1), random_logits(2)
    log_p, log_q = s.log_softmax(-1), t.log_softmax(-1)
    torch_kl = lambda a, b: F.kl_div(b, a, log_target=True, reduction="none").sum(-1)  # noqa: E731
    close(forward_kl(s, t), torch_kl(log_q, log_p), 1e-12)
    close(reverse_kl(s, t), torch_kl(log_p, log_q), 1e-12)
    m = (0.3 * log_q.exp() + 0.7 * log_p.exp()).log()
    expected = 0.3 * torch_kl(log_q, m) + 0.7 * torch_kl(log_p, m)
    close(jensen_shannon(s, t, 0.3), expected, 1e-12)


def plain_top_k(s, t, support, tail):
    """The formulas of the docstring with p and q themselves and one loop per position."""
    p, q = s.softmax(-1), t.softmax(-1)
    rows = []
    for p_row, q_row in zip(p.flatten(0, 1), q.flatten(0, 1)):
        ours, theirs = (set(x.argsort(descending=True)[:K].tolist()) for x in (p_row, q_row))
        tokens = {
            "student": ours,
            "teacher": theirs,
            "union": ours | theirs,
            "intersection": ours & theirs,
        }[support]
        inside = sorted(tokens)
        a, b = p_row[inside], q_row[inside]
        rest_a, rest_b = 1 - a.sum(), 1 - b.sum()
        if tail == "renormalised" and inside:
            a, b = a / a.sum(), b / b.sum()
        log_a = a.log().detach() if tail == "stop_gradient" else a.log()
        value = (a * (log_a - b.log())).sum()
        if tail == "bucket" and len(inside) < V:
            value = value + rest_a * (rest_a / rest_b).log()
        rows.append(value)
    return torch.stack(rows).view(B, T)


@pytest.mark.parametrize("name", [n for n in LOSSES if not n.endswith("_kl")])
def test_values_and_gradients_agree_with_plain_autograd_of_the_formula(name):
    """A detach too many or too few, or a masked token that still gets a gradient."""
    s, t = random_logits(3).requires_grad_(), random_logits(4)
    if name == "jensen_shannon":
        p, q = s.softmax(-1), t.softmax(-1)
        m = 0.3 * q + 0.7 * p
        plain = (0.3 * q * (q / m).log() + 0.7 * p * (p / m).log()).sum(-1)
    else:
        plain = plain_top_k(s, t, *name.split("_", 1))
    value = LOSSES[name](s, t)
    close(value, plain, 1e-10)
    weights = random_logits(5)[..., 0]
    gradients = [torch.autograd.grad((x * weights).sum(), s)[0] for x in (value, plain)]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_in_the_student(name):
    """A gradient that is not the derivative of the value."""
    s, t = random_logits(6).requires_grad_(), random_logits(7)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, t), (s,))


def test_gradcheck_of_log_probs_and_entropy():
    """A wrong gather, or a floor that eats gradients of ordinary tokens."""
    s = random_logits(8).requires_grad_()
    ids = torch.arange(B * T).view(B, T) % V
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, ids), (s,))
    assert torch.autograd.gradcheck(entropy, (s,))


# Laws ---------------------------------------------------------------------------------------------


@every_loss
def test_one_value_per_position_and_gradient_for_the_student_alone(loss):
    """A reduction inside a divergence, or a teacher that is trained."""
    s, t = random_logits(9).requires_grad_(), random_logits(10).requires_grad_()
    value = loss(s, t)
    assert value.shape == (B, T)
    value.sum().backward()
    assert t.grad is None and s.grad.abs().max() > 1e-3


@every_loss
def test_logit_shifts_do_not_matter(loss):
    """A formula on unnormalised logits."""
    s, t, shift = random_logits(11), random_logits(12), random_logits(13)[..., :1]
    close(loss(s + 40 * shift, t - 9 * shift), loss(s, t), 1e-10)


@every_loss
def test_batch_order_and_token_names_do_not_matter(loss):
    """Values that mix rows or positions, or depend on the order of the vocabulary."""
    s, t = random_logits(14), random_logits(15)
    close(loss(s.flip(0, 1), t.flip(0, 1)), loss(s, t).flip(0, 1), 1e-12)
    close(loss(s.flip(2), t.flip(2)), loss(s, t), 1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_divergences_are_zero_for_equal_models_and_positive_otherwise(name):
    """A sign, or a support that differs between two equal models."""
    s, t = random_logits(16), random_logits(17)
    close(LOSSES[name](s, s + 2.0), 0.0, 1e-12)
    if "intersection" not in name:  # an empty intersection is 0 whatever the models
        assert (LOSSES[name](s, t) > 1e-4).all()


@pytest.mark.parametrize("support", SUPPORTS)
def test_top_k_of_the_whole_vocabulary_is_the_reverse_kl(support):
    """A tail that still counts when no token is left outside."""
    s, t = random_logits(18).requires_grad_(), random_logits(19)
    exact, value = reverse_kl(s, t), top_k_reverse_kl(s, t, V, support=support)
    close(value, exact, 1e-10)
    gradients = [torch.autograd.grad(x.sum(), s)[0] for x in (value, exact)]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)


def test_bucket_is_never_above_the_full_kl():
    """A coarsened distribution cannot be told apart better than the full one."""
    s, t = random_logits(22), random_logits(23)
    assert (top_k("student")(s, t) <= reverse_kl(s, t) + 1e-12).all()
    finer, coarser = (top_k("student", k=k)(s, t) for k in (4, 2))
    assert (coarser <= finer + 1e-12).all()


def test_jensen_shannon_tends_to_the_two_kls():
    """Weights on the wrong side, invisible at one half."""
    s, t = random_logits(24), random_logits(25)
    # 1e-3 relative: the first-order error of a weight of 1e-5 for KLs of order 1.
    for weight, limit in [(1e-5, forward_kl), (1 - 1e-5, reverse_kl)]:
        value = jensen_shannon(s, t, weight) / min(weight, 1 - weight)
        torch.testing.assert_close(value, limit(s, t), atol=0, rtol=1e-3)
    close(jensen_shannon(s, t), jensen_shannon(t, s), 1e-12)
    assert (jensen_shannon(s, t) <= math.log(2)).all()


def test_forward_kl_is_minimised_by_the_arithmetic_mixture_and_reverse_by_the_geometric():
    """Directions exchanged: each has its own answer to several contexts."""
    teachers = [random_logits(seed) for seed in (26, 27, 28)]
    log_q = torch.stack([t.log_softmax(-1) for t in teachers])
    arithmetic, geometric = log_q.exp().mean(0).log(), log_q.mean(0)
    residual = {
        forward_kl: sum(forward_kl(arithmetic, t) for t in teachers).sum() / 3,
        reverse_kl: -geometric.logsumexp(-1).sum(),  # -log Z
    }
    for loss, optimum, other in [
        (forward_kl, arithmetic, geometric),
        (reverse_kl, geometric, arithmetic),
    ]:
        total = lambda s, loss=loss: sum(loss(s, t) for t in teachers).sum() / 3  # noqa: E731
        s = optimum.clone().requires_grad_()
        close(torch.autograd.grad(total(s), s)[0], 0.0, 1e-12)
        close(total(s), residual[loss], 1e-12)
        assert total(other) > residual[loss] + 0.1
        s = torch.zeros(B, T, V, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([s], max_iter=100, line_search_fn="strong_wolfe")
        optimizer.step(lambda: (optimizer.zero_grad(), v := total(s), v.backward())[1])  # noqa: B023
        # 1e-4: where the optimiser stops.
        close(s.softmax(-1), optimum.softmax(-1), 1e-4)


OPTIONS = {"teacher_weight": 0.3, "top_k": 2, "top_k_support": "union"}
ROWS = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": lambda s, t: jensen_shannon(s, t, 0.3),
    "top_k_reverse_kl": top_k("union", k=2),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_table_is_its_function_with_the_settings_of_the_method(name):
    """A setting that does not reach its formula, or a name that stands for another one."""
    s, t = random_logits(29), random_logits(30)
    method = Method(divergence=name, **OPTIONS)
    close(minisd.DIVERGENCES[name](s, t, method), ROWS[name](s, t), 0.0)
    other = minisd.DIVERGENCES[name](s, t, Method(divergence=name, top_k=3))
    assert name in ("forward_kl", "reverse_kl") or not torch.equal(other, ROWS[name](s, t))


def test_log_linear_by_hand():
    """Logits mixed before they are normalised: a shift of one of them would matter."""
    a, b = logits_of(0.8, 0.2) + 5.0, logits_of(0.5, 0.5) - 3.0
    # sqrt(0.8 * 0.5) : sqrt(0.2 * 0.5) = 0.632456 : 0.316228 = 2 : 1
    close(log_linear([a, b], (0.5, 0.5)).softmax(-1), [[[2 / 3, 1 / 3]]])
    # 0.8 / sqrt(0.8) : 0.2 / sqrt(0.2) = sqrt(0.8) : sqrt(0.2) = 2 : 1, a contrast with itself
    close(log_linear([a, a], (1.0, -0.5)).softmax(-1), [[[2 / 3, 1 / 3]]])
    assert log_linear([a], (1.0,)) is a
    close(log_linear([a], (2.0,)).softmax(-1), [[[16 / 17, 1 / 17]]])  # 0.8^2 : 0.2^2


def test_log_linear_of_extreme_logits_is_finite():
    """0 * -inf for a term with coefficient 0, or a token that one term forbids."""
    a = torch.tensor([[[-torch.inf, 1e4, 0.0]]])
    b = torch.tensor([[[1e4, -torch.inf, 0.0]]])
    for coefficients in ((1.0, 0.0), (0.7, 0.3), (0.0, 1.0), (1.0, -0.5), (2.0, -1.0)):
        mixed = log_linear([a, b], coefficients)
        assert mixed.isfinite().all()
        assert reverse_kl(torch.zeros(1, 1, 3), mixed).isfinite().all()
    assert log_linear([a, b], (1.0, 0.0)).argmax().item() == 1


def test_kl_of_log_probabilities_by_hand():
    """The second distribution used as the weight of the logarithms."""
    a, b = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    close(kl(a, b), 0.143841)


# Extreme input ------------------------------------------------------------------------------------


def extreme(case):
    """Student and teacher logits (1, 2, V) of the named kind."""
    s, t = random_logits(31)[:1, :2], random_logits(32)[:1, :2]
    if case == "student 1e4":
        s[..., 0], s[..., 1] = 1e4, -1e4
    elif case == "teacher 1e4":
        t[..., 2], t[..., 0] = 1e4, -1e4
    elif case == "opposite 1e4":
        s[..., 0], t[..., 1] = 1e4, 1e4
    elif case == "student forbids":
        s[..., 3:] = -torch.inf
    elif case == "teacher forbids":
        t[..., :3] = -torch.inf
    elif case == "both forbid the same":
        s[..., 4:], t[..., 4:] = -torch.inf, -torch.inf
    elif case == "nothing in common":
        s[..., 3:], t[..., :3] = -torch.inf, -torch.inf
    elif case == "one token left":
        s[..., 1:], t[..., 1:] = -torch.inf, -torch.inf
    elif case == "one position":
        s, t = s[:, :1], t[:, :1]
    return s, t


CASES = [
    "student 1e4", "teacher 1e4", "opposite 1e4", "student forbids", "teacher forbids",
    "both forbid the same", "nothing in common", "one token left", "one position", "ordinary",
]


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_extreme_logits_give_finite_values_and_gradients(case, dtype, loss):
    """0 * log 0, inf - inf, or an overflow on the way back."""
    s, t = (x.to(dtype) for x in extreme(case))
    s.requires_grad_()
    value = loss(s, t)
    assert value.dtype == torch.float32 and value.isfinite().all(), value
    value.sum().backward()
    assert s.grad.isfinite().all(), s.grad


@pytest.mark.parametrize("name", LOSSES)
def test_equal_extreme_models_are_at_zero(name):
    """A floor that is not the same on both sides."""
    for case in ("student 1e4", "student forbids", "one token left"):
        s, _ = extreme(case)
        close(LOSSES[name](s.float(), s.float()), 0.0, 1e-5)


def test_forbidden_tokens_equal_a_smaller_vocabulary():
    """A floor that leaks mass: forbidding tokens must be the same as not having them."""
    s, t = extreme("both forbid the same")
    for name in ("forward_kl", "reverse_kl", "jensen_shannon", "student_bucket"):
        close(LOSSES[name](s, t), LOSSES[name](s[..., :4], t[..., :4]), 1e-10)
    close(entropy(s), entropy(s[..., :4]), 1e-10)


def test_bfloat16_is_computed_in_float32_and_float64_kept():
    """log_softmax in 8 bits."""
    s, t = random_logits(33, dtype=torch.bfloat16), random_logits(34, dtype=torch.bfloat16)
    close(reverse_kl(s, t), reverse_kl(s.float(), t.float()), 0.0)
    assert reverse_kl(s.half(), t.half()).dtype == torch.float32
    assert reverse_kl(s.double(), t.double()).dtype == torch.float64


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_no_distribution_is_refused_by_name(bad):
    """nan that appears in the weights many steps after its cause."""
    logits = random_logits(35)
    logits[1, 2] = bad
    for call in (log_softmax, entropy, lambda x: reverse_kl(x, random_logits(1))):
        with pytest.raises(FloatingPointError, match="logits: nan, inf or only -inf"):
            call(logits)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda s, t: forward_kl(s, t[:, 1:]), r"teacher_logits: expected \(2, 5, 7\), got \(2, 4"),
        (lambda s, t: reverse_kl(s, t[..., 1:]), "teacher_logits: expected"),
        (lambda s, t: jensen_shannon(s, t[:1]), "teacher_logits: expected"),
        (lambda s, t: jensen_shannon(s, t, 0.0), "teacher_weight: 0.0"),
        (lambda s, t: jensen_shannon(s, t, 1.0), "teacher_weight: 1.0"),
        (lambda s, t: top_k_reverse_kl(s, t, 0), "top_k: 0; allowed: 1 to the vocab.* 7"),
        (lambda s, t: top_k_reverse_kl(s, t, 8), "top_k: 8"),
        (lambda s, t: top_k_reverse_kl(s, t, 2, tail="renormalized"), "tail: 'renormalized'"),
        (lambda s, t: top_k_reverse_kl(s, t, 2, support="both"), "support: 'both'"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, named):
    """Silent broadcasting, a typo that falls back, or a loss that is 0 by construction."""
    with pytest.raises(ValueError, match=named):
        call(random_logits(1), random_logits(2))


# Means --------------------------------------------------------------------------------------------

MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
VALUES = torch.tensor([[1.0, 2.0, 6.0], [5.0, torch.nan, 9.0], [7.0, -8.0, torch.inf]])


def mean(values, counts, reduction="token_mean", limit=4):
    weights, total = REDUCTIONS[reduction](counts.float(), limit)
    return weighted_sum(values, weights) / total.clamp(min=1e-12)  # as in `loss_of`


@pytest.mark.parametrize("reduction, expected, total", [
    ("token_mean", 3.5, 4),  # (1 + 2 + 6 + 5) / 4
    ("sequence_mean", 4.0, 2),  # (3 + 5) / 2: the empty row is no completion
    ("constant", 14 / 12, 12),  # (1 + 2 + 6 + 5) / (3 * 4)
])
def test_reductions_by_hand(reduction, expected, total):
    """A mean over padding, over empty rows, or over rows where tokens are meant."""
    values = VALUES.clone().requires_grad_()
    weights, divisor = REDUCTIONS[reduction](MASK.float(), 4)
    close(divisor, float(total))
    assert weights.shape == MASK.shape and divisor.shape == () and divisor.is_floating_point()
    close(mean(values, MASK, reduction), expected)
    mean(values, MASK, reduction).backward()
    assert (values.grad[~MASK] == 0).all()
    close(values.grad, weights / divisor)


@pytest.mark.parametrize("reduction, expected", [
    ("token_mean", 1.5 / 1.0),  # (0.5 * 1 + 0.25 * 2 + 0 * 6 + 0.25 * 2) / (0.5 + 0.25 + 0.25)
    ("sequence_mean", (4 / 3 + 2) / 2),  # (0.5 * 1 + 0.25 * 2) / 0.75; 2; no third completion
    ("constant", 1.5 / 12),
])
def test_reductions_of_tokens_that_count_in_part_by_hand(reduction, expected):
    """Tokens that are counted as one however little they weigh."""
    counts = torch.tensor([[0.5, 0.25, 0.0], [0.25, 0.0, 0.0], [0.0, 0.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 6.0], [2.0, torch.nan, 9.0], [7.0, -8.0, torch.inf]])
    close(mean(values, counts, reduction), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_of_the_weights_add_up_to_the_whole_mean(reduction):
    """Micro-batches that each divide by their own token count."""
    weights, total = REDUCTIONS[reduction](MASK.float(), 4)
    close(weights.sum() / total, 4 / 12 if reduction == "constant" else 1.0)
    values = VALUES.nan_to_num(posinf=0.0)
    parts = [weighted_sum(values[rows], weights[rows]) / total for rows in ([0], [1, 2])]
    close(sum(parts), mean(values, MASK, reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_sum_of_totals_is_the_total_of_the_union(reduction):
    """Processes whose mean is the mean of their means."""
    values = VALUES.nan_to_num(posinf=0.0)
    pieces = [(values[rows], MASK[rows]) for rows in ([0, 2], [1])]
    sums, totals = [], []
    for part, mask in pieces:
        weights, total = REDUCTIONS[reduction](mask.float(), 4)
        sums.append(weighted_sum(part, weights))
        totals.append(total)
    close(sum(sums) / sum(totals), mean(values, MASK, reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_empty_mask_gives_a_zero_with_a_gradient_path(reduction):
    """0 / 0 in a batch in which no sample has a context."""
    values = VALUES.clone().requires_grad_()
    value = mean(values, torch.zeros_like(MASK), reduction)
    assert value.item() == 0 and value.requires_grad
    value.backward()
    assert (values.grad == 0).all()


def test_masked_rows_of_extreme_logits_do_not_reach_the_gradient():
    """nan * 0 = nan on the way back from a masked-out position."""
    s, t = extreme("nothing in common")
    s.requires_grad_()
    mean(reverse_kl(s, t), torch.tensor([[True, False]])).backward()
    assert s.grad.isfinite().all() and (s.grad[0, 1] == 0).all()
