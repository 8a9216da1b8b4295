"""Laws of sampling, of left padding, and of the one shift between states and targets."""

import pytest
import torch
import torch.nn.functional as F
from tiny import move

import minisd
from minisd import (
    Completions,
    Method,
    Prompts,
    Teacher,
    completion_hidden,
    pick_token,
    sample,
    token_log_probs,
)

PROMPTS = [[4, 2, 6], [9, 3, 5, 2, 8], [6], [7, 7, 3, 10], [2, 9]]  # B=5, P=5
HINTED = [[8, *prompt] if len(prompt) > 2 else [3, 1, 1, *prompt] for prompt in PROMPTS]
PAD, END = 0, 1
LENGTH = 12


def draw(model, prompts=PROMPTS, seed=0, extra_padding=0, pad_id=PAD, **options):
    shown = Prompts.of(prompts, pad_id)
    ids = F.pad(shown.ids, (extra_padding, 0), value=pad_id)
    return draw_from([(1.0, model, Prompts(ids, shown.pad_count + extra_padding))], seed=seed,
                     pad_id=pad_id, **options)


def draw_from(terms, seed=0, pad_id=PAD, **options):
    options = {"max_new_tokens": LENGTH, "end_ids": (END,), **options}
    return sample(terms, pad_id=pad_id, generator=torch.Generator().manual_seed(seed), **options)


def plain_sample(model, seed, temperature):
    """One row at a time, without cache, padding or early exit, from the same uniform numbers."""
    uniforms = torch.rand(5, LENGTH, generator=torch.Generator().manual_seed(seed)) * (1 - 1e-6)
    rows = []
    for prompt, uniform in zip(PROMPTS, uniforms):
        row = []
        while len(row) < LENGTH and END not in row:
            logits = model(torch.tensor([prompt + row]))[:, -1].float()
            u = uniform[len(row)][None]
            row.append(pick_token(logits, u, temperature).item())
        rows.append(row)
    return rows


def rows_of(completions):
    return [ids[mask].tolist() for ids, mask in zip(completions.ids, completions.mask)]


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7, 4.0, 0.0])
def test_cached_sampling_equals_a_plain_loop(make_gpt, temperature):
    """A stale cache, a wrong position, padding that is seen, or rows mixed up when some end."""
    model = make_gpt()
    completions = draw(model, seed=3, temperature=temperature)
    assert rows_of(completions) == plain_sample(model, 3, temperature)


@torch.no_grad()
def test_any_of_several_end_tokens_ends_a_completion(make_gpt):
    """Only the first end token that a chat model has: text behind its turn is scored with it."""
    model, ends = make_gpt(), (END, 4, 7)
    one, several = rows_of(draw(model, seed=3)), rows_of(draw(model, seed=3, end_ids=ends))
    for longer, row in zip(one, several):
        first = min((longer.index(end) for end in ends if end in longer), default=LENGTH)
        assert row == longer[: first + 1]
    assert {row[-1] for row in several} & {4, 7}


@torch.no_grad()
def test_greedy_is_the_argmax_at_every_step(make_gpt):
    """Temperature 0 that divides by zero or still draws."""
    model = make_gpt()
    for prompt, row in zip(PROMPTS, rows_of(draw(model, temperature=0.0))):
        logits = model(torch.tensor([prompt + row]))[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == row


@torch.no_grad()
def test_more_left_padding_or_other_padding_changes_nothing(make_gpt):
    """Texts that depend on the longest prompt of the batch or on the padding token."""
    model = make_gpt()
    expected = draw(model)
    for options in ({"extra_padding": 4}, {"pad_id": 10}):
        other = draw(model, **options)
        assert rows_of(other) == rows_of(expected)
        # 1e-5: rotary angles of shifted positions differ by float32 rounding.
        torch.testing.assert_close(
            other.token_log_probs, expected.token_log_probs, atol=1e-5, rtol=0
        )


@torch.no_grad()
def test_dropping_finished_rows_changes_no_text(make_gpt, monkeypatch):
    """Uniform numbers, masks or caches that belong to another row after some have ended."""
    model = make_gpt(vocab_size=5)  # few tokens: many rows end early
    prompts = [[i % 3 + 2, i % 2 + 2] for i in range(23)]
    results = []
    for every in (1, 2, 3, 1000):
        monkeypatch.setattr(minisd, "CHECK_EVERY", every)
        results.append(draw(model, prompts, temperature=4.0))
    lengths = results[0].mask.sum(1)
    assert (lengths < 4).sum() > 23 / 4  # enough for rows to be dropped more than once
    assert 0 < (lengths > 8).sum() < 23 / 2
    for other in results[1:]:
        assert torch.equal(other.ids, results[0].ids)
        assert torch.equal(other.mask, results[0].mask)
        torch.testing.assert_close(other.token_log_probs, results[0].token_log_probs)


@torch.no_grad()
def test_mask_counts_the_end_token_and_nothing_behind_it(make_gpt):
    """An end token that is never trained, or padding that is."""
    completions = draw(make_gpt(), [[i % 9 + 2] for i in range(17)], temperature=4.0)
    assert 0 < (completions.mask.sum(1) < LENGTH).sum() < 17
    for ids, mask, log_probs in zip(completions.ids, completions.mask, completions.token_log_probs):
        n = int(mask.sum())
        assert mask[:n].all() and not mask[n:].any()
        assert (ids[:n] == END).nonzero().flatten().tolist() in ([], [n - 1])
        assert (ids[n - 1] == END) or n == LENGTH
        assert (ids[n:] == PAD).all() and (log_probs[n:] == 0).all() and (log_probs[:n] < 0).all()
    assert completions.mask.any(0).all()  # no column of padding alone


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"temperature": 3.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampled_log_probs_equal_those_of_the_training_forward(make_gpt, options, dtype):
    """A first importance ratio that is not 1: another temperature, shift or padding in training."""
    model = make_gpt(dtype=dtype)
    completions = draw(model, **options)
    states = completion_hidden(model, Prompts.of(PROMPTS, PAD), completions.ids)
    training = token_log_probs(model.lm_head(states), completions.ids)
    # 1e-4: the cached and the whole forward add in another order, in float32.
    ratio = (training.float() - completions.token_log_probs).exp()[completions.mask]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)


TARGETS = {
    "trust_region": {"teacher": "trust_region", "teacher_update_rate": 0.3},
    "anchor": {"target": ((0.6, "live", "solution"), (0.4, "frozen", "none"))},
    "contrast": {"target": ((1.0, "ema", "solution"), (-0.5, "frozen", "none"))},
}


def mixed_teacher(make_gpt, settings):
    """A teacher of two terms whose weights and prompts all differ, its terms, and plain log Q."""
    student = make_gpt()
    teacher = Teacher(Method(**{"teacher_update_rate": 0.5, **settings}), student)
    move(student, 1, size=0.2)
    teacher.update(1)
    terms = teacher.terms({"none": Prompts.of(PROMPTS, PAD), "solution": Prompts.of(HINTED, PAD)})

    def plain(row: int, completion: list[int]) -> torch.Tensor:
        """log Q (T, V) before every token of a completion, from plain forwards of whole rows."""
        total = 0
        for (a, _, context), (_, model, _) in zip(teacher.method.terms, terms):
            prompt = (PROMPTS if context == "none" else HINTED)[row]
            states = model(torch.tensor([prompt + completion]))[0, len(prompt) - 1 :]
            total = total + a * states.log_softmax(-1)
        return total.log_softmax(-1)

    return terms, plain


@torch.no_grad()
@pytest.mark.parametrize("settings", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_teacher_of_several_terms_samples_from_their_normalised_sum(
    make_gpt, settings, temperature
):
    """Samples of one term alone, of prompts exchanged between terms, or logits not normalised."""
    terms, plain = mixed_teacher(make_gpt, settings)
    completions = draw_from(terms, seed=3, temperature=temperature)
    uniforms = torch.rand(5, LENGTH, generator=torch.Generator().manual_seed(3)) * (1 - 1e-6)
    for i, row in enumerate(rows_of(completions)):
        log_q = plain(i, row)[:-1].float()  # (T, V)
        picked = pick_token(log_q, uniforms[i, : len(row)], temperature)
        assert picked.tolist() == row
        chosen = log_q.gather(1, torch.tensor(row)[:, None])[:, 0]
        # 1e-4: rotary angles and sums of float32.
        torch.testing.assert_close(
            completions.token_log_probs[i, : len(row)], chosen, atol=1e-4, rtol=0)


@torch.no_grad()
def test_terms_of_the_same_model_and_prompts_add_their_coefficients(make_gpt):
    """A coefficient that is lost, or that counts for its first term alone: power 2 is sharper."""
    model, prompts = make_gpt(), Prompts.of(PROMPTS, PAD)
    twice = draw_from([(1.5, model, prompts), (0.5, model, prompts)], seed=3)
    assert torch.equal(twice.ids, draw_from([(2.0, model, prompts)], seed=3).ids)
    assert torch.equal(twice.ids, draw(model, seed=3, temperature=0.5).ids)
    assert not torch.equal(twice.ids[:, 0], draw(model, seed=3).ids[:, 0])


@torch.no_grad()
def test_given_uniform_numbers_decide_the_text(make_gpt):
    """Numbers that are drawn although they are given: paired texts would not be pairs."""
    uniforms = torch.rand(5, LENGTH, generator=torch.Generator().manual_seed(4))
    given = draw(make_gpt(), seed=9, uniforms=uniforms)
    assert torch.equal(given.ids, draw(make_gpt(), seed=4).ids)


@torch.no_grad()
def test_one_token_completions_work(make_gpt):
    """A loop that needs a second step to store the first token."""
    completions = draw(make_gpt(), max_new_tokens=1)
    assert completions.ids.shape == completions.mask.shape == (5, 1) and completions.mask.all()


@torch.no_grad()
def test_tokens_are_chosen_by_the_function_that_is_given(make_gpt):
    """A choice that is made twice, or log-probabilities of what another function would choose."""
    model, seen = make_gpt(), []

    def second_best(logits, uniform, temperature):
        seen.append((uniform, temperature))
        return logits.topk(2).indices[:, 1]

    completions = draw(model, seed=4, temperature=0.7, pick=second_best)
    uniforms = torch.rand(5, LENGTH, generator=torch.Generator().manual_seed(4))
    assert torch.equal(seen[0][0], uniforms[:, 0]) and {t for _, t in seen} == {0.7}
    for i, (prompt, row) in enumerate(zip(PROMPTS, rows_of(completions))):
        logits = model(torch.tensor([prompt + row]))[0, len(prompt) - 1 : -1].float()
        assert logits.topk(2).indices[:, 1].tolist() == row
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(row)[:, None])[:, 0]
        # 1e-4: the cached and the whole forward add in another order, in float32.
        torch.testing.assert_close(
            completions.token_log_probs[i, : len(row)], chosen, atol=1e-4, rtol=0)


def test_a_negative_temperature_is_refused_by_name(make_gpt):
    """A negative temperature that silently samples the least likely tokens."""
    with pytest.raises(ValueError, match=r"temperature: -0\.1; allowed: 0 or more"):
        draw(make_gpt(), temperature=-0.1)


# Drawing one token --------------------------------------------------------------------------------

LOGITS = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.5, 0.0])
DRAWS = 20_000


def frequencies(logits, temperature=1.0):
    uniforms = torch.rand(DRAWS, generator=torch.Generator().manual_seed(7))
    tokens = pick_token(logits.expand(DRAWS, -1), uniforms, temperature)
    return tokens.bincount(minlength=len(logits)) / DRAWS


def assert_within_four_standard_errors(observed, expected):
    standard_error = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((observed - expected).abs() <= 4 * standard_error).all(), (observed, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature):
    """A temperature that multiplies, or acts on probabilities without renormalising."""
    expected = (LOGITS / temperature).softmax(0)
    assert_within_four_standard_errors(frequencies(LOGITS, temperature), expected)


def test_first_sampled_token_follows_the_model(make_gpt):
    """Uniform numbers used twice, or a distribution taken from another position than the last."""
    model, one = make_gpt(), Prompts.of([[4, 2, 6]], PAD)
    many = Prompts(one.ids.expand(DRAWS, 3), one.pad_count.expand(DRAWS))
    completions = draw_from([(1.0, model, many)], max_new_tokens=1)
    observed = completions.ids[:, 0].bincount(minlength=11) / DRAWS
    with torch.no_grad():
        expected = model(one.ids)[0, -1].softmax(0).float()
    assert_within_four_standard_errors(observed, expected)


def test_forbidden_tokens_are_never_drawn():
    """The two ends of the uniform interval landing on a token of probability 0."""
    uniforms = torch.tensor([0.0, 0.3, 0.5, 1 - 2**-24])  # the last: the largest of torch.rand
    for low in (-torch.inf, -1e4):
        logits = torch.tensor([low, 1.0, low, 1.0, low])
        tokens = pick_token(logits.expand(4, -1), uniforms, 1.0)
        assert set(tokens.tolist()) == {1, 3}
        assert pick_token(logits[None], uniforms[:1], 0.0).item() == 1


def test_a_row_without_a_distribution_gives_a_token_and_no_crash():
    """An index of V from nan, which would be an error of the embedding far from its cause."""
    tokens = pick_token(torch.full((2, 5), torch.nan), torch.tensor([0.0, 0.9]), 1.0)
    assert ((tokens >= 0) & (tokens < 5)).all()


# Padding and the shift ----------------------------------------------------------------------------


def test_prompts_by_hand():
    """Padding on the wrong side, or counted per batch instead of per row."""
    prompts = Prompts.of([[5, 6, 7], [8]], pad_id=0)
    assert prompts.ids.tolist() == [[5, 6, 7], [0, 0, 8]] and prompts.pad_count.tolist() == [0, 2]
    with pytest.raises(ValueError, match="prompt: empty"):
        Prompts.of([[5], []], pad_id=0)


def test_completions_by_hand():
    """Padding that counts as written, or log-probabilities of another row."""
    completions = Completions.of([[5, 6, 1], [8]], 0, "cpu", [[-0.5, -1.5, -2.5], [-3.5]])
    assert completions.ids.tolist() == [[5, 6, 1], [8, 0, 0]]
    assert completions.mask.tolist() == [[True] * 3, [True, False, False]]
    assert completions.token_log_probs.tolist() == [[-0.5, -1.5, -2.5], [-3.5, 0.0, 0.0]]
    assert (Completions.of([[5, 6], [8]], 0).token_log_probs == 0).all()


def test_taken_rows_equal_rows_that_were_alone_from_the_start():
    """Rows out of order, padding trimmed on the wrong side, or by the longest row of the whole."""
    rows, log_probs = [[5, 6, 7, 1], [8, 1], [9, 4, 1]], [[-1.0] * 4, [-2.0] * 2, [-3.0] * 3]
    chosen = torch.tensor([2, 1])
    taken = Prompts.of(rows, 0).take(chosen)
    alone = Prompts.of([rows[2], rows[1]], 0)
    assert torch.equal(taken.ids, alone.ids) and torch.equal(taken.pad_count, alone.pad_count)
    taken = Completions.of(rows, 0, "cpu", log_probs).take(chosen)
    alone = Completions.of([rows[2], rows[1]], 0, "cpu", [log_probs[2], log_probs[1]])
    for name in ("ids", "mask", "token_log_probs"):
        assert torch.equal(getattr(taken, name), getattr(alone, name))


@torch.no_grad()
def test_state_t_predicts_completion_token_t(make_gpt):
    """Targets shifted by one, or by the padding of another row."""
    model = make_gpt()
    completion_ids = torch.arange(5 * 3).view(5, 3) % 11  # B=5, T=3
    states = completion_hidden(model, Prompts.of(PROMPTS, PAD), completion_ids)
    for prompt, completion, state in zip(PROMPTS, completion_ids.tolist(), states):
        plain = model.hidden(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(state, plain, atol=1e-12, rtol=0)


@torch.no_grad()
def test_training_states_ignore_padding_content(make_gpt):
    """Padding, left or right, that leaks into the states that are trained."""
    model = make_gpt()
    completion_ids = torch.arange(5 * 3).view(5, 3) % 11
    prompts = Prompts.of(PROMPTS, PAD)
    expected = completion_hidden(model, prompts, completion_ids)
    other = completion_hidden(model, Prompts.of(PROMPTS, 10), completion_ids)
    torch.testing.assert_close(other, expected, atol=0, rtol=0)
    wider = Prompts(F.pad(prompts.ids, (3, 0), value=7), prompts.pad_count + 3)
    other = completion_hidden(model, wider, completion_ids)
    torch.testing.assert_close(other, expected, atol=1e-12, rtol=0)
    behind = completion_ids.clone()
    behind[:, 2] = 7
    other = completion_hidden(model, prompts, behind)
    torch.testing.assert_close(other, expected, atol=1e-12, rtol=0)
