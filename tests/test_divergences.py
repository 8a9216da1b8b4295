"""Laws of the divergences per position and of the masked means that reduce them."""

import math

import pytest
import torch
import torch.nn.functional as F

from minisd import (
    SUPPORTS,
    TAILS,
    clipped_forward_kl,
    comparison_metrics,
    entropy,
    forward_kl,
    jensen_shannon,
    log_softmax,
    masked_mean,
    reverse_kl,
    token_log_probs,
    token_part,
    token_weights,
    top_k_overlap,
    top_k_reverse_kl,
)

B, T, V, K = 2, 5, 7, 3


def top_k(support, tail, k=K):
    return lambda s, t: top_k_reverse_kl(s, t, k, support=support, tail=tail)


LOSSES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": lambda s, t: jensen_shannon(s, t, 0.3),
    "clipped_forward_kl": lambda s, t: clipped_forward_kl(s, t, 0.05),
    **{f"{u}_{a}": top_k(u, a) for u in SUPPORTS for a in TAILS},
}
# Zero for equal models and never negative; the others are not divergences, or not of all tokens.
PROPER = [n for n in LOSSES if n.endswith(("_kl", "shannon", "bucket")) and "clipped" not in n]

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


def test_clipped_forward_kl_value_by_hand():
    """Negative entries clamped too, or the sum clamped instead of its entries."""
    p, q = logits_of(1 / 2, 1 / 2), logits_of(1 / 4, 3 / 4)
    close(clipped_forward_kl(p, q, 0.1), -0.073287)  # 1/4 ln(1/2) + min(0.304099, 0.1)
    close(clipped_forward_kl(p, q, 0.4), 0.130812)  # nothing to clip: forward KL


P3, Q3 = (0.5, 0.3, 0.2), (0.3, 0.2, 0.5)


@pytest.mark.parametrize(
    "support, tail, k, expected",
    [
        ("student", "naive", 1, 0.255413),  # 0.5 ln(0.5/0.3)
        ("student", "stop_gradient", 1, 0.255413),
        ("student", "bucket", 1, 0.087177),  # 0.255413 + 0.5 ln(0.5/0.7) = 0.255413 - 0.168236
        ("teacher", "naive", 1, -0.183258),  # 0.2 ln(0.2/0.5)
        ("teacher", "bucket", 1, 0.192745),  # -0.183258 + 0.8 ln(0.8/0.5) = -0.183258 + 0.376003
        ("union", "naive", 1, 0.072155),  # 0.255413 - 0.183258
        ("intersection", "naive", 1, 0.0),  # the two best tokens differ: nothing in common
        ("student", "naive", 2, 0.377052),  # 0.255413 + 0.3 ln(0.3/0.2) = 0.255413 + 0.121640
        # p' = (0.625, 0.375), q' = (0.6, 0.4): 0.625 ln(0.625/0.6) + 0.375 ln(0.375/0.4)
        ("student", "renormalised", 2, 0.001312),  # 0.025514 - 0.024202
        ("intersection", "naive", 2, 0.255413),  # {0, 1} and {2, 0} share token 0
    ],
)
def test_top_k_values_by_hand(support, tail, k, expected):
    """The wrong model's top k, or a tail that is dropped, doubled or divided by the wrong mass."""
    value = top_k_reverse_kl(logits_of(*P3), logits_of(*Q3), k, support=support, tail=tail)
    close(value, expected)


def test_entropy_and_overlap_by_hand():
    """Bits instead of nats; an overlap divided by V or counted twice."""
    close(entropy(logits_of(1 / 2, 1 / 4, 1 / 4)), 1.5 * math.log(2))
    for k, expected in [(1, 0.0), (2, 0.5), (3, 1.0)]:
        close(top_k_overlap(logits_of(*P3), logits_of(*Q3), k), expected)


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
        if tail == "renormalised":
            a, b = a / a.sum(), b / b.sum()
        log_a = a.log().detach() if tail == "stop_gradient" else a.log()
        value = (a * (log_a - b.log())).sum()
        if tail == "bucket" and len(inside) < V:
            value = value + rest_a * (rest_a / rest_b).log()
        rows.append(value)
    return torch.stack(rows).view(B, T)


def plain_clipped(s, t):
    p, q = s.softmax(-1), t.softmax(-1)
    return torch.minimum(q * (q / p).log(), torch.tensor(0.05, dtype=q.dtype)).sum(-1)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("forward_kl", "reverse_kl")])
def test_values_and_gradients_agree_with_plain_autograd_of_the_formula(name):
    """A detach too many or too few, or a masked token that still gets a gradient."""
    s, t = random_logits(3).requires_grad_(), random_logits(4)
    if name == "jensen_shannon":
        p, q = s.softmax(-1), t.softmax(-1)
        m = 0.3 * q + 0.7 * p
        plain = (0.3 * q * (q / m).log() + 0.7 * p * (p / m).log()).sum(-1)
    elif name == "clipped_forward_kl":
        plain = plain_clipped(s, t)
    else:
        plain = plain_top_k(s, t, *name.split("_", 1))
    value = LOSSES[name](s, t)
    close(value, plain, 1e-10)
    weights = random_logits(5)[..., 0]
    gradients = [torch.autograd.grad((x * weights).sum(), s)[0] for x in (value, plain)]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", [n for n in LOSSES if not n.endswith("stop_gradient")])
def test_gradcheck_in_the_student(name):
    """A gradient that is not the derivative of the value (stop_gradient: not meant to be)."""
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


@pytest.mark.parametrize("name", PROPER)
def test_divergences_are_zero_for_equal_models_and_positive_otherwise(name):
    """A sign, or a support that differs between two equal models."""
    s, t = random_logits(16), random_logits(17)
    close(LOSSES[name](s, s + 2.0), 0.0, 1e-12)
    if "intersection" not in name:  # an empty intersection is 0 whatever the models
        assert (LOSSES[name](s, t) > 1e-4).all()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("support", SUPPORTS)
def test_top_k_of_the_whole_vocabulary_is_the_reverse_kl(support, tail):
    """A tail that still counts when no token is left outside."""
    s, t = random_logits(18).requires_grad_(), random_logits(19)
    exact, value = reverse_kl(s, t), top_k_reverse_kl(s, t, V, support=support, tail=tail)
    close(value, exact, 1e-10)
    gradients = [torch.autograd.grad(x.sum(), s)[0] for x in (value, exact)]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)


@pytest.mark.parametrize("support", SUPPORTS)
def test_naive_top_k_gradient_has_the_mass_of_the_support_on_top(support):
    """The leak described as the other way round, or cured in the naive variant too."""
    s, t = random_logits(20).requires_grad_(), random_logits(21)
    naive, stopped = (top_k(support, tail)(s, t) for tail in ("naive", "stop_gradient"))
    close(naive, stopped, 1e-12)
    tops = [torch.zeros(B, T, V).scatter(-1, x.topk(K).indices, 1.0) > 0 for x in (s, t)]
    inside = {
        "student": tops[0],
        "teacher": tops[1],
        "union": tops[0] | tops[1],
        "intersection": tops[0] & tops[1],
    }[support]
    mass = s.softmax(-1).masked_fill(~inside, 0.0).sum(-1)
    naive, stopped, mass = (torch.autograd.grad(x.sum(), s)[0] for x in (naive, stopped, mass))
    torch.testing.assert_close(naive, stopped + mass, atol=1e-12, rtol=0)
    # Descent on the extra term alone lowers every logit inside and raises every one outside.
    assert (mass[inside] >= 0).all() and (mass[~inside] <= 0).all() and mass.abs().max() > 0.01


def test_bucket_is_never_above_the_full_kl():
    """A coarsened distribution cannot be told apart better than the full one."""
    s, t = random_logits(22), random_logits(23)
    assert (top_k("student", "bucket")(s, t) <= reverse_kl(s, t) + 1e-12).all()
    finer, coarser = top_k("student", "bucket", 4)(s, t), top_k("student", "bucket", 2)(s, t)
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


def test_a_clamped_entry_gives_no_gradient():
    """A clip that scales the gradient instead of dropping the entry."""
    p, q = logits_of(0.9, 0.1).requires_grad_(), logits_of(0.1, 0.9)
    # The one positive entry is clamped; what is left is q_0 ln(q_0/p_0), whose gradient in the
    # logits is -q_0 (onehot_0 - p) = -0.1 * (0.1, -0.1).
    clipped_forward_kl(p, q, 0.5).sum().backward()
    close(p.grad, [[[-0.01, 0.01]]])


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


def test_comparison_metrics_are_detached_and_right():
    """Diagnostics that train the student, or directions exchanged in the log."""
    s, t = random_logits(29).requires_grad_(), random_logits(30)
    metrics = comparison_metrics(s, t, k=K)
    assert not any(value.requires_grad for value in metrics.values())
    assert all(value.shape == (B, T) for value in metrics.values())
    close(metrics["forward_kl"], forward_kl(s, t).detach(), 1e-12)
    close(metrics["reverse_kl"], reverse_kl(s, t).detach(), 1e-12)
    close(metrics["teacher_entropy"], torch.distributions.Categorical(logits=t).entropy(), 1e-12)
    assert 0 < metrics["top_k_overlap"].mean() < 1


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
    *("student 1e4", "teacher 1e4", "opposite 1e4", "student forbids", "teacher forbids"),
    *("both forbid the same", "nothing in common", "one token left", "one position", "bfloat16"),
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


@pytest.mark.parametrize("name", PROPER)
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


def test_renormalised_stays_inside_a_support_that_the_teacher_forbids():
    """A teacher without mass in S whose renormalisation leaks out of S."""
    s = torch.tensor([[[3.0, 2.0, 0.0, 0.0]]], dtype=torch.float64)
    t = torch.tensor([[[-torch.inf, -torch.inf, 0.0, 0.0]]], dtype=torch.float64)
    # The floor makes the teacher uniform on the two tokens of S: ln 2 - H(0.731059, 0.268941).
    close(top_k("student", "renormalised", 2)(s, t), 0.110944)  # 0.693147 - 0.582203


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
        with pytest.raises(ValueError, match="logits: nan, inf or only -inf"):
            call(logits)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda s, t: forward_kl(s, t[:, 1:]), r"teacher_logits: expected \(2, 5, 7\), got \(2, 4"),
        (lambda s, t: reverse_kl(s, t[..., 1:]), "teacher_logits: expected"),
        (lambda s, t: jensen_shannon(s, t[:1]), "teacher_logits: expected"),
        (lambda s, t: jensen_shannon(s, t, 0.0), "teacher_weight: 0.0"),
        (lambda s, t: jensen_shannon(s, t, 1.0), "teacher_weight: 1.0"),
        (lambda s, t: clipped_forward_kl(s, t, 0.0), "clip: 0.0"),
        (lambda s, t: top_k_reverse_kl(s, t, 0), "top_k: 0; allowed: 1 to the vocabulary size 7"),
        (lambda s, t: top_k_reverse_kl(s, t, 8), "top_k: 8"),
        (lambda s, t: top_k_reverse_kl(s, t, 1, tail="renormalised"), "identically 0"),
        (lambda s, t: top_k_reverse_kl(s, t, 2, tail="renormalized"), "tail: 'renormalized'"),
        (lambda s, t: top_k_reverse_kl(s, t, 2, support="both"), "support: 'both'"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, named):
    """Silent broadcasting, a typo that falls back, or a loss that is 0 by construction."""
    with pytest.raises(ValueError, match=named):
        call(random_logits(1), random_logits(2))


# Masks and reductions -----------------------------------------------------------------------------

MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
VALUES = torch.tensor([[1.0, 2.0, 6.0], [5.0, torch.nan, 9.0], [7.0, -8.0, torch.inf]])


@pytest.mark.parametrize(
    "reduction, max_tokens, expected",
    [
        ("token_mean", None, 3.5),  # (1 + 2 + 6 + 5) / 4
        ("sequence_mean", None, 4.0),  # (3 + 5) / 2: the empty row is no completion
        ("constant", 4, 14 / 12),  # (1 + 2 + 6 + 5) / (3 * 4)
    ],
)
def test_reductions_by_hand(reduction, max_tokens, expected):
    """A mean over padding, over empty rows, or over rows where tokens are meant."""
    values = VALUES.clone().requires_grad_()
    mean = masked_mean(values, MASK, reduction, max_tokens)
    close(mean, expected)
    mean.backward()
    assert (values.grad[~MASK] == 0).all()
    close(values.grad, token_weights(MASK, reduction, max_tokens))


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_slices_of_token_weights_sum_to_one(reduction):
    """Micro-batches that each divide by their own token count."""
    weights = token_weights(MASK, reduction)
    close(weights.sum(), 1.0)
    values = VALUES.nan_to_num(posinf=0.0)
    parts = [(values[rows] * weights[rows]).sum() for rows in ([0], [1, 2])]
    close(sum(parts), masked_mean(values, MASK, reduction))


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
def test_an_empty_mask_gives_a_zero_with_a_gradient_path(reduction):
    """0 / 0 in a batch in which no sample has a context."""
    values = VALUES.clone().requires_grad_()
    mean = masked_mean(values, torch.zeros_like(MASK), reduction, max_tokens=4)
    assert mean.item() == 0
    mean.backward()
    assert (values.grad == 0).all()


def test_masked_rows_of_extreme_logits_do_not_reach_the_gradient():
    """nan * 0 = nan on the way back from a masked-out position."""
    s, t = extreme("nothing in common")
    s.requires_grad_()
    mask = torch.tensor([[True, False]])
    masked_mean(reverse_kl(s, t), mask).backward()
    assert s.grad.isfinite().all() and (s.grad[0, 1] == 0).all()


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((VALUES[:2], MASK), r"mask: expected \(2, 3\), got \(3, 3\)"),
        ((VALUES, MASK, "mean"), "reduction: 'mean'"),
        ((VALUES, MASK, "constant"), "max_tokens: None"),
        ((VALUES, MASK, "constant", 0), "max_tokens: 0"),
    ],
)
def test_bad_reductions_are_refused_by_name(arguments, named):
    """Silent broadcasting of a mask, or a typo that falls back to another mean."""
    with pytest.raises(ValueError, match=named):
        masked_mean(*arguments)


def test_token_part_takes_its_share_of_every_row():
    """Catches a share of the padded width instead of the row, and a part at the wrong end."""
    mask = torch.arange(10) < torch.tensor([10, 3, 1, 0])[:, None]
    for part, first_row in (
        ("first", [0, 1, 2]), ("last", [7, 8, 9]), ("spread", [2, 5, 9])
    ):  # fmt: skip
        kept = token_part(mask, 0.3, part)
        assert kept[0].nonzero()[:, 0].tolist() == first_row
        assert kept.sum(1).tolist() == [3, 1, 1, 0]  # rounded up: 0.9 -> 1, 0.3 -> 1
        assert not (kept & ~mask).any()
        assert torch.equal(token_part(mask, 1.0, part), mask)
    with pytest.raises(ValueError, match="token_part: 'middle'; allowed: first, last, spread"):
        token_part(mask, 0.3, "middle")
