"""Laws of the rows that lab/extra_losses.py adds to the tables: tails, clips, credit, parts."""

import random

import pytest
import torch
from test_divergences import (
    CASES,
    B,
    K,
    T,
    V,
    close,
    extreme,
    logits_of,
    plain_top_k,
    random_logits,
    top_k,
)
from tiny import batch_of

import minisd
from lab.extra_losses import (
    ERROR_PARTS,
    PARTS,
    TAILS,
    averaged_advantage_surrogate,
    bregman_clipped_forward_kl,
    clipped_forward_kl,
    scattered,
    token_part,
)
from lab.measures.errors import first_wrong_token
from minisd import (
    SUPPORTS,
    Batch,
    Completions,
    Method,
    Prompts,
    Row,
    Sizes,
    forward_kl,
    is_top,
    reverse_kl,
    score,
    top_k_reverse_kl,
    weighted_sum,
)
from toy_tasks import END_ID, PAD_ID, Example, Problem, decode, encode, other_digit

P3, Q3 = (0.5, 0.3, 0.2), (0.3, 0.2, 0.5)
LOSSES = {f"{u}_{a}": top_k(u, a) for u in SUPPORTS for a in TAILS}
CLIPS = {"clipped_forward_kl": clipped_forward_kl,
         "bregman_clipped_forward_kl": bregman_clipped_forward_kl}
LOSSES |= {name: lambda s, t, f=f: f(s, t, 0.05) for name, f in CLIPS.items()}
every_loss = pytest.mark.parametrize("name", LOSSES)


# Tails of the top k, and clips --------------------------------------------------------------------


@pytest.mark.parametrize("support, tail, k, expected", [
    ("student", "naive", 1, 0.255413),  # 0.5 ln(0.5/0.3)
    ("student", "stop_gradient", 1, 0.255413),
    ("teacher", "naive", 1, -0.183258),  # 0.2 ln(0.2/0.5)
    ("union", "naive", 1, 0.072155),  # 0.255413 - 0.183258
    ("intersection", "naive", 1, 0.0),  # the two best tokens differ: nothing in common
    ("student", "naive", 2, 0.377052),  # 0.255413 + 0.3 ln(0.3/0.2) = 0.255413 + 0.121640
    # p' = (0.625, 0.375), q' = (0.6, 0.4): 0.625 ln(0.625/0.6) + 0.375 ln(0.375/0.4)
    ("student", "renormalised", 2, 0.001312),  # 0.025514 - 0.024202
    ("intersection", "naive", 2, 0.255413),  # {0, 1} and {2, 0} share token 0
])
def test_tails_by_hand(support, tail, k, expected):
    """The wrong model's top k, or a tail that is dropped, doubled or divided by the wrong mass."""
    close(top_k_reverse_kl(logits_of(*P3), logits_of(*Q3), k, support=support, tail=tail), expected)


def test_clipped_forward_kl_value_by_hand():
    """Negative entries clamped too, or the sum clamped instead of its entries."""
    p, q = logits_of(1 / 2, 1 / 2), logits_of(1 / 4, 3 / 4)
    close(clipped_forward_kl(p, q, 0.1), -0.073287)  # 1/4 ln(1/2) + min(0.304099, 0.1)
    close(clipped_forward_kl(p, q, 0.4), 0.130812)  # nothing to clip: forward KL


def test_bregman_clipped_forward_kl_value_by_hand():
    """The mass put back with the wrong sign, or after the clip instead of before it."""
    p, q = logits_of(1 / 2, 1 / 2), logits_of(1 / 4, 3 / 4)
    # 1/4 ln(1/2) + 1/4 = 0.076713, and 3/4 ln(3/2) - 1/4 = 0.054099.
    close(bregman_clipped_forward_kl(p, q, 0.06), 0.114099)
    close(bregman_clipped_forward_kl(p, q, 0.05), 0.1)
    close(bregman_clipped_forward_kl(p, q, 0.4), 0.130812)  # nothing to clip: forward KL


def plain_clipped(s, t, name):
    p, q = s.softmax(-1), t.softmax(-1)
    entries = q * (q / p).log() + ("bregman" in name) * (p - q)
    return torch.minimum(entries, torch.tensor(0.05, dtype=q.dtype)).sum(-1)


@every_loss
def test_losses_agree_with_plain_autograd_of_the_formula(name):
    """A detach too many or too few, or a masked token that still gets a gradient."""
    s, t = random_logits(3).requires_grad_(), random_logits(4)
    plain = plain_clipped(s, t, name) if name in CLIPS else plain_top_k(s, t, *name.split("_", 1))
    value = LOSSES[name](s, t)
    close(value, plain, 1e-10)
    weights = random_logits(5)[..., 0]
    gradients = [torch.autograd.grad((x * weights).sum(), s)[0] for x in (value, plain)]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", [n for n in LOSSES if not n.endswith("stop_gradient")])
def test_gradcheck_of_losses(name):
    """A gradient that is not the derivative of the value (stop_gradient: not meant to be)."""
    s, t = random_logits(6).requires_grad_(), random_logits(7)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, t), (s,))


@every_loss
def test_losses_give_one_value_per_position_and_train_the_student_alone(name):
    """A reduction inside a loss, or a teacher that is trained."""
    s, t = random_logits(9).requires_grad_(), random_logits(10).requires_grad_()
    value = LOSSES[name](s, t)
    assert value.shape == (B, T)
    value.sum().backward()
    assert t.grad is None and s.grad.abs().max() > 1e-3


@every_loss
def test_losses_know_neither_logit_shifts_nor_the_order_of_rows_and_tokens(name):
    """A formula on unnormalised logits, or values that mix positions or depend on token ids."""
    s, t, shift = random_logits(11), random_logits(12), random_logits(13)[..., :1]
    value = LOSSES[name](s, t)
    close(LOSSES[name](s + 40 * shift, t - 9 * shift), value, 1e-10)
    close(LOSSES[name](s.flip(0, 1), t.flip(0, 1)), value.flip(0, 1), 1e-12)
    close(LOSSES[name](s.flip(2), t.flip(2)), value, 1e-12)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("support", SUPPORTS)
def test_tails_of_the_whole_vocabulary_are_the_reverse_kl(support, tail):
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


def test_renormalised_stays_inside_a_support_that_the_teacher_forbids():
    """A teacher without mass in S whose renormalisation leaks out of S."""
    s = torch.tensor([[[3.0, 2.0, 0.0, 0.0]]], dtype=torch.float64)
    t = torch.tensor([[[-torch.inf, -torch.inf, 0.0, 0.0]]], dtype=torch.float64)
    # The floor makes the teacher uniform on the two tokens of S: ln 2 - H(0.731059, 0.268941).
    close(top_k("student", "renormalised", 2)(s, t), 0.110944)  # 0.693147 - 0.582203


def test_a_clamped_entry_gives_no_gradient():
    """A clip that scales the gradient instead of dropping the entry."""
    p, q = logits_of(0.9, 0.1).requires_grad_(), logits_of(0.1, 0.9)
    # The one positive entry is clamped; what is left is q_0 ln(q_0/p_0), whose gradient in the
    # logits is -q_0 (onehot_0 - p) = -0.1 * (0.1, -0.1).
    clipped_forward_kl(p, q, 0.5).sum().backward()
    close(p.grad, [[[-0.01, 0.01]]])


def descent(loss, p, q, clip):
    """Minus the gradient in the student's logits."""
    logits = logits_of(*p).requires_grad_()
    return -torch.autograd.grad(loss(logits, logits_of(*q), clip).sum(), logits)[0][0, 0]


def test_the_published_clip_turns_the_direction_round_and_the_other_one_does_not():
    """A repaired clip that is the published one, and a docstring that says what is not so."""
    p, q = (0.5, 0.4, 0.1), (0.6, 0.3, 0.1)  # the teacher wants more of the first token
    # 0.6 ln(0.6/0.5) = 0.109 is clamped: U = {1, 2}, sum_U q = 0.4.
    close(descent(clipped_forward_kl, p, q, 0.05), [-0.5 * 0.4, 0.3 - 0.4 * 0.4, 0.1 - 0.1 * 0.4])
    # As a Bregman entry it is 0.0094: nothing is clamped, and the direction is q - p.
    close(descent(bregman_clipped_forward_kl, p, q, 0.05), [0.1, -0.1, 0.0])
    # 0.6 ln(0.6/0.3) - 0.3 = 0.116 is clamped, 0.2 ln(0.2/0.35) + 0.15 = 0.038 is not: U = {1, 2},
    # sum_U (p - q) = 0.3. The clamped logit still rises, by 0.3 * 0.3.
    p, q, other = (0.3, 0.35, 0.35), (0.6, 0.2, 0.2), -0.15 + 0.35 * 0.3
    close(descent(bregman_clipped_forward_kl, p, q, 0.05), [0.09, other, other])
    assert descent(clipped_forward_kl, p, q, 0.05)[0] < -0.1


def test_the_published_clip_can_be_below_zero_and_the_other_one_cannot():
    """Entries that are no divergence of their own."""
    p, q = logits_of(0.01, 0.99), logits_of(0.9, 0.1)
    close(clipped_forward_kl(p, q, 0.05), 0.05 - 0.229253)  # 0.1 ln(0.1/0.99)
    values = bregman_clipped_forward_kl(random_logits(31), random_logits(32), 0.05)
    assert (values > 0).all() and (values <= V * 0.05).all()
    close(bregman_clipped_forward_kl(p, p, 0.05), 0.0)


@pytest.mark.parametrize("name", CLIPS)
def test_the_row_of_a_clip_takes_it_from_the_method(name):
    """A setting that does not reach its formula."""
    s, t = random_logits(29), random_logits(30)
    for clip in (0.02, 0.5):
        method = Method(divergence=name, clip=clip)
        close(minisd.DIVERGENCES[name](s, t, method), CLIPS[name](s, t, clip), 0.0)
    close(CLIPS[name](s, t, 1e9), forward_kl(s, t), 1e-12)
    with pytest.raises(ValueError, match=r"clip: 0\.0"):
        CLIPS[name](s, t, 0.0)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_losses_of_extreme_logits_give_finite_values_and_gradients(case, dtype, name):
    """0 * log 0, inf - inf, or an overflow on the way back."""
    s, t = (x.to(dtype) for x in extreme(case))
    s.requires_grad_()
    value = LOSSES[name](s, t)
    assert value.dtype == torch.float32 and value.isfinite().all(), value
    value.sum().backward()
    assert s.grad.isfinite().all(), s.grad


@pytest.mark.parametrize("support", ["student", "teacher", "intersection"])
def test_renormalising_a_single_token_is_refused(support):
    """A loss that is 0 by construction."""
    row = minisd.DIVERGENCES["top_k_reverse_kl"]
    settings = {"top_k_tail": "renormalised", "top_k_support": support}
    with pytest.raises(ValueError, match="allowed: 2 or more"):
        row(random_logits(1), random_logits(2), Method(top_k=1, **settings))
    row(random_logits(1), random_logits(2), Method(top_k=2, **settings))
    settings["top_k_support"] = "union"
    row(random_logits(1), random_logits(2), Method(top_k=1, **settings))


def test_renormalising_two_tokens_is_never_refused():
    """A check of the logits instead of the setting: training stops at the first unlucky batch."""
    s, t = logits_of(*P3), logits_of(*Q3)  # {0, 1} and {2, 0} share token 0
    close(top_k("intersection", "renormalised", 2)(s, t), 0.0)
    close(top_k("union", "renormalised", 1)(s, s), 0.0)


# Averaged credit ----------------------------------------------------------------------------------


def scored(world, **settings):
    terms = [(1.0, world.teacher, world.teacher_prompts)]
    # A credit that needs both leaves the gradient of both to the tests.
    method = Method(**{"credit": "sequence", **settings})
    return score(method, world.student, terms, world.batch())


@pytest.mark.parametrize("support", SUPPORTS)
def test_in_expectation_naive_adds_the_gradient_of_the_mass(world, support, monkeypatch):
    """The leak of the naive variant, absent or in the stop-gradient variant as well."""

    def mass(s, t, method):
        ours, theirs = (is_top(x.detach(), method.top_k) for x in (s, t))
        inside = SUPPORTS[method.top_k_support](ours, theirs)
        return s.softmax(-1).masked_fill(~inside, 0.0).sum(-1)

    monkeypatch.setitem(minisd.DIVERGENCES, "mass", mass)
    settings = {"divergence": "top_k_reverse_kl", "top_k": 2, "top_k_support": support}
    naive, stopped, mass = (
        world.gradient(world.expected(scored(world, **settings | change)["divergence"]))
        for change in ({"top_k_tail": "naive"}, {"top_k_tail": "stop_gradient"},
                       {"divergence": "mass"})
    )
    close(naive, stopped + mass, 1e-10)
    assert (naive - stopped).norm() > 0.02 * stopped.norm()


def test_averaged_credit_has_the_gradient_of_its_formula(world):
    """Tokens weighted one by one, a sum instead of the mean, or padding in the mean."""
    v, mask = scored(world), world.completions.mask
    loss = minisd.CREDITS["averaged"](v, Method(credit="averaged"))
    gradient = world.gradient(world.expected(loss))
    log_p = world.token_log_probs(world.student, world.prompts).sum(1)
    log_q = world.token_log_probs(world.teacher, world.teacher_prompts).sum(1)
    advantage = (log_q - log_p).detach() / mask.sum(1)
    close(gradient, world.gradient((world.probability() * -advantage * log_p).sum()), 1e-10)
    sequence_kl = world.gradient((log_p.exp() * (log_p - log_q)).sum())
    assert (gradient - sequence_kl).norm() > 0.02 * sequence_kl.norm()


def mean(values, mask):
    weights, total = minisd.REDUCTIONS["token_mean"](mask.float(), 1)
    return weighted_sum(values, weights) / total.clamp(min=1e-12)  # as in `loss_of`


def test_averaged_credit_by_hand():
    """A detach on the wrong factor, invisible in the value."""
    log_p = torch.tensor([[-1.0, -2.0, -9.0]], requires_grad=True)
    log_q = torch.tensor([[-1.5, -0.5, -4.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    mean(averaged_advantage_surrogate(log_p, log_q, mask), mask).backward()
    # A = ((-1.5 + 1) + (-0.5 + 2)) / 2 = 0.5, spread over 2 tokens.
    close(log_p.grad, [[-0.25, -0.25, 0.0]])
    assert log_q.grad is None


@pytest.mark.parametrize("case", ["1e4 apart", "one token", "empty mask", "garbage in padding"])
def test_averaged_credit_of_extreme_log_probs_is_finite(case):
    """inf - inf, a mean over no tokens, or padding that reaches the loss."""
    log_p = torch.tensor([[-0.1, -1e5, -2.0], [-1e5, -0.5, -3.0]])
    log_q = torch.tensor([[-1e5, -0.1, -1e4], [-1e5, -1e5, -0.2]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    if case == "one token":
        log_p, log_q, mask = log_p[:1, :1], log_q[:1, :1], mask[:1, :1]
    elif case == "empty mask":
        mask[:] = False
    elif case == "garbage in padding":
        mask[0, 1:], log_p[0, 1:], log_q[0, 1] = False, 1e30, -1e30
    log_p.requires_grad_()
    loss = mean(averaged_advantage_surrogate(log_p, log_q, mask), mask)
    (gradient,) = torch.autograd.grad(loss, log_p)
    assert loss.isfinite() and gradient.isfinite().all() and (gradient[~mask] == 0).all()


# Parts of a completion ----------------------------------------------------------------------------

LENGTHS = torch.arange(10) < torch.tensor([10, 3, 1, 0])[:, None]
FIRST_ROW = {"first": [0, 1, 2], "last": [7, 8, 9], "spread": [2, 5, 9]}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_takes_its_share_of_every_row(part):
    """A share of the padded width instead of the row, and a part at the wrong end."""
    kept = token_part(LENGTHS, 0.3, part)
    assert kept[0].nonzero()[:, 0].tolist() == FIRST_ROW[part]
    assert kept.sum(1).tolist() == [3, 1, 1, 0]  # rounded up: 0.9 -> 1, 0.3 -> 1
    assert not (kept & ~LENGTHS).any()
    assert torch.equal(token_part(LENGTHS, 1.0, part), LENGTHS)


def test_an_unknown_part_is_refused_by_name():
    """A typo that falls back to another part."""
    with pytest.raises(ValueError, match="'middle'; allowed: first, last, spread"):
        token_part(LENGTHS, 0.3, "middle")


@pytest.mark.parametrize("part", PARTS)
def test_token_weights_take_their_share_from_the_method(part):
    """A row that ignores the share, or weighs padding."""
    rows = Completions.of([[2] * 10, [2] * 3], 0)
    prompts = Prompts.of([[1]] * 2, 0)
    for share in (0.3, 0.8):
        method = Method(token_weights=part, token_share=share)
        weights = minisd.TOKEN_WEIGHTS[part](batch_of(prompts, prompts, rows), None, method)
        assert torch.equal(weights > 0, token_part(rows.mask, share, part))
    for share in (0.0, 1.5):
        method = Method(token_weights=part, token_share=share)
        with pytest.raises(ValueError, match=f"--token_share: {share}; allowed: above 0, to 1"):
            minisd.TOKEN_WEIGHTS[part](batch_of(prompts, prompts, rows), None, method)


# Before and after an error ------------------------------------------------------------------------

EXAMPLE = Example(Problem.parse("3*7+4"))
CHECKED, RIGHT = "3*7+4=2; wait 3*7=1; 1+4=5; answer 5", "wait 3*7=1; 1+4=5; answer 5"
SLIP, GUESS = "wait 3*7=8; 8+4=2; answer 2", "answer 9"


def batch_of_texts(texts: list[str], example=EXAMPLE) -> Batch:
    rows = [Row(example, {}, [*encode(text), END_ID], text=text) for text in texts]
    completions = Completions.of([row.ids for row in rows], PAD_ID)
    return Batch(rows, {}, completions, torch.zeros(len(rows)), Sizes())


def weights_by_error(part: str, batch: Batch) -> torch.Tensor:
    return minisd.TOKEN_WEIGHTS[part](batch, None, Method(token_weights=part))


@pytest.mark.parametrize("text, place", [(CHECKED, 6), (SLIP, 5), (GUESS, 1), (RIGHT, None)])
def test_parts_by_error_are_cut_at_the_first_wrong_token(text, place):
    """A token in two parts or in none, and a part of another row's error."""
    batch = batch_of_texts([RIGHT, text, GUESS])
    before, error, until, after = (
        weights_by_error(part, batch)[1] > 0
        for part in ("before_error", "error_token", "until_error", "after_error")
    )
    mask = batch.completions.mask[1]
    assert error.nonzero()[:, 0].tolist() == ([] if place is None else [place])
    assert before.sum() == (mask.sum() if place is None else place)
    assert torch.equal(before | error, until) and torch.equal(until | after, mask)
    assert not (before & error).any() and not (until & after).any()


def test_a_glance_counts_as_wrong_although_it_is_checked():
    """A first error that is looked for among the steps that stand at the end alone."""
    assert decode(encode(CHECKED)[:7]) == "3*7+4=2" and first_wrong_token(EXAMPLE, CHECKED) == 6
    assert first_wrong_token(EXAMPLE, CHECKED.replace("+4=2", "+4=5")) is None
    slip = CHECKED.replace("+4=2", "+4=5").replace("1+4=5", "1+4=6").replace("r 5", "r 6")
    assert decode(encode(slip)[: first_wrong_token(EXAMPLE, slip) + 1]).endswith("1+4=6")


def test_the_rule_of_an_example_is_one_more_right_step():
    """A right rule that is called a step too many, and a forgotten one that is called right."""
    example = Example(Problem.parse("3*7"), rule=3)
    assert first_wrong_token(example, "3*7=1; 1+3=4; answer 4") is None
    assert first_wrong_token(example, "3*7=1; answer 1") == 7
    assert first_wrong_token(example, "3*7=1; 1+3=5; answer 5") == 10


def test_errors_are_found_in_the_completion_whatever_it_was_padded_with():
    """Places in the text that are taken for places among the ids."""
    text = f"{GUESS}"
    row = Row(EXAMPLE, {}, [PAD_ID, PAD_ID, *encode(text), END_ID], text=text)
    batch = Batch([row], {}, Completions.of([row.ids], PAD_ID), torch.zeros(1), Sizes())
    assert weights_by_error("error_token", batch)[0].tolist() == [0, 0, 0, 1, 0]


def test_scattered_tokens_are_as_many_and_without_period():
    """Another number of tokens, padding, or every other token: operands alone of every step."""
    batch = batch_of_texts([CHECKED, RIGHT, SLIP, GUESS, CHECKED])
    until, control = (
        weights_by_error(part, batch) > 0 for part in ("until_error", "until_error_scattered")
    )
    assert torch.equal(until.sum(1), control.sum(1))
    assert not (control & ~batch.completions.mask).any()
    assert torch.equal(control[1], until[1])  # nothing wrong: all of it
    assert not torch.equal(control[0], control[4]) and not torch.equal(control[0], until[0])
    mask = torch.ones(200, 24, dtype=torch.bool)
    kept = scattered(mask, torch.full((200, 1), 8))
    assert (kept.sum(1) == 8).all()
    shares = kept.float().mean(0)  # of every place over many rows: 1/3
    assert shares.min() > 0.25 and shares.max() < 0.42
    by_phase = kept.view(200, 4, 6).float().mean((0, 1))  # a single step has 6 tokens
    assert by_phase.min() > 0.3 and by_phase.max() < 0.37


def test_rows_by_error_differ_from_one_another_where_something_is_wrong():
    """A row that falls through to another one; an untrained model writes no step to be wrong."""
    rng = random.Random(0)
    problems = [Problem((2, 5, d), "+-") for d in (0, 1, 3, 4)]
    rows = []
    for problem in problems:
        first, last = problem.values
        seen = other_digit(rng, last)
        text = f"wait {problem.text}={seen}; wait 2+5={first}; {first}-{problem.digits[2]}={last}; "
        rows += batch_of_texts([f"{text}answer {last}"], Example(problem)).rows
    batch = Batch(rows, {}, Completions.of([r.ids for r in rows], PAD_ID), torch.zeros(4), Sizes())
    found = {part: weights_by_error(part, batch) for part in ("all", *ERROR_PARTS)}
    assert len({tuple((w > 0).flatten().tolist()) for w in found.values()}) == len(found) == 6


@pytest.mark.parametrize("part", ERROR_PARTS)
def test_parts_by_error_are_refused_for_another_task(part):
    """Steps that are looked for in any text: nothing is wrong, and all of it is distilled."""
    batch = batch_of_texts([RIGHT], example={"prompt": "3*7+4"})
    with pytest.raises(ValueError, match=f"--token_weights: '{part}'; allowed: another; it reads"):
        weights_by_error(part, batch)
