"""Laws of the losses per completion, checked by summing over every completion of a tiny world."""

import pytest
import torch

from minisd import (
    Completions,
    Prompts,
    Teacher,
    averaged_advantage_surrogate,
    clipped_policy_surrogate,
    comparison_metrics,
    completion_hidden,
    forward_kl,
    future_sum,
    k3_kl,
    masked_mean,
    pad_left,
    reverse_kl,
    sampled_token_surrogate,
    score,
    sequence_level_surrogate,
    token_log_probs,
    top_k_reverse_kl,
)


def assert_same(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def assert_different(a, b):
    """Far apart on the scale of b, so that a law that tells them apart says something."""
    assert (a - b).norm() > 0.02 * b.norm()


def terms(student_logits, teacher_logits, ids):
    return {
        "divergence": reverse_kl(student_logits, teacher_logits),
        "student": token_log_probs(student_logits, ids),
        "teacher": token_log_probs(teacher_logits, ids),
    }


def scored(world, model=None, chosen_terms=terms):
    teacher = Teacher("external", world.student, external=model or world.teacher)
    return score(
        world.student,
        world.prompts,
        world.completions,
        chosen_terms,
        teacher=teacher,
        teacher_prompts=world.teacher_prompts,
    )


def sequence_kl(world):
    """KL(student || teacher) between distributions over whole completions, by its definition."""
    log_p = world.token_log_probs(world.student, world.prompts).sum(1)
    log_q = world.token_log_probs(world.teacher, world.teacher_prompts).sum(1)
    return (log_p.exp() * (log_p - log_q)).sum()


def plain_token_kl(world):
    """KL at every position (N, T) with the plain formula, with gradient."""
    log_p = world.log_probs(world.student, world.prompts)
    log_q = world.log_probs(world.teacher, world.teacher_prompts)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def future_term(world, discount):
    """Gradient of E sum_t sum_{t'>t} discount^(t'-t) sg[KL_t'] log p(y_t), by a double loop."""
    kl, mask = plain_token_kl(world).detach(), world.completions.mask
    log_p = world.token_log_probs(world.student, world.prompts)
    total = torch.zeros_like(log_p)
    for t in range(mask.shape[1]):
        for later in range(t + 1, mask.shape[1]):
            total[:, t] += discount ** (later - t) * kl[:, later] * mask[:, later] * log_p[:, t]
    return world.gradient(world.expected(total))


# The world itself ---------------------------------------------------------------------------------


def test_the_listed_completions_are_all_of_them(world):
    """A sum over part of the space: every law below would be about something else."""
    assert len(world.completions.ids) == 40  # 1 of length 1, 3 of length 2, 9 * 4 of length 3
    assert_same(world.probability().sum(), torch.tensor(1.0, dtype=torch.float64))
    mass = world.token_log_probs(world.teacher, world.teacher_prompts).sum(1).exp().sum()
    assert_same(mass, torch.tensor(1.0, dtype=torch.float64))
    assert sequence_kl(world).item() > 0.1


def test_score_agrees_with_plain_forwards_in_value_and_gradient(world):
    """A teacher that sees the student's prompt, or rows and positions out of order."""
    values, mask = scored(world), world.completions.mask
    expected = {
        "divergence": plain_token_kl(world).masked_fill(~mask, 0.0),
        "student": world.token_log_probs(world.student, world.prompts),
        "teacher": world.token_log_probs(world.teacher, world.teacher_prompts),
    }
    for name, plain in expected.items():
        assert_same(values[name], plain)
    assert not values["teacher"].requires_grad
    for name in ("divergence", "student"):
        value, plain = world.expected(values[name]), world.expected(expected[name])
        assert_same(world.gradient(value), world.gradient(plain))


# Exact expectations of every estimator ------------------------------------------------------------


def test_sequence_kl_is_the_expected_sum_of_token_kls(world):
    """A token KL that leaves out positions, or counts those behind the end."""
    assert_same(world.expected(scored(world)["divergence"]), sequence_kl(world))


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_sequence_level_surrogate_interpolates_from_token_to_sequence(world, discount):
    """A credit sum that includes the own position, stops early, or discounts by one step more."""
    v, mask = scored(world), world.completions.mask
    surrogate = sequence_level_surrogate(v["divergence"], v["student"], mask, discount)
    gradient = world.gradient(world.expected(surrogate))
    token_level = world.gradient(world.expected(plain_token_kl(world)))
    assert_same(gradient, token_level + future_term(world, discount))


def test_discount_1_has_the_exact_gradient_of_the_sequence_kl(world):
    """An estimator that is called unbiased and is not."""
    v, mask = scored(world), world.completions.mask
    surrogate = sequence_level_surrogate(v["divergence"], v["student"], mask, 1.0)
    exact = world.gradient(sequence_kl(world))
    assert_same(world.gradient(world.expected(surrogate)), exact)


def test_discount_0_is_the_token_level_gradient_and_misses_the_future_term(world):
    """The bias of the token-level gradient described by another term than the one it drops."""
    v, mask = scored(world), world.completions.mask
    surrogate = sequence_level_surrogate(v["divergence"], v["student"], mask, 0.0)
    gradient = world.gradient(world.expected(surrogate))
    assert_same(gradient, world.gradient(world.expected(v["divergence"])))
    exact = world.gradient(sequence_kl(world))
    assert_same(exact - gradient, future_term(world, 1.0))
    assert_different(gradient, exact)


def test_sampled_token_surrogate_has_the_token_level_gradient(world):
    """A sign, a missing detach, or the gradient of KL(teacher || student) instead."""
    v = scored(world)
    surrogate = sampled_token_surrogate(v["student"], v["teacher"])
    gradient = world.gradient(world.expected(surrogate))
    assert_same(gradient, world.gradient(world.expected(plain_token_kl(world))))
    other = scored(world, chosen_terms=lambda s, t, ids: {"kl": forward_kl(s, t)})["kl"]
    assert_different(world.gradient(world.expected(other)), gradient)


def test_averaged_advantage_surrogate_has_the_gradient_of_its_formula(world):
    """Tokens weighted one by one, a sum instead of the mean, or padding in the mean."""
    v, mask = scored(world), world.completions.mask
    surrogate = averaged_advantage_surrogate(v["student"], v["teacher"], mask)
    gradient = world.gradient(world.expected(surrogate))
    log_p = world.token_log_probs(world.student, world.prompts).sum(1)
    log_q = world.token_log_probs(world.teacher, world.teacher_prompts).sum(1)
    advantage = (log_q - log_p).detach() / mask.sum(1)
    assert_same(gradient, world.gradient((world.probability() * -advantage * log_p).sum()))
    assert_different(gradient, world.gradient(sequence_kl(world)))


@pytest.mark.parametrize("support", ["student", "teacher", "union", "intersection"])
def test_naive_top_k_adds_the_gradient_of_the_mass_in_the_support(world, support):
    """The leak of the naive variant, absent or in the stop-gradient variant as well."""
    k = 2

    def top_k_terms(s, t, ids):
        log_p, top = s.log_softmax(-1), lambda x: x.topk(k).indices
        ours, theirs = (
            torch.zeros_like(s, dtype=torch.bool).scatter(-1, top(x), True) for x in (s, t)
        )
        inside = {
            "student": ours,
            "teacher": theirs,
            "union": ours | theirs,
            "intersection": ours & theirs,
        }[support]
        return {
            "naive": top_k_reverse_kl(s, t, k, support=support, tail="naive"),
            "stopped": top_k_reverse_kl(s, t, k, support=support, tail="stop_gradient"),
            "mass": log_p.exp().masked_fill(~inside, 0.0).sum(-1),
        }

    v = scored(world, chosen_terms=top_k_terms)
    naive, stopped, mass = (
        world.gradient(world.expected(v[n])) for n in ("naive", "stopped", "mass")
    )
    assert_same(naive, stopped + mass)
    assert_different(naive, stopped)


def test_bucket_at_the_whole_vocabulary_is_the_full_kl(world):
    """A bucket that is counted although nothing is left for it."""
    bucket = scored(
        world,
        chosen_terms=lambda s, t, ids: {"kl": top_k_reverse_kl(s, t, s.shape[-1], tail="bucket")},
    )["kl"]
    assert_same(world.expected(bucket), sequence_kl(world))
    exact = world.gradient(world.expected(plain_token_kl(world)))
    assert_same(world.gradient(world.expected(bucket)), exact)


def test_likelihood_of_the_teachers_samples_has_the_gradient_of_the_forward_sequence_kl(world):
    """Imitation that is weighted by the student, or cut off before the end token."""
    log_p = world.token_log_probs(world.student, world.prompts).sum(1)
    log_q = world.token_log_probs(world.teacher, world.teacher_prompts).sum(1)
    exact = world.gradient((log_q.exp() * (log_q - log_p)).sum())
    loss = -scored(world)["student"].sum(1)
    assert_same(world.gradient((log_q.exp() * loss).sum()), exact)


def test_k3_is_an_unbiased_kl_with_the_gradient_of_the_other_direction(world):
    """Student and reference exchanged, or a gradient believed to be that of the value."""
    log_p = world.log_probs(world.student, world.prompts)
    log_r = world.log_probs(world.reference, world.prompts).detach()
    ids = world.completions.ids
    k3 = k3_kl(token_log_probs(log_p, ids), token_log_probs(log_r, ids))
    assert (k3 >= 0).all()
    student_first = world.expected((log_p.exp() * (log_p - log_r)).sum(-1))
    reference_first = world.expected((log_r.exp() * (log_r - log_p)).sum(-1))
    assert_same(world.expected(k3), student_first)
    gradient = world.gradient(world.expected(k3))
    assert_same(gradient, world.gradient(reference_first))
    assert_different(gradient, world.gradient(student_first))


def test_policy_surrogate_has_the_exact_gradient_of_the_expected_reward(world):
    """A sign, or a ratio that is not 1 when the sampling weights are the current ones."""
    log_p = world.token_log_probs(world.student, world.prompts)
    reward = (world.completions.ids * world.completions.mask).sum(1).double()
    surrogate = clipped_policy_surrogate(log_p, log_p.detach(), reward)
    exact = world.gradient((log_p.sum(1).exp() * reward).sum())
    assert_same(world.gradient(world.expected(surrogate)), -exact)


# The same surrogates by hand ----------------------------------------------------------------------


def test_future_sum_by_hand():
    """The own position included, or the mask ignored."""
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, torch.nan, 8.0]])
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    for discount, expected in [
        (0.0, [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        (0.5, [[3.0, 4.0, 4.0, 0.0], [1.0, 0.0, 0.0, 0.0]]),  # 2/2 + 4/4 + 8/8; 4/2 + 8/4; 8/2
        (1.0, [[14.0, 12.0, 8.0, 0.0], [2.0, 0.0, 0.0, 0.0]]),
    ]:
        assert_same(future_sum(values, mask, discount), torch.tensor(expected))


def test_surrogate_gradients_by_hand():
    """A detach on the wrong factor, invisible in the value."""
    log_p = torch.tensor([[-1.0, -2.0, -9.0]], requires_grad=True)
    log_q = torch.tensor([[-1.5, -0.5, -4.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    masked_mean(sampled_token_surrogate(log_p, log_q), mask).backward()
    assert_same(log_p.grad, torch.tensor([[0.25, -0.75, 0.0]]), 1e-6)  # (log p - log q) / 2 tokens
    log_p.grad = None
    masked_mean(averaged_advantage_surrogate(log_p, log_q, mask), mask).backward()
    # A = ((-1.5 + 1) + (-0.5 + 2)) / 2 = 0.5, spread over 2 tokens.
    assert_same(log_p.grad, torch.tensor([[-0.25, -0.25, 0.0]]), 1e-6)
    log_p.grad = None
    kl = torch.tensor([[0.3, 0.7, 5.0]], requires_grad=True)
    masked_mean(sequence_level_surrogate(kl, log_p, mask, 1.0), mask).backward()
    assert_same(log_p.grad, torch.tensor([[0.35, 0.0, 0.0]]), 1e-6)  # the 0.7 that follows / 2
    assert_same(kl.grad, torch.tensor([[0.5, 0.5, 0.0]]), 1e-6)
    assert log_q.grad is None


@pytest.mark.parametrize("case", ["1e4 apart", "one token", "empty mask", "garbage in padding"])
def test_extreme_log_probs_give_finite_surrogates(case):
    """inf - inf, a mean over no tokens, or padding that reaches the loss."""
    log_p = torch.tensor([[-0.1, -1e5, -2.0], [-1e5, -0.5, -3.0]])
    log_q = torch.tensor([[-1e5, -0.1, -1e4], [-1e5, -1e5, -0.2]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    if case == "one token":
        log_p, log_q, mask = log_p[:1, :1], log_q[:1, :1], mask[:1, :1]
    elif case == "empty mask":
        mask[1] = False
        mask[0] = False
    elif case == "garbage in padding":
        mask[0, 1:], log_p[0, 1:], log_q[0, 1] = False, 1e30, -1e30
    log_p.requires_grad_()
    kl = (log_p.detach() - log_q).abs()
    for values in (
        sampled_token_surrogate(log_p, log_q),
        averaged_advantage_surrogate(log_p, log_q, mask),
        sequence_level_surrogate(kl, log_p, mask, 1.0),
    ):
        loss = masked_mean(values, mask)
        (gradient,) = torch.autograd.grad(loss, log_p)
        assert loss.isfinite() and gradient.isfinite().all() and (gradient[~mask] == 0).all()


@pytest.mark.parametrize("discount", [-0.1, 1.1])
def test_a_discount_out_of_range_is_refused_by_name(discount):
    """A discount above 1, whose weights explode with the length."""
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=f"discount: {discount}"):
        sequence_level_surrogate(x, x, x == 0, discount)


# Scoring a batch ----------------------------------------------------------------------------------

STUDENT_PROMPTS = [[4, 2, 6], [9, 3], [5], [7, 7, 3, 10]]  # B=4
CONTEXTS = [[8, 1], [8, 1, 3, 3, 2], [8], []]


def small_batch(pad_id=0):
    """Prompts, teacher prompts and completions (T=5) of rows that differ in every length."""
    ids = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(5) < torch.tensor([5, 2, 0, 3])[:, None]
    return (
        Prompts(*pad_left(STUDENT_PROMPTS, pad_id)),
        Prompts(*pad_left([c + p for c, p in zip(CONTEXTS, STUDENT_PROMPTS)], pad_id)),
        Completions(ids.masked_fill(~mask, pad_id), mask, torch.zeros(4, 5)),
    )


def score_small(student, teacher, chosen_terms=terms, pad_id=0, **options):
    prompts, teacher_prompts, completions = small_batch(pad_id)
    return score(
        student,
        prompts,
        completions,
        chosen_terms,
        teacher=teacher,
        teacher_prompts=teacher_prompts,
        **options,
    )


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("kind", ["external", "trust_region", "live"])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 10, 99])
def test_chunked_score_equals_unchunked_in_value_and_gradient(make_gpt, kind, chunk_tokens):
    """Chunks out of order, a lost last chunk, or head weights without their gradient."""
    student = make_gpt(1)
    external = make_gpt(2) if kind == "external" else None
    teacher = Teacher(kind, student, external=external, update_rate=0.4)
    whole = score_small(student, teacher)
    chunked = score_small(student, teacher, chunk_tokens=chunk_tokens)
    for name in whole:
        assert_same(chunked[name], whole[name])
    if kind == "live":  # the prompts differ, so even the same weights have something to say
        assert whole["divergence"].max() > 0.01
    losses = [v["divergence"].sum() + v["student"].sum() for v in (whole, chunked)]
    for a, b in zip(*(gradients(loss, student) for loss in losses)):
        assert_same(a, b)


def test_scores_are_zero_outside_the_mask_and_ignore_padding(make_gpt):
    """Padding, of prompts or completions, that is scored."""
    student, teacher = make_gpt(1), Teacher("external", make_gpt(1), external=make_gpt(2))
    values = score_small(student, teacher, lambda s, t, ids: terms(s, t, ids))
    *_, completions = small_batch()
    for name, value in score_small(student, teacher, pad_id=10).items():
        assert_same(value, values[name])
        assert (value[~completions.mask] == 0).all() and (value[completions.mask] != 0).all()


def test_teacher_gets_no_gradient_and_the_student_all_of_it(make_gpt):
    """A teacher that moves with the student, or a student that is trained through its context."""
    student, external = make_gpt(1), make_gpt(2)
    values = score_small(student, Teacher("external", student, external=external))
    (values["divergence"].sum() + values["teacher"].sum()).backward()
    assert all(p.grad is None for p in external.parameters())
    assert all(p.grad.abs().max() > 0 for p in student.parameters())
    # A live teacher has the student's own weights: the gradient must be that of a frozen copy.
    live, frozen = (
        gradients(score_small(student, Teacher(k, student))["divergence"].sum(), student)
        for k in ("live", "frozen")
    )
    for a, b in zip(live, frozen):
        assert_same(a, b)


@pytest.mark.parametrize("chunk_tokens", [0, 4])
def test_a_live_teacher_builds_no_graph(make_gpt, chunk_tokens):
    """Activations of the teacher kept for nothing, or teacher logits that train the student."""
    student, grad_modes, teacher_grads = make_gpt(1), [], []
    student.norm.register_forward_hook(lambda *_: grad_modes.append(torch.is_grad_enabled()))

    def recording_terms(s, t, ids):
        teacher_grads.append(t.requires_grad)
        return terms(s, t, ids)

    score_small(student, Teacher("live", student), recording_terms, chunk_tokens=chunk_tokens)
    assert grad_modes == [True, False]  # the student's forward, then the teacher's
    assert teacher_grads and not any(teacher_grads)


def test_a_bfloat16_model_is_scored_in_float32(make_gpt):
    """Losses that are rounded to 8 bits on their way out of the score."""
    student = make_gpt(1, dtype=torch.bfloat16)
    values = score_small(student, Teacher("frozen", student))
    assert all(value.dtype == torch.float32 for value in values.values())
    sum(value.sum() for value in values.values()).backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())


def test_equal_teacher_and_prompts_have_no_divergence(make_gpt):
    """A teacher forward that differs from the student's: the start-up check would never hold."""
    student = make_gpt(1)
    prompts, _, completions = small_batch()
    values = score(
        student,
        prompts,
        completions,
        lambda s, t, ids: comparison_metrics(s, t) | {"entropy": -token_log_probs(t, ids)},
        teacher=Teacher("frozen", student),
        teacher_prompts=prompts,
    )
    assert values["reverse_kl"].abs().max() < 1e-12 and values["forward_kl"].abs().max() < 1e-12
    assert (values["top_k_overlap"][completions.mask] == 1).all()


def test_score_without_a_teacher_and_without_any_token(make_gpt):
    """A supervised step that needs a teacher, or a crash on a batch that is masked out whole."""
    student = make_gpt(1, dtype=torch.float32)
    prompts, _, completions = small_batch()
    only_student = lambda s, t, ids: {"nll": -token_log_probs(s, ids)}  # noqa: E731
    values = score(student, prompts, completions, only_student)["nll"]
    states = completion_hidden(student, prompts.ids, prompts.pad_count, completions.ids)
    plain = -token_log_probs(student.head(states), completions.ids)
    assert_same(values, plain.masked_fill(~completions.mask, 0.0), 1e-5)
    nothing = Completions(completions.ids, completions.mask & False, completions.token_log_probs)
    for chunk_tokens in (0, 2):
        values = score(student, prompts, nothing, only_student, chunk_tokens=chunk_tokens)["nll"]
        loss = masked_mean(values, nothing.mask)
        loss.backward()
        assert loss.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in student.parameters())
