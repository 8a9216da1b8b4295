"""Laws of sampling, of left padding, and of the one shift between states and targets."""

import pytest
import torch
import torch.nn.functional as F

import minisd
from minisd import (
    Teacher,
    completion_hidden,
    geometric_mixture,
    pad_left,
    pick_token,
    sample,
    token_log_probs,
)

PROMPTS = [[4, 2, 6], [9, 3, 5, 2, 8], [6], [7, 7, 3, 10], [2, 9]]  # B=5, P=5
PAD, END = 0, 1
LENGTH = 12


def draw(model, prompts=PROMPTS, seed=0, extra_padding=0, pad_id=PAD, **options):
    ids, pad_count = pad_left(prompts, pad_id)
    ids = F.pad(ids, (extra_padding, 0), value=pad_id)
    generator = torch.Generator().manual_seed(seed)
    options = {"max_new_tokens": LENGTH, "end_id": END, **options}
    return sample(
        model, ids, pad_count + extra_padding, pad_id=pad_id, generator=generator, **options
    )


def plain_sample(model, seed, temperature, top_p):
    """One row at a time, without cache, padding or early exit, from the same uniform numbers."""
    uniforms = torch.rand(5, LENGTH, generator=torch.Generator().manual_seed(seed)) * (1 - 1e-6)
    rows = []
    for prompt, uniform in zip(PROMPTS, uniforms):
        row = []
        while len(row) < LENGTH and END not in row:
            logits = model(torch.tensor([prompt + row]))[:, -1].float()
            u = uniform[len(row)][None]
            row.append(pick_token(logits, u, temperature, top_p).item())
        rows.append(row)
    return rows


def rows_of(completions):
    return [ids[mask].tolist() for ids, mask in zip(completions.ids, completions.mask)]


@torch.no_grad()
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.8), (4.0, 1.0), (0.0, 1.0)])
def test_cached_sampling_equals_a_plain_loop(make_gpt, temperature, top_p):
    """A stale cache, a wrong position, padding that is seen, or rows mixed up when some end."""
    model = make_gpt()
    completions = draw(model, seed=3, temperature=temperature, top_p=top_p)
    assert rows_of(completions) == plain_sample(model, 3, temperature, top_p)


@torch.no_grad()
def test_any_of_several_end_tokens_ends_a_completion(make_gpt):
    """Only the first end token that a chat model has: text behind its turn is scored with it."""
    model, ends = make_gpt(), (END, 4, 7)
    one, several = rows_of(draw(model, seed=3)), rows_of(draw(model, seed=3, end_id=ends))
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
@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"top_p": 0.7}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampled_log_probs_equal_those_of_the_training_forward(make_gpt, options, dtype):
    """A first importance ratio that is not 1: another temperature, shift or padding in training."""
    model = make_gpt(dtype=dtype)
    completions = draw(model, **options)
    states = completion_hidden(model, *pad_left(PROMPTS, PAD), completions.ids)
    training = token_log_probs(model.head(states), completions.ids)
    # 1e-4: the cached and the whole forward add in another order, in float32.
    ratio = (training.float() - completions.token_log_probs).exp()[completions.mask]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)


@torch.no_grad()
def test_mixed_teacher_samples_from_its_mixture(make_gpt):
    """A trust-region teacher that samples from one of its two models alone."""
    student = make_gpt()
    teacher = Teacher("trust_region", student, update_rate=0.3)
    for weight in student.parameters():
        weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    completions = draw(teacher, temperature=0.0)
    for prompt, row in zip(PROMPTS, rows_of(completions)):
        ids = torch.tensor([prompt + row])
        mixed = geometric_mixture([m(ids) for m, _ in teacher.parts()], [0.7, 0.3])
        assert mixed[0, len(prompt) - 1 : -1].argmax(-1).tolist() == row


@torch.no_grad()
def test_one_token_completions_work(make_gpt):
    """A loop that needs a second step to store the first token."""
    completions = draw(make_gpt(), max_new_tokens=1)
    assert completions.ids.shape == completions.mask.shape == (5, 1) and completions.mask.all()


@pytest.mark.parametrize(
    "options, named",
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.5}, "top_p 1.5"),
    ],
)
def test_impossible_sampling_settings_are_refused_by_name(make_gpt, options, named):
    """A negative temperature that silently samples the least likely tokens."""
    with pytest.raises(ValueError, match=named):
        draw(make_gpt(), **options)


# Drawing one token --------------------------------------------------------------------------------

LOGITS = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.5, 0.0])
DRAWS = 20_000


def frequencies(logits, temperature=1.0, top_p=1.0):
    uniforms = torch.rand(DRAWS, generator=torch.Generator().manual_seed(7))
    tokens = pick_token(logits.expand(DRAWS, -1), uniforms, temperature, top_p)
    return tokens.bincount(minlength=len(logits)) / DRAWS


def assert_within_four_standard_errors(observed, expected):
    standard_error = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((observed - expected).abs() <= 4 * standard_error).all(), (observed, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature):
    """A temperature that multiplies, or acts on probabilities without renormalising."""
    expected = (LOGITS / temperature).softmax(0)
    assert_within_four_standard_errors(frequencies(LOGITS, temperature), expected)


def test_top_p_keeps_the_smallest_set_with_that_mass():
    """The token that crosses the threshold dropped, one too many kept, or no renormalisation."""
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    for top_p, expected in [
        (0.35, [0.0, 1.0, 0.0, 0.0]),
        (0.45, [0.0, 4 / 7, 0.0, 3 / 7]),
        (0.65, [0.0, 4 / 7, 0.0, 3 / 7]),
        (0.75, [0.0, 4 / 9, 2 / 9, 3 / 9]),
        (1e-6, [0.0, 1.0, 0.0, 0.0]),
    ]:
        assert_within_four_standard_errors(frequencies(logits, top_p=top_p), torch.tensor(expected))


def test_first_sampled_token_follows_the_model(make_gpt):
    """Uniform numbers used twice, or a distribution taken from another position than the last."""
    model = make_gpt()
    completions = draw(model, [[4, 2, 6]] * DRAWS, max_new_tokens=1)
    observed = completions.ids[:, 0].bincount(minlength=11) / DRAWS
    with torch.no_grad():
        expected = model(torch.tensor([[4, 2, 6]]))[0, -1].softmax(0).float()
    assert_within_four_standard_errors(observed, expected)


def test_forbidden_tokens_are_never_drawn():
    """The two ends of the uniform interval landing on a token of probability 0."""
    uniforms = torch.tensor([0.0, 0.3, 0.5, 1 - 1e-6])
    for low in (-torch.inf, -1e4):
        logits = torch.tensor([low, 1.0, low, 1.0, low])
        for top_p in (1.0, 0.9):
            tokens = pick_token(logits.expand(4, -1), uniforms, 1.0, top_p)
            assert set(tokens.tolist()) == {1, 3}
        assert pick_token(logits[None], uniforms[:1], 0.0, 1.0).item() == 1


# Padding and the shift ----------------------------------------------------------------------------


def test_pad_left_by_hand():
    """Padding on the wrong side, or counted per batch instead of per row."""
    ids, pad_count = pad_left([[5, 6, 7], [8]], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and pad_count.tolist() == [0, 2]
    with pytest.raises(ValueError, match="prompt: empty"):
        pad_left([[5], []], pad_id=0)


@torch.no_grad()
def test_state_t_predicts_completion_token_t(make_gpt):
    """Targets shifted by one, or by the padding of another row."""
    model = make_gpt()
    completion_ids = torch.arange(5 * 3).view(5, 3) % 11  # B=5, T=3
    states = completion_hidden(model, *pad_left(PROMPTS, PAD), completion_ids)
    for prompt, completion, state in zip(PROMPTS, completion_ids.tolist(), states):
        plain = model.hidden(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(state, plain, atol=1e-12, rtol=0)


@torch.no_grad()
def test_training_states_ignore_padding_content(make_gpt):
    """Padding, left or right, that leaks into the states that are trained."""
    model = make_gpt()
    completion_ids = torch.arange(5 * 3).view(5, 3) % 11
    ids, pad_count = pad_left(PROMPTS, PAD)
    expected = completion_hidden(model, ids, pad_count, completion_ids)
    other_ids, _ = pad_left(PROMPTS, 10)
    torch.testing.assert_close(
        completion_hidden(model, other_ids, pad_count, completion_ids), expected, atol=0, rtol=0
    )
    behind = completion_ids.clone()
    behind[:, 2] = 7
    torch.testing.assert_close(
        completion_hidden(model, ids, pad_count, behind), expected, atol=1e-12, rtol=0
    )
