"""Laws of the measurements on the base model: wrong steps, entropies, information, gradients."""

import dataclasses
import json
import math
import random

import pytest
import torch
from conftest import build_gpt

import minisd
import toy_tasks
import train_gpt
from results import measures
from toy_tasks import Problem, encode, first_wrong_step, force_wrong_step
from train_gpt import TrainConfig

PROBLEM = Problem.parse("3*7+4-8")  # 3*7=1; 1+4=5; 5-8=7


@pytest.mark.parametrize(
    "completion, wrong",
    [
        ("wait 3*7=1; 1+4=5; 5-8=7; answer 7", ""),
        ("answer 3", ""),
        ("3*7=1; 1+4=6; wait 1+4=5; 5-8=7; answer 7", ""),
        ("3*7=1; 1+4=6; wait 1+4=8; wait 1+4=5; 5-8=7; answer 7", ""),
        ("3*7=1; wait 3*7=1; 1+4=5; 5-8=7; answer 7", ""),
        ("3*7=1; 1+4=", ""),
        ("3*7=1; 1+4=5; 5-8=7; answer 2", ""),
        ("3*7=8; 8+4=2; 2-8=4; answer 4 demo", "3*7="),
        ("wait 3*7=1; 1+4=6; answer 6", "wait 3*7=1; 1+4="),
        ("3*7=1; 1+4=6; wait 1+4=8; 8-8=0; answer 0", "3*7=1; 1+4="),
        ("3*7=1; 1+4=6; wait 1+4=8", "3*7=1; 1+4="),
        ("3*7=8; 8+4=2; wait 3*7=1; 1+4=5; 5-8=7; answer 7", "3*7="),
        ("wait 3*7=1; 1+9=0; 0-8=2; answer 2", "wait 3*7=1; 1+"),
        ("wait 3*7=1; 4+4=8; 8-8=0; answer 0", "wait 3*7=1; "),
        ("wait 3*7=1; 1-4=7; 7-8=9; answer 9", "wait 3*7=1; 1"),
        ("wait 3*7=1; 5-8=7; answer 7", "wait 3*7=1; "),
        ("3*7=1; 1+4=5; 5-8=7; 7-8=9; answer 9", "3*7=1; 1+4=5; 5-8=7; "),
    ],
)
def test_first_wrong_step_is_the_first_that_stays_uncorrected(completion, wrong):
    """Catches corrected slips taken for errors, missed operands, an index in characters."""
    expected = len(encode(wrong)) if wrong else None
    assert first_wrong_step(PROBLEM, completion) == expected


@pytest.mark.parametrize("seed", range(12))
def test_a_forced_step_is_the_first_wrong_one_and_the_rest_follows_from_it(seed):
    """Catches a forced error at another token than the step's result, or a rest that repairs it."""
    rng = random.Random(seed)
    problem = toy_tasks.draw_problem(rng, "+-*", range(3, 6))
    world = toy_tasks.World(persona_rate=0.0, direct_floor=0.0, direct_slope=1.0, slip_rate=0)
    completion = toy_tasks.write_completion(problem, world, rng)
    forced = force_wrong_step(problem, completion, rng)
    error = first_wrong_step(problem, forced)
    assert toy_tasks.is_faultless(problem, completion)
    assert not toy_tasks.is_faultless(problem, forced)
    before, after = encode(completion), encode(forced)
    assert before[:error] == after[:error]
    assert before[error] != after[error]
    assert forced[forced.rindex("=") + 1] == forced[-1]  # the last value is the answer


def test_without_persona_no_document_has_a_wrong_step():
    """Catches a definition that finds errors in what a reliable author writes."""
    rng, world = random.Random(0), toy_tasks.World(persona_rate=0.0, slip_rate=0.3)
    for _ in range(200):
        problem = toy_tasks.draw_problem(rng, "+-*", range(1, 7))
        text = toy_tasks.write_completion(problem, world, rng)
        assert first_wrong_step(problem, text) is None, (problem.text, text)


def test_enumerated_entropy_is_that_of_all_completions(world):
    """Catches prefixes that are lost, counted twice, or given to another problem."""
    ids = world.prompts.ids[:1].repeat(2, 1)
    ids[1, 0] = 0
    options = {"max_new_tokens": 3, "end_id": 1}
    entropy, bound, ended = minisd.enumerated_entropy(world.student, ids, least_mass=0.0, **options)
    log_probs = world.token_log_probs(world.student, world.prompts).sum(1)
    expected = -(log_probs.exp() * log_probs).sum()
    torch.testing.assert_close(entropy[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ended, torch.ones(2).double(), rtol=0, atol=1e-12)
    assert abs(entropy[1] - entropy[0]) > 1e-3  # another prompt, another entropy
    assert bound.max() == 0
    # With prefixes left out, the truth lies between the value and the value with the bound.
    cut, bound, ended = minisd.enumerated_entropy(world.student, ids, least_mass=0.1, **options)
    assert (cut < entropy).all() and (entropy < cut + bound).all() and (ended < 1).all()


def test_the_sampled_entropy_agrees_with_the_enumerated():
    """Catches an estimate over padding, without the end token's position, or of another prompt."""
    config = TrainConfig(max_new_tokens=2)
    student = build_gpt(dtype=torch.float32, vocab_size=len(toy_tasks.VOCABULARY))
    student.head.weight.data *= 2
    with torch.no_grad():  # an end after the first token is common
        student.head.weight[toy_tasks.END_ID] *= 3
    task, generator = train_gpt.make_task(config), torch.Generator().manual_seed(0)
    examples = [train_gpt.Example(PROBLEM)] * 2
    probe = measures.Probe(config, task, student, random.Random(0), generator, [], [], None)
    contexts = ["", *probe.contexts(examples[1:], "solution")]
    values = measures.sampled_entropy(probe, examples, contexts, samples=2000)
    for row, example, context in zip(values, examples, contexts):
        exact, _, ended = minisd.enumerated_entropy(
            *(student, probe.prompts([example], [context]).ids),
            max_new_tokens=2,
            end_id=toy_tasks.END_ID,
            least_mass=0.0,
        )
        assert ended[0] == pytest.approx(1, abs=1e-6)
        assert abs(row.mean() - exact[0]) < 4 * row.std() / math.sqrt(len(row))
    assert abs(values.mean(1).diff()) > 0.1  # the context makes a difference


def test_mutual_information_lies_between_its_bounds():
    """Catches the exchange of the two bounds, and a mean over the wrong number of contexts."""
    generator = torch.Generator().manual_seed(0)
    # Two equally likely contexts; y equals the context with probability 0.9.
    exact = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)
    contexts = torch.randint(2, (20_000, 4), generator=generator)
    flip = torch.rand(20_000, generator=generator) < 0.1
    y = contexts[:, 0] ^ flip.long()
    log_probs = torch.where(contexts == y[:, None], math.log(0.9), math.log(0.1))
    below, above = minisd.mutual_information_bounds(log_probs)
    assert below.max() <= math.log(4)
    assert below.mean() < exact - 0.02
    assert above.mean() > exact + 0.02
    below, above = minisd.mutual_information_bounds(log_probs[:, :1].expand(-1, 4))
    torch.testing.assert_close(below, torch.zeros(20_000), rtol=0, atol=1e-6)
    torch.testing.assert_close(above, torch.zeros(20_000), rtol=0, atol=1e-6)


def test_binned_means_leave_out_what_has_no_bin():
    """Catches a mean over excluded values, and nan for an empty bin."""
    values, bins = torch.tensor([[1.0, 3.0], [5.0, 100.0]]), torch.tensor([[0, 0], [2, -1]])
    assert minisd.binned_means(values, bins, 3) == ([2.0, None, 5.0], [2, 0, 1])


def test_norms_and_cosines_of_known_vectors():
    """Catches a mean over the diagonal."""
    norm, cosine = minisd.norm_and_cosine(torch.tensor([[2.0, 0.0], [0.0, 4.0], [3.0, 0.0]]))
    assert norm == pytest.approx(3.0)
    assert cosine == pytest.approx(1 / 3)


def test_flat_gradients_are_those_of_backward():
    """Catches gradients that add up over the values, or parts in another order."""
    model = build_gpt()
    logits = model(torch.tensor([[1, 2, 3]]))
    values = [logits[0, 0, 0], logits[0, 2].sum()]
    found = minisd.flat_gradients(values, model)
    for i, gradient in enumerate(found):
        model.zero_grad()
        logits = model(torch.tensor([[1, 2, 3]]))
        (logits[0, 0, 0] if i == 0 else logits[0, 2].sum()).backward()
        plain = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(gradient, plain, rtol=0, atol=1e-12)
    assert not torch.equal(*found)


def test_cuts_keep_the_wrong_token_out_and_whole_steps_in():
    """Catches a prefix that already shows the error, or stops in the middle of a step."""
    ids = encode("wait 3*7=1; 1+4=6; 6-8=8; answer 8")
    cuts = measures.cuts_around(ids, len(encode("wait 3*7=1; 1+4=")))
    shown = [toy_tasks.decode(ids[:cut]) for cut in cuts if cut is not None]
    assert shown == ["wait 3*7=1; 1+4=", "wait 3*7=1; 1+4=6", "wait 3*7=1; 1+4=6; 6-8=8"]
    assert cuts[3:] == [None, None]


def numbers(value):
    """All leaves of a result, None left out."""
    if isinstance(value, dict):
        return [x for v in value.values() for x in numbers(v)]
    if isinstance(value, list):
        return [x for v in value for x in numbers(v)]
    return [] if value is None or isinstance(value, str) else [value]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings of a moment; the base model has learned next to nothing."""
    return TrainConfig(
        world="operators=+,max_operations=2,direct_slope=0.5",
        pretrain_steps=20,
        eval_problems=6,
        max_new_tokens=16,
        train_problems=16,
        cache_dir=str(tmp_path_factory.mktemp("base")),
    )


@pytest.fixture
def few(monkeypatch):
    sizes = {"HORIZON_PROBLEMS": 6, "FORCED": 4, "PREFIX_PROBLEMS": 6, "ENUMERATED_PROBLEMS": 2}
    for name, value in (sizes | {"LEAST_MASS": 1e-2}).items():
        monkeypatch.setattr(measures, name, value)


@pytest.mark.parametrize(
    "name, pretrain_steps",
    [("information", 20), ("prefixes", 20), ("horizon", 20), ("horizon", 100)],
)
def test_measures_are_finite_and_repeat_themselves(tiny, few, name, pretrain_steps):
    """Catches nan and infinities from empty groups, hidden randomness, tensors in a result."""
    measure = getattr(measures, f"measure_{name}")
    config = dataclasses.replace(tiny, pretrain_steps=pretrain_steps)
    result = measure(config)
    json.dumps(result, allow_nan=False)
    assert all(map(math.isfinite, numbers(result)))
    assert len(numbers(result)) > 20
    assert measure(config) == result
