"""Laws of accuracy with and without doubt, and of what is done behind a forced glance."""

import dataclasses
import json
import re

import pytest
import torch
from tiny import build_gpt, finished_run

import minisd
from lab import storage
from lab.measures import __main__ as command
from lab.measures import careful
from lab.measures.probe import Probe, Settings
from toy_tasks import MARKER, TOKEN_ID, VOCABULARY, Example, Problem, Toy, decode, encode

SIZE = {"vocab_size": len(VOCABULARY), "dtype": torch.float32}
TOY = Toy(world="operators=+-,max_operations=4", train_operators="+", train_operations="1-3")
TINY = Settings(toy=TOY, eval_problems=4, max_new_tokens=8, train_problems=4)
PROBLEM = Problem.parse("3+7+4")


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What a probe is asked to go on from; it finishes every prefix with the next of TEXTS."""
    calls, texts = [], ["", "wait 3+7=0; 0+4=4; answer 4", "answer 4", "7 answer 3"]

    def go_on(probe, model, examples, contexts=None, prefixes=None, pick=minisd.pick_token):
        calls.append({"contexts": contexts, "prefixes": prefixes, "pick": pick})
        starts = map(decode, prefixes or [[]] * len(examples))
        written = [start + text for start, text in zip(starts, texts)]
        rewards = [probe.task.reward(t, e) for t, e in zip(written, examples)]
        return written, torch.tensor(rewards)

    monkeypatch.setattr(Probe, "go_on", go_on)
    return calls


def probe_of(settings: Settings = TINY) -> Probe:
    return Probe.of(settings, "careful", build_gpt(**SIZE))


def test_the_marker_is_never_picked_where_it_is_banned():
    """Catches a ban of one row alone, a ban in place that lasts, and another token's odds."""
    logits = torch.randn(200, len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    logits[:, TOKEN_ID[MARKER]] = 5.0
    before, uniform = logits.clone(), torch.rand(200, generator=torch.Generator().manual_seed(1))
    for temperature in (0.0, 1.0):
        found = careful.without_marker(logits, uniform, temperature)
        assert (found != TOKEN_ID[MARKER]).all() and torch.equal(logits, before)
        rest = torch.cat((logits[:, : TOKEN_ID[MARKER]], logits[:, TOKEN_ID[MARKER] + 1 :]), dim=1)
        expected = minisd.pick_token(rest, uniform, temperature)
        assert torch.equal(found, expected + (expected >= TOKEN_ID[MARKER]))


def test_what_picks_the_tokens_gets_to_the_model():
    """Catches a ban that the sampler never hears of."""
    probe, five = probe_of(), TOKEN_ID["5"]
    texts, _ = probe.go_on(
        probe.student, [Example(PROBLEM)] * 2, prefixes=[encode(MARKER)] * 2,
        pick=lambda logits, uniform, temperature: torch.full_like(uniform, five).long(),
    )
    assert texts == [MARKER + "5" * TINY.max_new_tokens] * 2


def test_a_split_is_written_freely_carefully_and_without_doubt(asked, monkeypatch):
    """Catches glances of the forced opening that count, a single step taken for a glance, a check
    that belongs to another glance, and a marker that is banned before it is forced."""
    probe, examples = probe_of(dataclasses.replace(TINY, eval_problems=9)), [Example(PROBLEM)] * 4
    texts = [
        "answer 4", "wait 3+7+4=9; wait 3+7=0; 0+4=4; answer 4", "3+7+4=2; answer 2",
        "3+7=0; wait 0+4=4; answer 4 demo",
    ]
    free, drawn = Probe.go_on, []

    def evaluation(task, split, count, rng):
        drawn.append((split, count))
        return examples

    monkeypatch.setattr(type(probe.task), "evaluation", evaluation)

    def go_on(probe, model, given, contexts=None, prefixes=None, **options):
        if prefixes is None:
            return texts, torch.tensor([1.0, 1.0, 0.0, 1.0])
        return free(probe, model, given, contexts, prefixes, **options)

    monkeypatch.setattr(Probe, "go_on", go_on)
    assert careful.measure_split(probe, "longer") == {
        "longer_accuracy_frac": 0.75, "longer_direct_frac": 0.25,
        "careful_longer_accuracy_frac": 0.5, "banned_longer_accuracy_frac": 0.5,
        "glances_per_completion_longer": 0.5, "checked_glances_frac_longer": 0.5,
        "left_out_frac_longer": 0.0,
    }
    assert drawn == [("longer", 9)]
    assert [call["prefixes"] for call in asked] == [[encode(MARKER)] * 4] * 2
    assert [call["pick"] for call in asked] == [minisd.pick_token, careful.without_marker]
    texts[:] = ["3+7=0; answer 0", "3+7=0; 0+4=4; answer 4", "answer 4", "answer 4"]
    found = careful.measure_split(probe, "longer")
    assert found["checked_glances_frac_longer"] is None and found["left_out_frac_longer"] == 0.5


def test_forced_glances_are_those_that_the_names_say(asked, monkeypatch):
    """Catches right and wrong or the two readers exchanged, and the opening marker for a check."""
    monkeypatch.setattr(careful, "longest_problems", lambda *_: [PROBLEM] * 4)
    found = careful.measure_forced(probe_of())
    names = [f"forced_{glance}_glance_{reader}" for glance in ("wrong", "right")
             for reader in ("unaided", "teacher")]
    assert list(found) == [name + end for name in names for end in ("", "_checked_frac")]
    assert all(found[name] == 0.5 and found[f"{name}_checked_frac"] == 0.25 for name in names)
    for name, call in zip(names, asked):
        context = "solution 3+7=0+4=4 | " if name.endswith("teacher") else ""
        assert call["contexts"] == [context] * 4
        for prefix in map(decode, call["prefixes"]):
            assert re.fullmatch(r"wait 3\+7\+4=\d; ", prefix)
            assert prefix.endswith("=4; ") == ("right" in name)
    assert asked[0]["prefixes"] == asked[1]["prefixes"]


@pytest.mark.parametrize("operations, lengths", [("1-3", {2, 3}), ("2", {2}), ("1", set())])
def test_forced_glances_need_two_operations(operations, lengths):
    """Catches problems of the pool, problems too short for a glance, and means of nothing."""
    toy = dataclasses.replace(TOY, train_operations=operations)
    settings = dataclasses.replace(TINY, toy=toy)
    problems = careful.longest_problems(settings.task(), probe_of().rng, 40)
    assert {len(problem.operators) for problem in problems} == lengths
    assert all(problem.is_fresh and set(problem.operators) == {"+"} for problem in problems)
    if not lengths:
        assert set(careful.measure_forced(probe_of(settings)).values()) == {None}


def test_the_command_measures_the_base_model_or_the_student_of_a_run(tmp_path, monkeypatch):
    """Catches the base model in the student's place, a number of problems that does not arrive,
    other numbers the second time, and a world without new operators or longer problems."""
    monkeypatch.setattr(Settings, "base", lambda settings: build_gpt(1, **SIZE))
    finished_run(tmp_path, build_gpt(2, **SIZE), TOY, eval_problems=3, max_new_tokens=8)

    def numbers(*flags: str) -> dict:
        out = tmp_path / "careful.json"
        command.main(["careful", *flags, "--out", str(out)])
        found = json.loads(out.read_text())
        assert found.pop("seconds") > 0
        return found

    world = ["--world", TOY.world, "--train_operators", "+", "--train_operations", "1-3"]
    world += ["--max_new_tokens", "8"]
    base = numbers(*world, "--eval_problems", "5")
    splits = ("fresh", "longer", "new_operators")
    assert len(base) == 7 * len(splits) + 8
    assert all(f"careful_{split}_accuracy_frac" in base for split in splits)
    student = numbers("--run", str(tmp_path), "--eval_problems", "5")
    assert base.keys() == student.keys() and base != student
    assert numbers("--run", str(tmp_path), "--eval_problems", "5") == student
    assert numbers("--run", str(tmp_path)) != student  # as many problems as the run
    monkeypatch.setattr(storage, "load_student", lambda *_: build_gpt(1, **SIZE))
    assert numbers("--run", str(tmp_path), "--eval_problems", "5") == base
    small = numbers("--world", "operators=+,max_operations=1", "--eval_problems", "2")
    assert len(small) == 7 + 8 and small["forced_wrong_glance_teacher"] is None
