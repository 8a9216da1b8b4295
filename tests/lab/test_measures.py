"""Laws of `python -m lab.measures`: wrong steps, entropies, information, rules, the command."""

import dataclasses
import json
import math
import random
from pathlib import Path

import pytest
import torch
from tiny import build_gpt

import minisd
import toy_tasks
from lab import storage
from lab.flags import run_main
from lab.measures import __main__ as command
from lab.measures import formulas, horizon, information, prefixes, rules
from lab.measures.probe import Probe, Settings
from lab.measures.steps import (
    first_wrong_step,
    force_glance,
    force_wrong_step,
    is_faultless,
    right_steps,
    worked_from,
)
from toy_tasks import CONTEXTS, Example, Problem, Toy, ToyTask, World, encode

PROBLEM = Problem.parse("3*7+4-8")  # 3*7=1; 1+4=5; 5-8=7


STANDS = "wait 3*7+4=2; wait 3*7=1; 1+4=5; 5-8=7; answer 7"  # a document's checked glance


@pytest.mark.parametrize(
    "completion, wrong",
    [
        ("wait 3*7=1; 1+4=5; 5-8=7; answer 7", ""),
        ("answer 3", ""),
        (STANDS, ""),
        (STANDS.replace("4=2", "4=5"), ""),
        ("3*7+4=5; 5-8=7; answer 7", ""),
        ("3*7=1; 1+4-8=2; wait 1+4=5; 5-8=7; answer 7", ""),
        ("3*7=1; 1+4=6; wait 1+4=8; wait 1+4=5; 5-8=7; answer 7", ""),
        ("3*7+4-8=2; wait 3*7+4=1; wait 3*7=1; 1+4=5; 5-8=7; answer 7", ""),
        ("3*7=1; wait 3*7=1; 1+4=5; 5-8=7; answer 7", ""),
        ("4*7+4=2; wait 3*7=1; 1+4=", ""),
        ("3*7=1; 1+4=5; 5-8=7; answer 2", ""),
        ("3*7=8; 8+4=2; 2-8=4; answer 4 demo", "3*7="),
        ("wait 3*7=1; 1+4=6; answer 6", "wait 3*7=1; 1+4="),
        ("wait 3*7+4=2; 2-8=4; answer 4", "wait 3*7+4="),
        ("wait 3*7+4=2; wait 2-8=4; answer 4", "wait 3*7+4="),
        ("wait 3*7+4=2; 3*7=1; 1+4=5; 5-8=7; answer 7", "wait 3*7+4="),
        ("3*7=1; 3*7=1; 1+4=5; 5-8=7; answer 7", "3*7=1; "),
        ("wait 3*7+4=2; wait answer 7", "wait 3*7+4="),
        ("3*7+4=2; wait 3*7=8; 8+4=2; 2-8=4; answer 4", "3*7+4=2; wait 3*7="),
        ("3*7+4=5; wait 3*7=1; 1+4=8; 8-8=0; answer 0", "3*7+4=5; wait 3*7=1; 1+4="),
        ("3*7+4=2; wait 3*7=1; 2-8=4; answer 4", "3*7+4=2; wait 3*7=1; "),
        ("3*7=1; 1+4=6; wait 1+4=8; 8-8=0; answer 0", "3*7=1; 1+4=6; wait 1+4="),
        ("3*7=8; 8+4=2; wait 3*7=1; 1+4=5; 5-8=7; answer 7", "3*7="),
        ("wait 3*7=1; 1+9=0; 0-8=2; answer 2", "wait 3*7=1; 1+"),
        ("wait 3*9+4=1; 1-8=3; answer 3", "wait 3*"),
        ("wait 3*7+6=7; 7-8=9; answer 9", "wait 3*7+"),
        ("wait 3*7-4=7; 7-8=9; answer 9", "wait 3*7"),
        ("wait 3*7=1; 4+4=8; 8-8=0; answer 0", "wait 3*7=1; "),
        ("wait 3*7=1; 5-8=7; answer 7", "wait 3*7=1; "),
        ("3*7=1; 1+4=5; 5-8=7; 7-8=9; answer 9", "3*7=1; 1+4=5; 5-8=7; "),
        ("3*7+4=5; 5-8+2=9; answer 9", "3*7+4=5; 5-8"),
        ("3*7+4=5; wait 5-8=8; answer 8", "3*7+4=5; wait 5-8="),
    ],
)
def test_first_wrong_step_is_the_first_that_stands(completion, wrong):
    """Catches checked glances taken for errors, missed operands, an index in characters."""
    expected = len(encode(wrong)) if wrong else None
    assert first_wrong_step(PROBLEM, completion) == expected


def test_faultless_is_every_step_right_and_checks_only_if_asked_for():
    """Catches a missing step, a marker too many, a remark, and a slip that counts as a check."""
    assert right_steps(PROBLEM) == ["3*7=1", "1+4=5", "5-8=7"]
    whole = "3*7+4=5; 5-8=7; answer 7"
    for text in (whole, f"wait {whole}", "wait 3*7=1; 1+4=5; 5-8=7; answer 7"):
        assert is_faultless(PROBLEM, text) and is_faultless(PROBLEM, text, checked=True)
    for text in (STANDS, STANDS.replace("4=2", "4=5"), STANDS.removeprefix("wait ")):
        assert is_faultless(PROBLEM, text, checked=True) and not is_faultless(PROBLEM, text)
    for text in (
        "answer 7", "3*7+4=5; answer 7", whole + " demo", whole.replace("answer 7", "answer 5"),
        whole.replace("5-8", "wait 5-8"), whole.replace("5-8", "; 5-8"), "3*7+4=2; 2-8=4; answer 4",
        STANDS.replace("1+4=5; ", ""), "wait " + STANDS,
    ):
        assert not is_faultless(PROBLEM, text, checked=True), text


NO_DIRECT = dict.fromkeys(CONTEXTS, 0.0)


@pytest.mark.parametrize("seed", range(12))
def test_a_forced_step_is_the_first_wrong_one_and_the_rest_follows_from_it(seed):
    """Catches a forced error at another token than the step's result, a rest that repairs it, and
    a glance that is checked all the same."""
    rng = random.Random(seed)
    problem = toy_tasks.draw_problem(rng, "+-*", range(3, 6))
    world = World(persona_rate=0.0, direct_rate=NO_DIRECT)
    completion = toy_tasks.write_completion(problem, world, rng)
    forced = force_wrong_step(problem, completion, rng)
    error = first_wrong_step(problem, forced)
    assert is_faultless(problem, completion, checked=True)
    assert not is_faultless(problem, forced, checked=True)
    before, after = encode(completion), encode(forced)
    assert before[:error] == after[:error]
    assert before[error] != after[error] and toy_tasks.decode(before[error - 1 : error]) == "="
    assert toy_tasks.decode(before[error - 5 : error - 3]).isdigit() is False  # a single step
    assert forced[forced.rindex("=") + 1] == forced[-1]  # the last value is the answer


def test_a_glance_alone_has_no_single_step_to_spoil():
    """Catches a crash, or a wrong glance that is called a wrong single step."""
    two = Problem.parse("3*7+4")
    assert force_wrong_step(two, "3*7+4=5; answer 5", random.Random(0)) is None
    texts = {force_wrong_step(two, "3*7+4=5; wait 3*7=1; 1+4=5; answer 5", random.Random(seed))
             for seed in range(40)}
    wholes = {f"3*7+4=5; wait 3*7={v}; {worked_from(two, 1, v)}" for v in range(10) if v != 1}
    wholes |= {f"3*7+4=5; wait 3*7=1; 1+4={v}; answer {v}" for v in range(10) if v != 5}
    assert texts <= wholes and len(texts) > 10


def test_a_forced_glance_is_right_or_wrong_and_no_step_follows():
    """Catches the value of the first operation alone, and a wrong glance that is right by luck."""
    rng = random.Random(0)
    assert force_glance(PROBLEM, True, rng) == "wait 3*7+4=5; "
    wrong = {force_glance(PROBLEM, False, rng) for _ in range(200)}
    assert wrong == {f"wait 3*7+4={v}; " for v in range(10) if v != 5}
    assert worked_from(PROBLEM, 2, 9) == "9-8=1; answer 1"
    assert worked_from(PROBLEM, 3, 9) == "answer 9"


def test_without_persona_no_document_has_a_wrong_step():
    """Catches a definition that finds errors in what a reliable author writes."""
    rng, world = random.Random(0), World(persona_rate=0.0, certainty=dict.fromkeys(CONTEXTS, 0.3))
    for _ in range(200):
        problem = toy_tasks.draw_problem(rng, "+-*", range(1, 9))
        text = toy_tasks.write_completion(problem, world, rng, certainty=0.3)
        assert first_wrong_step(problem, text) is None, (problem.text, text)
        direct = text.startswith(toy_tasks.ANSWER)
        assert is_faultless(problem, text, checked=True) is not direct


def test_enumerated_entropy_is_that_of_all_completions(world):
    """Catches prefixes that are lost, counted twice, or given to another problem."""
    ids = world.prompts.ids[:1].repeat(2, 1)
    ids[1, 0] = 0
    options = {"max_new_tokens": 3, "end_id": 1}
    found = formulas.enumerated_entropy(world.student, ids, least_mass=0.0, **options)
    entropy, bound, ended = found
    log_probs = world.token_log_probs(world.student, world.prompts).sum(1)
    expected = -(log_probs.exp() * log_probs).sum()
    torch.testing.assert_close(entropy[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ended, torch.ones(2).double(), rtol=0, atol=1e-12)
    assert abs(entropy[1] - entropy[0]) > 1e-3  # another prompt, another entropy
    assert bound.max() == 0
    # With prefixes left out, the truth lies between the value and the value with the bound.
    cut, bound, ended = formulas.enumerated_entropy(world.student, ids, least_mass=0.1, **options)
    assert (cut < entropy).all() and (entropy < cut + bound).all() and (ended < 1).all()


def probe_of(student: minisd.GPT, **settings) -> Probe:
    """A probe with that model as its base model, and without completions."""
    settings, generator = Settings(**settings), torch.Generator().manual_seed(0)
    task, nothing = settings.task(), ([], [], torch.zeros(0))
    return Probe(settings, task, student, random.Random(0), generator, *nothing)


def test_sums_are_those_of_single_rows(monkeypatch):
    """Catches padding that is added up, and parts that come back in another order."""
    monkeypatch.setattr("lab.measures.probe.PART_ROWS", 2)
    probe = probe_of(build_gpt(vocab_size=len(toy_tasks.VOCABULARY)))
    examples = [Example(Problem.parse(text)) for text in ("1+2", "3*7+4-8", "5-5+1")]
    texts = ["3*7=1; answer 1", "answer 3", "wait answer 7"]
    prompts, completions = probe.prompts(examples, ["", "hint 3*7=1 | ", ""]), probe.rows(texts)
    found = probe.log_probs(prompts, completions)
    for i, total in enumerate(found):
        one = torch.tensor([i])
        ids, context = completions.take(one).ids[0].tolist(), prompts.take(one).ids[0].tolist()
        logits = probe.student(torch.tensor([context + ids]))[0, len(context) - 1 : -1]
        plain = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
        torch.testing.assert_close(total, plain, rtol=0, atol=1e-10)


def test_the_teacher_of_a_probe_sees_the_solution_and_gets_no_gradient():
    """Catches student and teacher exchanged, and a divergence in the other direction."""
    probe = probe_of(build_gpt(vocab_size=len(toy_tasks.VOCABULARY)))
    x = probe.compared([Example(PROBLEM)], ["answer 7"], {"kl": minisd.reverse_kl})
    ids, task = [*encode("answer 7"), toy_tasks.END_ID], probe.task
    logits = []
    for context in ("", "solution 3*7=1+4=5-8=7 | "):
        prompt = task.prompt_ids(Example(PROBLEM), context)
        logits.append(probe.student(torch.tensor([prompt + ids]))[:, len(prompt) - 1 : -1])
    expected = minisd.reverse_kl(logits[0], logits[1])
    torch.testing.assert_close(x["divergence"], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(x["kl"], expected, rtol=0, atol=1e-10)
    assert x["divergence"].requires_grad and not x["teacher_log_probs"].requires_grad
    assert expected.abs().min() > 1e-3


def test_the_sampled_entropy_agrees_with_the_enumerated():
    """Catches an estimate over padding, without the end token's position, or of another prompt."""
    student = build_gpt(dtype=torch.float32, vocab_size=len(toy_tasks.VOCABULARY))
    student.lm_head.weight.data *= 2  # without the solution it ends after one token half the time
    examples = [Example(PROBLEM)] * 2
    probe = probe_of(student, max_new_tokens=2)
    contexts = ["", *probe.contexts(examples[1:], "solution")]
    values = information.sampled_entropy(probe, examples, contexts, samples=1000)
    for row, example, context in zip(values, examples, contexts):
        exact, _, ended = formulas.enumerated_entropy(
            student, probe.prompts([example], [context]).ids,
            max_new_tokens=2, end_id=toy_tasks.END_ID, least_mass=0.0,
        )
        assert ended[0] == pytest.approx(1, abs=1e-6)
        assert row.std() > 0.01
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
    below, above = formulas.mutual_information_bounds(log_probs)
    assert below.max() <= math.log(4)
    assert below.mean() < exact - 0.02
    assert above.mean() > exact + 0.02
    below, above = formulas.mutual_information_bounds(log_probs[:, :1].expand(-1, 4))
    torch.testing.assert_close(below, torch.zeros(20_000), rtol=0, atol=1e-6)
    torch.testing.assert_close(above, torch.zeros(20_000), rtol=0, atol=1e-6)


def test_binned_means_leave_out_what_has_no_bin():
    """Catches a mean over excluded values, and nan for an empty bin."""
    values, bins = torch.tensor([[1.0, 3.0], [5.0, 100.0]]), torch.tensor([[0, 0], [2, -1]])
    assert formulas.binned_means(values, bins, 3) == ([2.0, None, 5.0], [2, 0, 1])


def test_norms_and_cosines_of_known_vectors():
    """Catches a mean over the diagonal."""
    norm, cosine = formulas.norm_and_cosine(torch.tensor([[2.0, 0.0], [0.0, 4.0], [3.0, 0.0]]))
    assert norm == pytest.approx(3.0)
    assert cosine == pytest.approx(1 / 3)


def test_flat_gradients_are_those_of_backward():
    """Catches gradients that add up over the values, or parts in another order."""
    model = build_gpt()
    logits = model(torch.tensor([[1, 2, 3]]))
    values = [logits[0, 0, 0], logits[0, 2].sum()]
    found = formulas.flat_gradients(values, model)
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
    cuts = horizon.cuts_around(ids, len(encode("wait 3*7=1; 1+4=")))
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
def tiny(cache_dir):
    """Settings of a moment; the base model has learned next to nothing."""
    toy = Toy(world="operators=+,max_operations=2", pretrain_steps=5)
    return Settings(
        toy=toy, eval_problems=4, max_new_tokens=16, train_problems=16, cache_dir=cache_dir
    )


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(horizon, "HORIZON_PROBLEMS", 6)
    monkeypatch.setattr(horizon, "FORCED", 4)
    monkeypatch.setattr(prefixes, "PREFIX_PROBLEMS", 4)
    monkeypatch.setattr(information, "ENUMERATED_PROBLEMS", 2)
    monkeypatch.setattr(information, "ENUMERATED_SAMPLES", 8)
    monkeypatch.setattr(information, "ENUMERATED_TOKENS", 6)
    monkeypatch.setattr(information, "SIBLINGS", 3)
    monkeypatch.setattr(information, "LEAST_MASS", 1e-2)


MEASURED = [
    information.measure_information, prefixes.measure_prefixes, horizon.measure_horizon,
]


@pytest.mark.parametrize("measure", MEASURED)
def test_measures_are_finite_and_repeat_themselves(tiny, few, measure):
    """Catches nan and infinities from empty groups, hidden randomness, tensors in a result."""
    result = measure(tiny)
    json.dumps(result, allow_nan=False)
    assert all(map(math.isfinite, numbers(result)))
    assert len(numbers(result)) > 20
    assert measure(tiny) == result


def test_the_horizon_of_completions_with_and_without_errors(tiny, few, monkeypatch):
    """Catches a branch that a base model without one right step never comes to."""
    world = World(direct_rate=NO_DIRECT, persona_rate=0.3)
    draw = Probe.draw

    def drawn(*arguments) -> Probe:
        probe, rng = draw(*arguments), random.Random(0)
        pairs = [(e, toy_tasks.write_completion(e.problem, world, rng)) for e in probe.examples]
        probe.texts = [text for _, text in pairs]
        probe.rewards = torch.tensor([probe.task.reward(text, e) for e, text in pairs])
        return probe

    monkeypatch.setattr(Probe, "draw", drawn)
    result = horizon.measure_horizon(tiny)
    assert all(map(math.isfinite, numbers(result)))
    assert result["cut_counts_natural"][0] > 4 and result["cut_counts_own"][0] == 4
    assert result["position_completions_correct"] + result["position_completions_incorrect"] == 48
    for kind in ("", "_step"):
        counts = result[f"cut_counts_forced{kind}"]
        assert counts[0] == counts[1] == 4 and result[f"cut_counts_unforced{kind}"][:2] == [4, 4]
        for part in ("first", "before", "after"):
            names = [f"{name}{kind}" for name in ("forced", "unforced")]
            norms = [result[f"gradient_norm_{part}_{name}"] for name in names]
            assert min(norms) > 0 and (norms[0] == norms[1]) == (part != "after")
            assert abs(result[f"gradient_cosine_{part}_forced{kind}"]) <= 1
    assert result["gradient_groups"] == 6


def test_forced_completions_differ_from_the_others_in_what_is_wrong():
    """Catches a wrong glance that is checked or comes right, and pairs of different problems."""
    probe = probe_of(build_gpt(vocab_size=len(toy_tasks.VOCABULARY)))
    problems = [Problem.parse(text) for text in ("3*7+4-8", "5-2", "2*0*3", "1+2+3+4")]
    probe.examples = [Example(p) for p in problems] * 3
    examples, right, wrong = horizon.forced_glances(probe)
    assert {e.problem for e in examples} == {problems[0], problems[2], problems[3]}
    for example, sound, spoilt in zip(examples, right, wrong):
        assert is_faultless(example.problem, sound)
        assert first_wrong_step(example.problem, spoilt) == 7
        ids, others = encode(spoilt), encode(sound)
        assert ids[:7] == others[:7] and ids[7] != others[7]
        assert len(ids) == len(others) and spoilt.count("wait") == 1
        assert probe.task.reward(spoilt, example) == 0
    texts = [STANDS, "wait 3*7=1; answer 7", "3*7+4=5; 5-8=7; answer 7", "answer 7"]
    rows = [(Example(PROBLEM), text, 1.0) for text in texts]
    examples, right, wrong = horizon.forced_steps(probe, rows)
    assert sorted(right) == [texts[2], texts[0]]
    assert all(first_wrong_step(PROBLEM, text) is not None for text in wrong)


def test_gradients_are_those_of_the_tokens_before_and_after_the_wrong_one(monkeypatch):
    """Catches the prediction of the wrong token on both sides or on neither, and padding."""
    probe, means = probe_of(build_gpt(vocab_size=len(toy_tasks.VOCABULARY))), []

    def gradients(values, model) -> list:
        means.extend(value.item() for value in values)
        return [torch.tensor([3.0, 4.0])] * len(values)

    monkeypatch.setattr(horizon, "flat_gradients", gradients)
    examples, texts = [Example(PROBLEM)] * 2, ["wait 3*7+4=2; 2-8=4; answer 4", "3*7=8; answer 8"]
    reward = torch.tensor([6.0, 8.0])
    found = horizon.horizon_gradients(probe, "forced", examples, texts, [7, 4], reward)
    assert found["gradient_cosine_after_forced"] == pytest.approx(1)
    assert found["gradient_norm_after_forced"] == 5
    rows = [x[: len(encode(text)) + 1].tolist() for x, text in
            zip(probe.compared(examples, texts)["divergence"], texts)]
    parts = [row[:1] for row in rows], [rows[0][1:8], rows[1][1:5]], [rows[0][8:], rows[1][5:]]
    expected = [sum(map(sum, part)) / sum(map(len, part)) for part in parts]
    assert means == pytest.approx(expected, abs=1e-9)


def test_own_completions_begin_with_the_first_token_of_the_forced_ones(monkeypatch):
    """Catches a teacher that answers at once, so that there is nothing to cut."""
    probe, begun = probe_of(build_gpt(vocab_size=len(toy_tasks.VOCABULARY))), []

    def go_on(probe, model, examples, contexts=None, prefixes=None):
        begun.append((contexts, prefixes))
        return [STANDS] * len(examples), torch.ones(len(examples))

    monkeypatch.setattr(Probe, "go_on", go_on)
    forced = ([Example(PROBLEM)], [STANDS], ["wait 3*7+4=2; 2-8=4; answer 4"])
    found = horizon.read_own(probe, forced)
    assert begun[0] == (["solution 3*7=1+4=5-8=7 | "], [encode("wait ")])
    assert found["cut_counts_own"] == [1, 1, 1, 0, 0] and found["teacher_own"][:3] == [1.0] * 3
    assert [ids for _, ids in begun[1:]] == [[encode(STANDS)[:cut] for cut in (7, 8, 14)]] * 2


@pytest.mark.parametrize("operations, lengths", [("", {3, 4}), ("1-2", {2}), ("1", {1})])
def test_long_problems_are_training_problems(operations, lengths):
    """Catches fresh problems, and an endless search where training has none of three."""
    task = ToyTask(World(), operations=operations)
    problems = horizon.long_problems(task, random.Random(0), 60)
    assert {len(p.operators) for p in problems} == lengths
    assert not any(p.is_fresh for p in problems) and "*" not in "".join(p.text for p in problems)


# Rules --------------------------------------------------------------------------------------------


def test_the_means_of_teachers_worked_by_hand():
    """Catches weights that go to the wrong teacher, and a geometric mean without its norm."""
    q = torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]]])
    means = rules.means_of_teachers(list(q.log()), [0.75, 0.25])
    torch.testing.assert_close(means["mixture"], torch.tensor([[0.6, 0.4]]), rtol=0, atol=1e-6)
    rest = torch.tensor([0.5**0.75 * 0.9**0.25, 0.5**0.75 * 0.1**0.25])
    geometric = (rest / rest.sum())[None]
    torch.testing.assert_close(means["geometric mean"], geometric, rtol=0, atol=1e-6)
    distance = formulas.total_variation(means["mixture"], geometric)
    torch.testing.assert_close(distance, (0.6 - geometric[:, 0]).abs(), rtol=0, atol=1e-6)


def test_shares_count_every_rule_on_every_problem():
    """Catches hits that are counted for the rule of the example alone."""
    task = ToyTask(World(), rules=(2, 2, 7))
    examples = [Example(PROBLEM, rule) for rule in (2, 2, 7, 7)]  # answers 9, 9, 4, 4
    texts = ["answer 9", "answer 4", "answer 9", "answer 7"]
    completions = minisd.Completions.of([encode(text) for text in texts], task.pad_id)
    shares = rules.rule_shares(task, examples, completions, [2, 7])
    third = pytest.approx(1 / 3)
    name = "rule 7 among those that add a rule"
    assert shares == {"share of 2": 0.5, "share of 7": 0.25, name: third}


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tiny, tmp_path) -> Path:
    """The folder of a run that has not trained: the student is the base model."""
    storage.save_student(tmp_path / "student.pt", tiny.base())
    run = {"seed": 0, "train_problems": 16, "eval_problems": 4, "max_new_tokens": 16}
    run |= {"threads": 0, "cache_dir": tiny.cache_dir}
    toy = dataclasses.asdict(dataclasses.replace(tiny.toy, rules="2,7"))
    settings = {"run": run, "toy": toy, "method": {}, "checkpoint": {}}
    storage.write_json(tmp_path / "config.json", {"settings": settings})
    return tmp_path


def test_rules_are_measured_from_the_folder_of_a_run(run_folder):
    """Catches settings of the run that get lost, and a number that JSON does not have."""
    command.main(["rules", "--run", str(run_folder), "--out", str(run_folder / "rules.json")])
    found = json.loads((run_folder / "rules.json").read_text())
    assert {"share of 2", "share of 7", "mixture farther by", "seconds"} <= found.keys()
    assert 0 < found["distance to mixture"] < 1
    assert found["distance to mixture"] != found["distance to geometric mean"]
    settings, threads = rules.settings_of_run(run_folder, cache_dir="elsewhere")
    assert (settings.eval_problems, settings.cache_dir, threads) == (4, "elsewhere", 0)


def test_the_command_writes_what_the_measure_returns(tiny, few, tmp_path):
    """Catches a flag that does not arrive, and another number of digits."""
    out = tmp_path / "new" / "prefixes.json"
    flags = {"world": tiny.toy.world, "pretrain_steps": 5, "max_new_tokens": 16, "threads": 0}
    flags |= {"cache_dir": tiny.cache_dir, "seed": 0, "out": out}
    command.main(["prefixes", *(f"--{name}={value}" for name, value in flags.items())])
    found = json.loads(out.read_text())
    assert found.pop("seconds") > 0
    assert found == prefixes.measure_prefixes(tiny)


def test_what_json_does_not_have_becomes_null():
    """Catches the words NaN and Infinity, which no other reader knows."""
    value = {"a": [float("nan"), 1.5], "b": (float("inf"), 2), "c": "x"}
    assert command.plain(value) == {"a": [None, 1.5], "b": [None, 2], "c": "x"}


WRONG = [
    ("weather", "weather"),
    ("information", "--out"),
    ("information --out x --top_k 3", "--top_k"),
    ("information --out x --eval_problems 0", "--eval_problems: 0; allowed: 1 or more"),
    ("information --out x --seed one", "--seed: 'one'"),
    ("horizon --out x --eval_problems 3", "--eval_problems: '3'; allowed: not with horizon"),
    ("horizon --out x --world persona_rate=2", "--world"),
    ("estimators --out x --context none", "--context: 'none'"),
    ("careful --out x --run nowhere", "--run: 'nowhere'"),
    ("careful --out x --run y --seed 1", "--seed: '1'; allowed: not with careful --run, only"),
    ("information --out x --run y", "--run: 'y'; allowed: not with information"),
    ("rules --out x", "--run"),
    ("rules --out x --run nowhere", "--run: 'nowhere'"),
    ("signal --out x --device abacus", "--device: 'abacus'"),
]


@pytest.mark.parametrize("words, named", WRONG)
def test_a_wrong_flag_is_named_in_one_line(words, named, capsys, tmp_path, monkeypatch):
    """Catches a traceback, and a flag that is taken and has no effect."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["measures", *words.split()])
    with pytest.raises(SystemExit) as stop:
        run_main("python -m lab.measures", command.main)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.count("\n") == 1 and named in said
    assert not list(tmp_path.iterdir())


def test_a_run_without_rules_is_refused(run_folder):
    """Catches shares of no rule at all."""
    config = json.loads((run_folder / "config.json").read_text())
    config["settings"]["toy"]["rules"] = ""
    (run_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^--run: .*with --rules"):
        rules.settings_of_run(run_folder)
