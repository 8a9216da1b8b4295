"""Laws of nucleus sampling: the smallest set of tokens with the mass top_p."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_math_properties import DRAWN, laws
from test_sampling import DRAWS, assert_within_four_standard_errors

import minisd
from lab.evaluation import nucleus
from minisd import Prompts


def frequencies(logits, top_p):
    uniforms = torch.rand(DRAWS, generator=torch.Generator().manual_seed(7))
    tokens = nucleus(top_p)(logits.expand(DRAWS, -1), uniforms, 1.0)
    return tokens.bincount(minlength=len(logits)) / DRAWS


@pytest.mark.parametrize("top_p, expected", [
    (0.35, [0.0, 1.0, 0.0, 0.0]),
    (0.45, [0.0, 4 / 7, 0.0, 3 / 7]),
    (0.65, [0.0, 4 / 7, 0.0, 3 / 7]),
    (0.75, [0.0, 4 / 9, 2 / 9, 3 / 9]),
    (1e-6, [0.0, 1.0, 0.0, 0.0]),
    (1.0, [0.1, 0.4, 0.2, 0.3]),
])
def test_the_smallest_set_with_that_mass_is_kept(top_p, expected):
    """The token that crosses the threshold dropped, one too many kept, or no renormalisation."""
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    assert_within_four_standard_errors(frequencies(logits, top_p), torch.tensor(expected))


@laws
@given(DRAWN, st.floats(0.05, 4), st.floats(0.01, 1))
def test_picked_tokens_are_possible_and_inside_top_p(drawn, temperature, top_p):
    """Catches a token of probability 0, one behind the mass of top_p, or an index V."""
    (logits, uniform), pick = drawn, nucleus(top_p)
    token = pick(logits, uniform, temperature)
    probs = (logits / temperature).softmax(-1)
    chosen = probs.gather(1, token[:, None])  # IndexError for an index V
    likelier = probs.masked_fill(probs <= chosen, 0.0).sum(1)
    assert (chosen > 0).all() and (likelier < top_p + 1e-5).all()
    assert (pick(logits, uniform / 2, temperature) <= token).all()
    assert torch.equal(pick(logits, uniform, 0), logits.argmax(-1))


def test_forbidden_tokens_are_never_drawn():
    """The two ends of the uniform interval landing on a token of probability 0."""
    uniforms = torch.tensor([0.0, 0.3, 0.5, 1 - 1e-6])
    for low in (-torch.inf, -1e4):
        logits = torch.tensor([low, 1.0, low, 1.0, low])
        assert set(nucleus(0.9)(logits.expand(4, -1), uniforms, 1.0).tolist()) == {1, 3}


@torch.no_grad()
def test_sampled_log_probs_are_those_of_the_whole_distribution(make_gpt):
    """Log-probabilities within the nucleus: a first importance ratio that is not 1."""
    model, prompts = make_gpt(), Prompts.of([[4, 2, 6], [9, 3]], 0)
    drawn = minisd.sample(
        [(1.0, model, prompts)], max_new_tokens=6, end_ids=(1,), pad_id=0, pick=nucleus(0.6),
        generator=torch.Generator().manual_seed(0))
    states = minisd.completion_hidden(model, prompts, drawn.ids)
    plain = minisd.token_log_probs(model.lm_head(states), drawn.ids).float()
    # 1e-4: the cached and the whole forward add in another order, in float32.
    torch.testing.assert_close(
        drawn.token_log_probs, plain.masked_fill(~drawn.mask, 0.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("top_p", [0.0, -0.5, 1.5])
def test_an_impossible_top_p_is_refused_by_name(top_p):
    """A set of no tokens, from which something is drawn all the same."""
    with pytest.raises(ValueError, match=f"top_p: {top_p}; allowed: above 0"):
        nucleus(top_p)
