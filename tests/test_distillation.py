"""Laws of credit and of the score, checked by summing over every completion of a tiny world."""

import dataclasses
import gc

import pytest
import torch
from tiny import batch_of, move

import minisd
from minisd import (
    REDUCTIONS,
    Completions,
    Method,
    Prompts,
    Teacher,
    clipped_policy_surrogate,
    completion_hidden,
    entropy,
    forward_kl,
    future_sum,
    k3_kl,
    loss_of,
    reverse_kl,
    sampled_token_surrogate,
    score,
    sequence_level_surrogate,
    token_log_probs,
    weighted_sum,
)


def assert_same(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def assert_different(a, b):
    """Far apart on the scale of b, so that a law that tells them apart says something."""
    assert (a - b).norm() > 0.02 * b.norm()


def mean(values, mask):
    weights, total = REDUCTIONS["token_mean"](mask.float(), 1)
    return weighted_sum(values, weights) / total.clamp(min=1e-12)  # as in `loss_of`


def scored(world, **settings):
    terms = [(1.0, world.teacher, world.teacher_prompts)]
    # A credit that needs both leaves the gradient of both to the tests.
    method = Method(**{"credit": "sequence", **settings})
    return score(method, world.student, terms, world.batch())


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
        "student_log_probs": world.token_log_probs(world.student, world.prompts),
        "teacher_log_probs": world.token_log_probs(world.teacher, world.teacher_prompts),
    }
    assert values.keys() == {*expected, "mask"} and torch.equal(values["mask"], mask)
    for name, plain in expected.items():
        assert_same(values[name], plain)
    assert not values["teacher_log_probs"].requires_grad
    for name in ("divergence", "student_log_probs"):
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
    surrogate = sequence_level_surrogate(v["divergence"], v["student_log_probs"], mask, discount)
    gradient = world.gradient(world.expected(surrogate))
    token_level = world.gradient(world.expected(plain_token_kl(world)))
    assert_same(gradient, token_level + future_term(world, discount))


def test_discount_1_has_the_exact_gradient_of_the_sequence_kl(world):
    """An estimator that is called unbiased and is not."""
    v, mask = scored(world), world.completions.mask
    surrogate = sequence_level_surrogate(v["divergence"], v["student_log_probs"], mask, 1.0)
    exact = world.gradient(sequence_kl(world))
    assert_same(world.gradient(world.expected(surrogate)), exact)


def test_discount_0_is_the_token_level_gradient_and_misses_the_future_term(world):
    """The bias of the token-level gradient described by another term than the one it drops."""
    v, mask = scored(world), world.completions.mask
    surrogate = sequence_level_surrogate(v["divergence"], v["student_log_probs"], mask, 0.0)
    gradient = world.gradient(world.expected(surrogate))
    assert_same(gradient, world.gradient(world.expected(v["divergence"])))
    exact = world.gradient(sequence_kl(world))
    assert_same(exact - gradient, future_term(world, 1.0))
    assert_different(gradient, exact)


def test_sampled_token_surrogate_has_the_token_level_gradient(world):
    """A sign, a missing detach, or the gradient of KL(teacher || student) instead."""
    v = scored(world)
    surrogate = sampled_token_surrogate(v["student_log_probs"], v["teacher_log_probs"])
    gradient = world.gradient(world.expected(surrogate))
    assert_same(gradient, world.gradient(world.expected(plain_token_kl(world))))
    other = scored(world, divergence="forward_kl")["divergence"]
    assert_different(world.gradient(world.expected(other)), gradient)


def test_bucket_at_the_whole_vocabulary_is_the_full_kl(world):
    """A bucket that is counted although nothing is left for it."""
    bucket = scored(world, divergence="top_k_reverse_kl", top_k=4)["divergence"]
    assert_same(world.expected(bucket), sequence_kl(world))
    exact = world.gradient(world.expected(plain_token_kl(world)))
    assert_same(world.gradient(world.expected(bucket)), exact)


def test_likelihood_of_the_teachers_samples_has_the_gradient_of_the_forward_sequence_kl(world):
    """Imitation that is weighted by the student, or cut off before the end token."""
    log_p = world.token_log_probs(world.student, world.prompts).sum(1)
    log_q = world.token_log_probs(world.teacher, world.teacher_prompts).sum(1)
    exact = world.gradient((log_q.exp() * (log_q - log_p)).sum())
    loss = -scored(world)["student_log_probs"].sum(1)
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
    surrogate = clipped_policy_surrogate(log_p, log_p.detach(), reward[:, None])
    exact = world.gradient((log_p.sum(1).exp() * reward).sum())
    assert_same(world.gradient(world.expected(surrogate)), -exact)


@pytest.mark.parametrize("credit, exact", [
    ("token", plain_token_kl), ("sampled", plain_token_kl), ("sequence", sequence_kl)])
def test_rows_of_credit_have_the_gradient_that_their_name_says(world, credit, exact):
    """Credits exchanged in the table, or the discount of the method not passed on."""
    v = scored(world, credit=credit)
    value = exact(world)
    exact_gradient = world.gradient(world.expected(value) if value.dim() else value)
    loss = minisd.CREDITS[credit](v, Method(credit=credit))
    assert_same(world.gradient(world.expected(loss)), exact_gradient)
    other = minisd.CREDITS[credit](v, Method(credit=credit, discount=0.0))
    assert (credit == "sequence") != torch.equal(other, loss)


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
    mean(sampled_token_surrogate(log_p, log_q), mask).backward()
    assert_same(log_p.grad, torch.tensor([[0.25, -0.75, 0.0]]), 1e-6)  # (log p - log q) / 2 tokens
    log_p.grad = None
    kl = torch.tensor([[0.3, 0.7, 5.0]], requires_grad=True)
    mean(sequence_level_surrogate(kl, log_p, mask, 1.0), mask).backward()
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
        sequence_level_surrogate(kl, log_p, mask, 1.0),
    ):
        loss = mean(values, mask)
        (gradient,) = torch.autograd.grad(loss, log_p)
        assert loss.isfinite() and gradient.isfinite().all() and (gradient[~mask] == 0).all()


# Scoring a batch ----------------------------------------------------------------------------------

STUDENT_PROMPTS = [[4, 2, 6], [9, 3], [5], [7, 7, 3, 10]]  # B=4
CONTEXTS = [[8, 1], [8, 1, 3, 3, 2], [8], []]


def small_batch(pad_id=0, **sizes):
    """Prompts, teacher prompts and completions (T=5) of rows that differ in every length."""
    ids = torch.randint(11, (4, 5), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(5) < torch.tensor([5, 2, 0, 3])[:, None]
    return batch_of(
        Prompts.of(STUDENT_PROMPTS, pad_id),
        Prompts.of([c + p for c, p in zip(CONTEXTS, STUDENT_PROMPTS)], pad_id),
        Completions(ids.masked_fill(~mask, pad_id), mask, torch.zeros(4, 5)), **sizes)


def score_small(student, teacher, pad_id=0, readings=None, **sizes):
    batch = small_batch(pad_id, **sizes)
    return score(teacher.method, student, teacher.terms(batch.shown), batch, readings)


def external(student, other, **settings):
    return Teacher(Method(teacher="external", **settings), student, external=other)


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()))


TARGETS = {
    "external": {"teacher": "external"},
    "live": {"teacher": "live"},
    "trust_region": {"teacher": "trust_region", "teacher_update_rate": 0.4},
    "contrast": {"target": ((1.0, "ema", "solution"), (-0.5, "frozen", "none"))},
    "three terms": {"target": ((0.5, "external", "solution"), (0.8, "live", "none"),
                               (-0.3, "snapshot", "solution")), "teacher_every": 1},
}
every_target = pytest.mark.parametrize("settings", TARGETS.values(), ids=TARGETS)


def moved_teacher(make_gpt, settings):
    """A student and a teacher whose copies all have other weights than it and one another."""
    student, method = make_gpt(1), Method(**{"teacher_update_rate": 0.4, **settings})
    other = make_gpt(2) if "external" in str(settings) else None
    teacher = Teacher(method, student, external=other)
    for n in (1, 2):
        move(student, n)
        teacher.update(n)
    return student, teacher


@every_target
@pytest.mark.parametrize("chunk_tokens", [1, 4, 10, 99])
def test_chunked_score_equals_unchunked_in_value_and_gradient(make_gpt, settings, chunk_tokens):
    """Chunks out of order, a lost last chunk, or head weights without their gradient."""
    student, teacher = moved_teacher(make_gpt, settings)
    readings = {"entropy": lambda s, t: entropy(s)}
    whole = score_small(student, teacher, readings=readings)
    chunked = score_small(student, teacher, readings=readings, chunk_tokens=chunk_tokens)
    for name in whole:
        assert_same(chunked[name], whole[name])
    # The prompts differ, so even the same weights have something to say.
    assert whole["divergence"].max() > 0.01
    losses = [v["divergence"].sum() + v["student_log_probs"].sum() for v in (whole, chunked)]
    for a, b in zip(*(gradients(loss, student) for loss in losses)):
        assert_same(a, b)


@every_target
def test_a_teacher_of_several_terms_is_their_normalised_sum(make_gpt, settings):
    """A term that is lost, weighted twice, or shown another's prompt; a sum that is not 1."""
    student, teacher = moved_teacher(make_gpt, settings)
    batch = small_batch()
    v, mask, ids = score_small(student, teacher), batch.completions.mask, batch.completions.ids
    s = student.lm_head(completion_hidden(student, batch.shown["none"], ids))
    total = 0
    for a, weights, context in teacher.method.terms:
        model = student if weights == "live" else teacher.copies[weights]
        logits = model.lm_head(completion_hidden(model, batch.shown[context], ids))
        total = total + a * logits.log_softmax(-1)
    log_q, log_p = total.log_softmax(-1).detach(), s.log_softmax(-1)
    assert_same(v["teacher_log_probs"], token_log_probs(log_q, ids).masked_fill(~mask, 0.0))
    plain = (log_p.exp() * (log_p - log_q)).sum(-1).masked_fill(~mask, 0.0)
    assert_same(v["divergence"], plain)
    for a, b in zip(gradients(v["divergence"].sum(), student), gradients(plain.sum(), student)):
        assert_same(a, b)


def test_scores_are_zero_outside_the_mask_and_ignore_padding(make_gpt):
    """Padding, of prompts or completions, that is scored."""
    student, teacher = make_gpt(1), external(make_gpt(1), make_gpt(2))
    mask, values = small_batch().completions.mask, score_small(student, teacher)
    for name, value in score_small(student, teacher, pad_id=10).items():
        assert_same(value, values[name])
        assert (value[~mask] == 0).all() and (value[mask] != 0).all()


def test_teacher_gets_no_gradient_and_the_student_all_of_it(make_gpt):
    """A teacher that moves with the student, or a student that is trained through its context."""
    student, other = make_gpt(1), make_gpt(2)
    values = score_small(student, external(student, other))
    (values["divergence"].sum() + values["teacher_log_probs"].sum()).backward()
    assert all(p.grad is None for p in other.parameters())
    assert all(p.grad.abs().max() > 0 for p in student.parameters())
    # A live teacher has the student's own weights: the gradient must be that of a frozen copy.
    live, frozen = (
        gradients(score_small(student, Teacher(Method(teacher=t), student))["divergence"].sum(),
                  student)
        for t in ("live", "frozen")
    )
    for a, b in zip(live, frozen):
        assert_same(a, b)


@pytest.mark.parametrize("chunk_tokens", [0, 4])
def test_a_live_teacher_builds_no_graph(make_gpt, chunk_tokens, monkeypatch):
    """Activations of the teacher kept for nothing, or teacher logits that train the student."""
    student, grad_modes, teacher_grads = make_gpt(1), [], []
    student.norm.register_forward_hook(lambda *_: grad_modes.append(torch.is_grad_enabled()))

    def recording(s, t, method):
        teacher_grads.append(t.requires_grad)
        return reverse_kl(s, t)

    monkeypatch.setitem(minisd.DIVERGENCES, "recording", recording)
    teacher = Teacher(Method(teacher="live", divergence="recording"), student)
    score_small(student, teacher, chunk_tokens=chunk_tokens)
    assert grad_modes == [True, False]  # the student's forward, then the teacher's
    assert teacher_grads and not any(teacher_grads)


@pytest.mark.parametrize("chunk_tokens", [0, 4])
def test_readings_have_no_graph_and_are_those_of_the_functions(make_gpt, chunk_tokens):
    """A reading that trains the student, keeps its logits, or sees student and teacher swapped."""
    student, teacher = make_gpt(1), external(make_gpt(1), make_gpt(2))
    readings = {"forward": forward_kl, "first": lambda s, t: s[..., 0] - 2 * t[..., 1]}
    values = score_small(student, teacher, readings=readings, chunk_tokens=chunk_tokens)
    assert not any(values[name].requires_grad for name in readings)
    batch = small_batch()
    mask, ids = batch.completions.mask, batch.completions.ids
    with torch.no_grad():
        s = student.lm_head(completion_hidden(student, batch.shown["none"], ids))
        model = teacher.copies["external"]
        t = model.lm_head(completion_hidden(model, batch.shown["solution"], ids))
        for name, read in readings.items():
            assert_same(values[name], read(s, t).masked_fill(~mask, 0.0))


def test_a_pure_policy_gradient_has_no_gradient_path_through_the_teacher(make_gpt):
    """Logits of the divergence, which no loss uses, kept until the backward pass."""
    for weight in (0.5, 1.0):
        student, method = make_gpt(1), Method(reward_weight=weight)
        values = score_small(student, Teacher(method, student))
        assert values["student_log_probs"].requires_grad
        assert values["divergence"].requires_grad == (weight < 1)


@pytest.mark.parametrize("settings", [
    {}, {"credit": "sampled"}, {"credit": "sequence"}, {"kl_coef": 0.1},
    {"reward_weight": 0.5}, {"reward_weight": 1.0},
], ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what gc comes across in torch
def test_chunks_hold_the_logits_of_one_chunk_at_a_time(make_gpt, settings):
    """Logits of all chunks alive together in the backward pass: --chunk_tokens saves nothing."""
    student, method, V, chunk = make_gpt(1, vocab_size=301), Method(**settings), 301, 3
    teacher, rows = Teacher(method, student), Completions.of([[2] * 30] * 2, 0)
    shown = Prompts.of([[1, 2]] * 2, 0), Prompts.of([[3, 1, 2]] * 2, 0)
    batch = batch_of(*shown, rows, chunk_tokens=chunk)
    ones, total = torch.ones(2, 30), torch.tensor(60.0)
    batch.weights = {"distillation": ones, "policy": ones, "advantages": ones}
    batch.totals = {"distillation": total, "policy": total}
    x = score(method, student, teacher.terms(batch.shown), batch)
    x["reference_log_probs"] = x["student_log_probs"].detach() - 0.1
    loss, calls = loss_of(method, x, batch), []

    def alive():
        tensors = (o for o in gc.get_objects() if type(o) is torch.Tensor)
        return sum(o.shape[-2:] == (chunk, V) for o in tensors)

    def at_the_last_chunk(*_):
        calls.append(alive() if len(calls) == 19 else 0)

    before = alive()
    student.lm_head.register_forward_hook(at_the_last_chunk)
    loss.backward()
    assert len(calls) == 20  # every chunk is computed again
    assert calls[-1] - before < 8  # of one chunk, whatever the number of chunks


def test_a_bfloat16_model_is_scored_in_float32(make_gpt):
    """Losses that are rounded to 8 bits on their way out of the score."""
    student = make_gpt(1, dtype=torch.bfloat16)
    values = score_small(student, Teacher(Method(), student))
    del values["mask"]
    assert all(value.dtype == torch.float32 for value in values.values())
    sum(value.sum() for value in values.values()).backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())


def test_autocast_scores_in_float32_close_to_the_float32_score(make_gpt):
    """A loss whose logarithms are taken in 8 bits when --dtype is bfloat16."""
    student = make_gpt(1, dtype=torch.float32)
    batch, teacher = small_batch(dtype="bfloat16"), Teacher(Method(), student)
    with batch.sizes.autocast(torch.device("cpu")):
        values = score(teacher.method, student, teacher.terms(batch.shown), batch)
    exact = score_small(student, teacher)
    for name in ("student_log_probs", "teacher_log_probs", "divergence"):
        assert values[name].dtype == torch.float32
        # 0.2: bfloat16 has 8 bits, logits here reach 5.
        assert_same(values[name], exact[name], 0.2)
        assert not torch.equal(values[name], exact[name])


def test_equal_teacher_and_prompts_have_no_divergence(make_gpt):
    """A teacher forward that differs from the student's: the start-up check would never hold."""
    student, batch = make_gpt(1), small_batch()
    terms = [(1.0, student, batch.shown["none"])]
    values = score(Method(), student, terms, batch, {"forward_kl": forward_kl})
    assert values["divergence"].abs().max() < 1e-12 and values["forward_kl"].abs().max() < 1e-12
    assert_same(values["student_log_probs"], values["teacher_log_probs"], 1e-12)


def test_the_student_is_shown_its_own_context(make_gpt):
    """An adapted teacher that learns with prompts without the context that it will be shown."""
    student, batch = make_gpt(1), small_batch()
    method = Method(student_context="solution", context="none", teacher="external")
    values = score(method, student, [(1.0, student, batch.shown["none"])], batch)
    ids, mask = batch.completions.ids, batch.completions.mask
    hinted = student.lm_head(completion_hidden(student, batch.shown["solution"], ids))
    plain = student.lm_head(completion_hidden(student, batch.shown["none"], ids))
    for name, logits in (("student_log_probs", hinted), ("teacher_log_probs", plain)):
        assert_same(values[name], token_log_probs(logits, ids).masked_fill(~mask, 0.0))


def test_score_without_a_teacher_and_without_any_token(make_gpt):
    """A supervised step that needs a teacher, or a crash on a batch that is masked out whole."""
    student, batch = make_gpt(1, dtype=torch.float32), small_batch()
    method = Method(credit="imitation", student_frac=0.0)
    values = score(method, student, [], batch)
    assert values.keys() == {"student_log_probs", "mask"}
    ids, mask = batch.completions.ids, batch.completions.mask
    plain = student.lm_head(completion_hidden(student, batch.shown["none"], ids))
    plain = token_log_probs(plain, ids).masked_fill(~mask, 0.0)
    assert_same(values["student_log_probs"], plain, 1e-5)
    nothing = mask & False
    batch.completions = Completions(ids, nothing, batch.completions.token_log_probs)
    for reduction in REDUCTIONS:
        weights, total = REDUCTIONS[reduction](nothing.float(), 5)
        batch.weights, batch.totals = {"distillation": weights}, {"distillation": total}
        for chunk_tokens in (0, 2):
            batch.sizes = dataclasses.replace(batch.sizes, chunk_tokens=chunk_tokens)
            loss = loss_of(method, score(method, student, [], batch), batch)
            loss.backward()
            assert loss.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in student.parameters())
