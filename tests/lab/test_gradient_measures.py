"""Laws of the measurements of gradients on the base model: estimators, signal and noise."""

import math
import random

import numpy as np
import pytest
import torch
from tiny import batch_of
from torch.nn.attention import SDPBackend, sdpa_kernel

import minisd
import toy_tasks
from lab.evaluation import seeded
from lab.measures import estimators, signals
from lab.measures.estimators import ESTIMATORS, Tree, fold, grow_tree
from lab.measures.formulas import cosine_of_means, estimator_laws, signal_and_noise
from lab.measures.probe import Settings
from minisd import Method, Sizes, Teacher
from toy_tasks import Toy


def assert_same(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def tree_of(world, rarest: float) -> Tree:
    """The completions of the enumerated world; its models are so small that folding loses none."""
    with sdpa_kernel(SDPBackend.MATH):
        return grow_tree(
            (world.student, world.teacher),
            tuple(prompts.ids[0].tolist() for prompts in (world.prompts, world.teacher_prompts)),
            max_tokens=3, end_id=1, rarest=rarest,
        )


def expected(tree: Tree, name: str) -> torch.Tensor:
    probability = tree.log_probs(tree.student_logits).exp()
    assert_same(probability.sum().item(), 1.0, 1e-6)
    return probability @ tree.estimates(name)


# Enumeration --------------------------------------------------------------------------------------


def sequence_kl(world) -> torch.Tensor:
    """KL between distributions over whole completions, each scored by a plain forward."""
    with torch.no_grad():
        log_p = world.token_log_probs(world.student, world.prompts).sum(1)
        log_q = world.token_log_probs(world.teacher, world.teacher_prompts).sum(1)
    return (log_p.exp() * (log_p - log_q)).sum()


def test_exact_gradient_agrees_with_finite_differences(world):
    """A completion that is left out, a prefix with another's Jacobian, a teacher's prompt lost."""
    tree, step = tree_of(world, rarest=0.0), 1e-5
    assert len(tree.completions.ids) == len(world.completions.ids)
    weights = torch.nn.utils.parameters_to_vector(world.student.parameters()).detach()
    direction = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1)).to(weights)
    values = []
    for sign in (1, -1):
        moved = weights + sign * step * direction
        torch.nn.utils.vector_to_parameters(moved, world.student.parameters())
        values.append(sequence_kl(world))
    torch.nn.utils.vector_to_parameters(weights, world.student.parameters())
    slope = (values[0] - values[1]) / (2 * step)
    # Both folded with the same signs: the product is that of the unfolded vectors.
    assert_same(tree.exact_gradient() @ fold(direction[None])[0], slope, 1e-6)
    assert abs(slope) > 0.01


@pytest.mark.parametrize("rarest", [0.0, 0.1])
def test_only_full_future_credit_is_unbiased_for_the_sequence_kl(world, rarest):
    """An exact gradient of another tree than the estimators', or credit for the wrong tokens."""
    tree = tree_of(world, rarest)
    assert (len(tree.completions.ids) < len(world.completions.ids)) == (rarest > 0)
    truth = tree.exact_gradient()
    for name in ESTIMATORS:
        error = (expected(tree, name) - truth).norm() / truth.norm()
        if name in ("sequence_level", "sampled_sequence"):
            assert error < 1e-6
        else:
            assert error > 0.02
    assert_same(expected(tree, "sampled_token"), expected(tree, "token_level"), 1e-7)


def test_estimates_are_the_gradients_of_single_completions(world):
    """Gradients of one completion that are credited to another, or to another position."""
    tree, row = tree_of(world, rarest=0.0), 17
    assert tree.completions.mask[row].all()
    same = (world.completions.ids == tree.completions.ids[row]).all(1).nonzero()[:, 0]
    terms = [(1.0, world.teacher, world.teacher_prompts.take(same))]
    batch = batch_of(world.prompts.take(same), terms[0][2], world.completions.take(same))
    divergence = minisd.score(Method(), world.student, terms, batch)["divergence"]
    plain = fold(world.gradient(divergence.sum())[None])[0]
    assert_same(tree.estimates("token_level")[row], plain)


def test_completions_that_are_cut_are_told_from_those_that_end(world):
    """Padding that is taken for an end token: a truncated tree that looks complete."""
    tree = tree_of(world, rarest=0.1)
    rows = [ids[mask].tolist() for ids, mask in zip(tree.completions.ids, tree.completions.mask)]
    probability = tree.log_probs(tree.student_logits).exp().tolist()
    cut = sum(p for row, p in zip(rows, probability) if row[-1] != toy_tasks.END_ID)
    assert any(len(row) < 3 and row[-1] != toy_tasks.END_ID for row in rows)
    laws = estimators.tree_laws(tree, torch.Generator().manual_seed(0))
    assert laws["cut_frac"] == pytest.approx(cut)


def test_folding_keeps_lengths_and_angles():
    """Signs that differ between calls, or sums that add up what is alike."""
    x = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0)) + 0.5
    y = fold(x)
    assert y.shape == (2, estimators.FOLDED)
    # Four standard deviations of 3 %.
    np.testing.assert_allclose(y.norm(dim=1), x.norm(dim=1), rtol=0.12)
    cosine = torch.nn.functional.cosine_similarity
    assert_same(cosine(*y, dim=0), cosine(*x, dim=0), 0.12)


# Numbers ------------------------------------------------------------------------------------------


def test_estimator_laws_worked_by_hand():
    """A variance of n samples for that of one, a bias in other units, counts out of order."""
    estimates = torch.tensor([[4.0, 0.0], [0.0, 0.0], [4.0, 4.0]])
    probability, truth = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([2.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    laws = estimator_laws(estimates, probability, truth, [1, 10_000], generator)
    assert laws["bias"] == pytest.approx(math.sqrt(2) / 2)  # the mean is (3, 1)
    assert laws["std"] == pytest.approx(math.sqrt(3 + 3) / 2)  # variances 3 and 3
    assert laws["error"] == pytest.approx([math.sqrt(0.5 + 1.5), math.sqrt(0.5 + 1.5e-4)])
    assert laws["limit_cosine"] == pytest.approx(3 / math.sqrt(10))
    # One draw: cosine 1, 0 (of nothing) or 0.71; the error of 128 draws is at most 0.04.
    assert laws["cosine"][0] == pytest.approx(0.5 + 0.25 / math.sqrt(2), abs=0.12)
    assert laws["cosine"][1] == pytest.approx(laws["limit_cosine"], abs=1e-2)


def noisy(mean: torch.Tensor, noise: float, n: int, seed: int) -> torch.Tensor:
    draws = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed))
    return mean + noise * draws


def test_signal_and_noise_are_unbiased():
    """Noise that is counted as signal: more weights would look like a stronger gradient."""
    mean = torch.zeros(1000)
    mean[0] = 3.0
    pairs = [signal_and_noise(noisy(mean, 0.2, 4, seed)) for seed in range(50)]
    signal, noise = (torch.stack(x).mean().item() for x in zip(*pairs))
    assert signal == pytest.approx(9, abs=0.2)  # uncorrected 9 + 10; five standard errors
    assert noise == pytest.approx(40, rel=0.02)


def test_cosine_of_means_corrects_for_noise():
    """A direction that looks wrong because few batches were averaged; an endless correction."""
    a, b = torch.zeros(1000), torch.zeros(1000)
    a[0], b[0], b[1] = 1.0, 0.6, 0.8
    one, other = noisy(a, 0.06, 16, 1), noisy(b, 0.06, 16, 2)
    raw = torch.nn.functional.cosine_similarity(one.mean(0), other.mean(0), dim=0)
    assert raw < 0.53
    assert cosine_of_means(one, other) == pytest.approx(0.6, abs=0.05)
    nothing = noisy(torch.zeros(1000), 1.0, 16, 3)
    raw = torch.nn.functional.cosine_similarity(nothing.mean(0), other.mean(0), dim=0)
    assert abs(cosine_of_means(nothing, other)) <= 2 * abs(raw)
    assert cosine_of_means(torch.zeros(4, 1000), other) == 0


# The measurements ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(cache_dir) -> Settings:
    """An easy world, and a base model that has hardly learned it."""
    toy = Toy(world="operators=+,max_operations=2", pretrain_steps=20)
    return Settings(toy=toy, cache_dir=cache_dir, max_new_tokens=12, train_problems=8)


def flat(results: dict) -> list[float]:
    return [x for v in results.values() for x in (v if isinstance(v, list) else [v])]


def test_estimators_are_measured_in_finite_numbers(settings, monkeypatch):
    """A name without numbers, nan, or other numbers the second time."""
    small = {"TREE_OPERATIONS": (1,), "TREE_TOKENS": 2, "RAREST_PREFIX": 0.05}
    small |= {"SAMPLE_COUNTS": [1, 8], "FOLDED": 256}
    for name, value in small.items():
        monkeypatch.setattr(estimators, name, value)
    results = estimators.measure_estimators(settings)
    assert np.isfinite(flat(results)).all()
    assert results == estimators.measure_estimators(settings)
    assert results["bias.sequence_level"] < 1e-4 < 1e-3 < results["bias.token_level"]
    for name in ESTIMATORS:
        assert len(results[f"cosine.{name}"]) == len(results[f"error.{name}"]) == 2


@pytest.mark.parametrize("name", signals.MEASURED)
def test_batch_gradients_are_those_of_the_loss(settings, name):
    """What is left over from the batch before, or a gradient that training would not follow."""
    student, task, sizes = settings.base(), settings.task(), Sizes(4, 8, 12, micro_batch=9)
    found = signals.batch_gradients(settings, name, student, task, sizes, 2)
    rng, key = random.Random(f"signal-{name}-0"), f"signal-{name}-0"
    method = signals.ROWS[name]
    generator, teacher = seeded(key, torch.device("cpu")), Teacher(method, student)
    for gradient in found:
        batch = minisd.rollout(method, task, student, teacher, rng, generator, sizes)
        x = minisd.score(method, student, teacher.terms(batch.shown), batch)
        x["reference_log_probs"] = x["student_log_probs"].detach()  # of a first step
        loss = minisd.loss_of(method, x, batch)
        parts = torch.autograd.grad(loss, list(student.parameters()))
        assert_same(gradient, torch.cat([part.flatten() for part in parts]), 1e-6)
    assert "sdpo" not in name or found.norm(dim=1).min() > 0.01


def test_signals_are_measured_in_finite_numbers(settings, monkeypatch):
    """A method whose numbers are those of another one, or a cosine or noise that is nan."""
    monkeypatch.setattr(signals, "REWARD_COMPLETIONS", 32)
    monkeypatch.setattr(signals, "SIGNAL_BATCHES", 3)
    results = signals.measure_signal(settings)
    assert np.isfinite(flat(results)).all()
    names = ("snr", "cosine", "raw_cosine", "batch_cosine")
    assert all(len({results[f"{n}.{m}"] for m in signals.MEASURED}) == 4 for n in names)
