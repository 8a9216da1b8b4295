"""The arena: its world, its runs, its gate, and what its table says of them."""

import itertools
import json
import random
import re
from dataclasses import replace

import pytest
import torch
from tiny import build_gpt

import toy_tasks
from lab import base
from lab.arena import __main__ as arena
from lab.arena import forecast, jobs, table, world
from lab.arena.gate import gate_of
from lab.arena.run import RATES, TUNING, UNIVERSES, measured, train
from lab.fixes import FIXES
from lab.measures.steps import first_wrong_step
from toy_tasks import Example, Problem, World

PROBLEM = Problem.parse("3*7+4-8")


# World --------------------------------------------------------------------------------------------


def test_whoever_is_shown_a_solution_uses_its_values_right_or_wrong():
    """Catches authors who know better than a wrong solution: the contrast would be empty."""
    made = world.ArenaWorld.made(direct_rate=dict.fromkeys(toy_tasks.CONTEXTS, 0.0))
    rng = random.Random(0)
    for _ in range(50):
        values = world.wrong_values(PROBLEM, rng)
        assert values[-1] != PROBLEM.values[-1]
        text = world.write_arena(PROBLEM, made, rng, "wrong", dict(enumerate(values)))
        assert text.endswith(f"answer {values[-1]}")
        text = world.write_arena(PROBLEM, made, rng, "solution", dict(enumerate(PROBLEM.values)))
        assert first_wrong_step(PROBLEM, text) is None


def test_an_author_without_a_solution_slips_and_goes_on_from_it():
    """Catches slips that are corrected, and a rate that is not the field's."""
    rates = dict.fromkeys(toy_tasks.CONTEXTS, 0.0)
    made = world.ArenaWorld.made(direct_rate=rates, glance_rate=0.0, slip_rate=0.3)
    rng, right = random.Random(0), 0
    for _ in range(400):
        text = world.write_arena(PROBLEM, made, rng, "none", {})
        steps = [step.strip("wait ") for step in text.split("; ")[:-1]]
        for before, after in itertools.pairwise(steps):
            assert before[-1] == after[0]
        right += toy_tasks.final_answer(text) == PROBLEM.values[-1]
    assert 0.7**3 - 0.08 < right / 400 < 0.7**3 + 0.12  # two slips may cancel


def test_the_arenas_documents_are_there_for_its_pretraining_alone():
    """Catches a generator that stays in place, and would train the next world's base model."""
    kept = toy_tasks.draw_document
    with pytest.raises(KeyError), world.documents_of_the_arena():
        assert toy_tasks.draw_document is world.draw_document
        raise KeyError
    assert toy_tasks.draw_document is kept
    made = world.ArenaWorld.made()
    assert base.recipe_hash(made, 0, 1, "base") != base.recipe_hash(World(), 0, 1, "base")
    changed = replace(made, code="another generator")
    assert base.recipe_hash(made, 0, 1, "base") != base.recipe_hash(changed, 0, 1, "base")
    for seed in range(100):  # all of it has tokens
        toy_tasks.encode("".join(world.draw_document(random.Random(seed), made)))


def test_contexts_that_the_fixes_need_have_the_format_of_a_solution():
    """Catches a contrast that shows itself by its first word, which would leak manner."""
    rng, example = random.Random(0), Example(PROBLEM)
    for name, setting in world.settings().items():
        task = setting.task(4, 0)
        right = task.context(example, "solution", rng)
        for kind in ("wrong", "other_solution"):
            text = task.context(example, kind, rng)
            assert text.startswith("solution ") and len(text) == len(right) and text != right, name
        alone = task.prompt_ids(example, task.context(example, "solution_alone", rng))
        assert toy_tasks.decode(alone) == f"{right} = "
        assert toy_tasks.decode(task.prompt_ids(example, right)) == f"{right}{PROBLEM.prompt}"


# Runs ---------------------------------------------------------------------------------------------


def test_every_two_universes_are_balanced():
    """Catches a cut that leaves one setting alone, and numbers that seed two universes."""
    assert len({(u.group_size, u.problems, u.base) for u in UNIVERSES}) == 8
    for one, two in zip(UNIVERSES[::2], UNIVERSES[1::2]):
        for name in ("group_size", "problems", "base"):
            assert getattr(one, name) != getattr(two, name)
    assert sum(u.base_seed for u in UNIVERSES) == 4
    assert TUNING.number not in {u.number for u in UNIVERSES}


@pytest.fixture(scope="module")
def tiny():
    """A setting of few tokens, and a model of the toy's vocabulary that knows nothing."""
    size = {"vocab_size": len(toy_tasks.VOCABULARY), "n_layers": 1}
    model = build_gpt(0, torch.float32, **size)
    return replace(world.settings()["v2"], step_tokens=24, max_new_tokens=6), model


def test_every_row_takes_steps_on_about_equal_tokens(tiny, monkeypatch):
    """Catches a row whose function asks for what a batch lacks, and one that writes more."""
    setting, model = tiny
    monkeypatch.setattr("lab.arena.run.POOL_LOOK", 4)
    monkeypatch.setattr(  # of what an untrained model writes, a half is right
        world.ArenaTask, "reward", lambda self, text, example: float(len(text) % 2))
    universe, tokens = replace(UNIVERSES[1], problems=4), {}
    for name in FIXES:
        student, happened = train(setting, name, universe, 1e-3, model, steps=2)
        pairs = zip(student.parameters(), model.parameters())
        if not name.startswith("rosd"):  # it finds no wrong step in text without steps
            assert any(not torch.equal(a, b) for a, b in pairs), name
        tokens[name] = happened["tokens"]
    assert max(tokens.values()) <= 2 * min(tokens.values())


def test_a_run_is_measured_by_names_of_the_table(tiny):
    """Catches a measure that the table asks for and no run has."""
    setting, model = tiny
    found = measured(setting, replace(UNIVERSES[0], problems=4), model, model)
    assert set(table.MEASURES) - {"speed", "sampled_tokens", "step_s"} <= found.keys()
    assert found["kl"] == pytest.approx(0, abs=1e-6)


def test_the_gate_names_what_is_not_met(tiny):
    """Catches a gate that lets a world pass in which there is nothing to rank."""
    setting, model = tiny
    grpo = {rate: {"train": x} for rate, x in zip(RATES, (0.1, 0.2, 0.3))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.arena.gate.starting_model", lambda *_: model)
        patch.setattr("lab.arena.gate.RESULT", re.compile(r"(?=\d)"))
        gate = gate_of(setting, grpo, "", count=16)
    assert not gate["open"] and not gate["met"]["grpo_rate"] and not gate["met"]["pass_rate"]
    assert gate["contrast_nats"] > 0
    assert table.gate_lines(gate).count("NOT MET") == 2 + (gate["contrast_nats"] < 0.1)


def test_tokens_of_groups_that_are_thrown_away_count(tiny, monkeypatch):
    """Catches a row that draws three times as many tokens as the row that it is compared with."""
    setting, model = replace(tiny[0], step_tokens=96), tiny[1]
    monkeypatch.setattr("lab.arena.run.POOL_LOOK", 4)
    monkeypatch.setattr(world.ArenaTask, "reward", lambda self, text, example: 0.0)
    universe = replace(UNIVERSES[1], problems=4)  # groups of two
    drawn = {(name, n): train(setting, name, universe, 1e-3, model, steps=n)[1]["tokens"]
             for name in ("dapo", "dr_grpo") for n in (1, 2)}
    assert drawn["dapo", 1] > 2.5 * drawn["dr_grpo", 1]  # two rounds anew, all equal
    second = {name: drawn[name, 2] - drawn[name, 1] for name in ("dapo", "dr_grpo")}
    assert second["dapo"] < 1.3 * second["dr_grpo"]


# The command --------------------------------------------------------------------------------------


def fake(speed: float, fresh: float) -> dict:
    numbers = dict.fromkeys(table.MEASURES, 0.5)
    return numbers | {"rate": 3e-4, "speed": speed, "fresh": fresh, "train": fresh}


GATE = {"world": "v2", "contrast_nats": 0.2, "hint_nats": 0.3, "pass_rate": 0.1, "open": True,
        "grpo_best_rate": 3e-4, "grpo_by_rate": {"0.0003": 0.5},
        "met": {"contrast": True, "pass_rate": True, "grpo_rate": True}}


def test_a_stopped_call_goes_on_universe_by_universe(tmp_path, monkeypatch, capsys):
    """Catches runs that are done twice, and a cut that leaves rows with unequal universes."""
    calls, stop_at = [], [11]  # in the third universe

    def result(setting, name, universe, rate, cache_dir):
        if len(calls) == stop_at[0]:
            raise KeyboardInterrupt
        calls.append((name, universe.number, rate))
        return fake(0.9, 0.8) if rate == 3e-4 else fake(0.1, 0.1)

    monkeypatch.setattr(jobs, "result_of", result)
    monkeypatch.setattr(arena, "starting_model", lambda *_: None)
    monkeypatch.setattr(arena, "gate_of", lambda *_: GATE)
    monkeypatch.setattr(arena, "forecast_of", lambda *_: 0.5)
    monkeypatch.setattr(table, "draw", lambda path, rows: path.touch())
    words = ["opsa", "--world", "v2", "--seeds", "3", "--out_dir", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        arena.main(words)
    rows = json.loads((tmp_path / "arena.json").read_text())
    assert [len(row["universes"]) for row in rows] == [2, 2]
    stop_at[0] = -1
    arena.main(words)
    assert len(calls) == len(set(calls)) == 2 * (len(RATES) + 3)
    assert {rate for _, number, rate in calls if number < 100} == {3e-4}
    said = capsys.readouterr().out
    assert "left" in said and said.index("gate of world") < said.index("universe 0")
    done = len(calls)
    arena.main(words)
    assert len(calls) == done
    rows = json.loads((tmp_path / "arena.json").read_text())
    assert [row["method"] for row in rows] == ["grpo", "opsa"]
    assert [len(row["universes"]) for row in rows] == [3, 3]
    arena.main(["dr_grpo", *words[1:]])  # another call keeps the rows of this one
    rows = json.loads((tmp_path / "arena.json").read_text())
    assert [row["method"] for row in rows] == ["grpo", "dr_grpo", "opsa"]
    assert (tmp_path / "arena.png").exists()
    assert "3 of 8 universes" in (tmp_path / "arena.md").read_text()


def test_a_row_is_run_with_its_control():
    """Catches a fix that is shown alone."""
    assert arena.rows_of(["rlcsd"]) == ["rlcsd", "rlcsd_shuffled", "grpo"]
    assert set(arena.rows_of(["cepo"])) == {"cepo", "rlsd", "rlsd_shuffled", "grpo"}
    assert arena.rows_of([]) == list(FIXES)
    assert set(arena.QUICK) <= FIXES.keys() and len(arena.QUICK) == 10


def test_workers_find_what_they_are_sent():
    """Catches a job defined in __main__, which a new process knows nothing of."""
    assert "__main__" not in arena.Job.__module__


@pytest.mark.parametrize("words, said", [
    (["nothing"], "row: 'nothing'"), (["--seeds", "9"], "--seeds: 9"),
    (["--world", "v3"], "--world: 'v3'"), (["--workers", "0"], "--workers: 0"),
    (["--rate", "2e-3"], "--rate: 0.002")])
def test_bad_input_is_one_line(words, said):
    """Catches a slip that starts an hour of runs."""
    with pytest.raises(ValueError, match=said):
        arena.settings_of(words)


# The table ----------------------------------------------------------------------------------------


def found_of(gaps: list[float], control: float = 0.5) -> table.Found:
    return [(u, {"opsa": fake(control + gap, control + gap), "grpo": fake(control, control)})
            for u, gap in zip(UNIVERSES, gaps)]


@pytest.mark.parametrize("gaps, control, verdict, holds", [
    ([0.1, 0.12, 0.11, 0.1], 0.5, "better than its control", 4),
    ([-0.1, -0.12, -0.11, -0.1], 0.5, "worse than its control", 0),
    ([0.01, -0.01, 0.03, 0.0], 0.5, "adds nothing beyond its control", 1),
    ([0.3, -0.3, 0.3, -0.3], 0.5, "unclear: the interval is wide", 2),
    ([0.01, 0.0, 0.01, 0.01], 0.95, "at the ceiling", 0),
    ([0.1], 0.5, "too few universes", 1)])
def test_a_fix_is_judged_against_its_control(gaps, control, verdict, holds):
    """Catches a ranking by the score alone, at the ceiling, or of noise."""
    row = table.row_of("v2", "opsa", found_of(gaps, control), {}, 1)
    assert (row["verdict"], row["difference"]["holds"]) == (verdict, holds)


def test_the_picture_has_both_worlds(tmp_path):
    """Catches a picture that fails for one universe, which has no interval."""
    rows = [table.row_of("v2", "opsa", found_of([0.1, 0.2]), {}, 1),
            table.row_of("arena", "grpo", found_of([0.1]), {}, 1)]
    table.write(tmp_path, rows, [GATE])
    assert (tmp_path / "arena.png").stat().st_size > 10_000
    text = (tmp_path / "arena.md").read_text()
    assert "2 of 8 universes" in text and "1 of 8 universes" in text


def test_the_forecast_of_a_target_is_that_of_the_law(tiny, monkeypatch):
    """Catches copies of a text that go different ways, and a row of rewards with a forecast."""
    setting, model = tiny
    monkeypatch.setattr(forecast, "starting_model", lambda *_: model)
    monkeypatch.setattr(
        world.ArenaTask, "reward", lambda self, text, example: float(len(text) % 2))
    accuracy = {name: forecast.forecast_of(setting, name, "", count=8)
                for name in ("opsd", "iw_opd", "purified")}
    assert accuracy["opsd"] == accuracy["iw_opd"] and 0 <= accuracy["purified"] <= 1
    attempts = setting.task(0, 0).attempts
    assert not any(forecast.has_forecast(n, attempts) for n in ("grpo", "ours", "ssopd"))


def test_a_run_that_was_not_finite_counts_as_nothing_learnt():
    """Catches a failed universe that is left out of a mean."""
    found = found_of([0.1, 0.1])
    found[0][1]["opsa"] = {"failed": "loss nan", "rate": 3e-4}
    row = table.row_of("v2", "opsa", found, {}, 1)
    assert row["measures"]["fresh"]["mean"] == pytest.approx(0.3)
    assert table.harmonic(0.0, 0.0) == 0


def test_what_holds_in_one_world_alone_is_not_said_of_both():
    """Catches a winner of the shipped world that is shown as a fix, and worlds with other rows."""
    gaps = {"v2": [0.2] * 4, "arena": [-0.2] * 4}
    rows = [table.row_of(w, name, found_of(gaps[w]), {}, 1)
            for w in gaps for name in ("opsa", "grpo")]
    dapo = [table.row_of(w, "dapo", [(u, {"dapo": r["opsa"], "grpo": r["grpo"]})
                                     for u, r in found_of([0.2, 0.21, 0.2, 0.19])], {}, 1)
            for w in gaps]
    said = table.in_short(rows + dapo)
    better = next(line for line in said if line.startswith("- Better"))
    assert "**dapo** (.70, .70)" in better and "opsa" not in better and "of 1 fixes" in better
    assert "_opsa_ (.70, .30)" in said[2] and said[2].index("dapo") < said[2].index("opsa")
    assert table.in_short(rows + dapo[:1]) == table.in_short(rows[:2]) == []


@pytest.mark.parametrize("trained, close", [
    ({1e-4: 0.88, 3e-4: 0.84, 1e-3: 0.5}, True), ({1e-4: 0.88, 3e-4: 0.8, 1e-3: 0.5}, False),
    ({3e-4: 0.9}, False), ({}, False)])
def test_a_rate_that_chance_may_have_chosen_is_marked(trained, close):
    """Catches a lead over a control that is the lead of one learning rate over another."""
    tuning = {rate: {"train": value} for rate, value in trained.items()}
    row = table.row_of("v2", "opsa", found_of([0.1] * 3), tuning, 1)
    assert table.has_close_rate(row) == close
    assert ("3e-4~" in table.markdown([row], [])) == close


def test_one_rate_can_be_asked_of_all_rows(tmp_path, monkeypatch):
    """Catches an option that is read and not used."""
    rates = []

    def result(setting, name, universe, rate, cache_dir):
        rates.append((universe.number, rate))
        return fake(0.9, 0.8) if rate == 3e-4 else fake(0.1, 0.1)

    monkeypatch.setattr(jobs, "result_of", result)
    monkeypatch.setattr(arena, "starting_model", lambda *_: None)
    monkeypatch.setattr(arena, "gate_of", lambda *_: GATE)
    monkeypatch.setattr(table, "draw", lambda path, rows: path.touch())
    arena.main(["grpo", "--world", "v2", "--seeds", "2", "--rate", "1e-3",
                "--out_dir", str(tmp_path)])
    assert {rate for number, rate in rates if number < 100} == {1e-3}
