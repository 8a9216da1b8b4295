"""Claims: universes, commands, runs and queue, and one claim from the command to the picture."""

import json
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lab.claims import __main__ as command
from lab.claims.arms import SDPO, Measure, MeasuredRun
from lab.claims.claim import all_claims
from lab.claims.runs import (
    Run,
    arm_numbers,
    arms_in,
    models_of,
    numbers_of,
    queue_of,
    run_all,
    runs_of,
    split_flags,
)
from lab.claims.statements import change, value
from lab.claims.text import claim_flags
from lab.claims.universes import UNIVERSES, own_rate
from toy_tasks import Toy

CLAIMS = all_claims()
# Of a known form, whatever becomes of the claims.
MADE_UP = replace(
    CLAIMS["suppression"], name="made_up", also=[], testable=[], panels=[],
    arms={"arm": SDPO, "other": f"{SDPO} --teacher live"}, once={"late": f"{SDPO} --steps 300"},
    effect=change("fresh.accuracy", "arm") < -0.1, control=change("fresh.accuracy", "other"),
)

# Universes and commands


def test_the_universes_are_the_full_grid_and_change_nothing_else():
    """Catches two factors that vary together, a seed of another, a rate that is not the row's."""
    assert [u.number for u in UNIVERSES] == list(range(8))
    cells = {(u.learning_rate, u.steps, u.base) for u in UNIVERSES}
    assert len(cells) == 8 and {c[1] for c in cells} == {60, 120}
    for u in UNIVERSES:
        flags = u.trained({"--method": "grpo"})
        factor = {"half": 0.5, "twice": 2.0}[u.learning_rate]
        assert float(flags["--learning_rate"]) == pytest.approx(factor * own_rate("grpo"))
        assert (flags["--seed"], flags["--steps"]) == (str(u.number), str(u.steps))
        weaker = {} if u.base == "full" else {"--pretrain_steps": str(
            round(0.7 * Toy.pretrain_steps))}
        assert u.measured({}) == {"--seed": str(u.number), **weaker}
        assert {"--pretrain_steps": flags.get("--pretrain_steps")} == (
            weaker or {"--pretrain_steps": None})
    own = {"--method": "sdpo", "--learning_rate": "1e-3", "--steps": "300"}
    flags = UNIVERSES[5].trained({**own, "--pretrain_steps": "10"})
    assert (flags["--learning_rate"], flags["--steps"]) == ("0.002", "300")
    assert flags["--pretrain_steps"] == "7"
    with pytest.raises(ValueError, match="--method: 'nope'"):
        own_rate("nope")


def test_commands_of_arms(tmp_path):
    """Catches an arm that beats the user, a measurement without its run, a flag it cannot take."""
    given, u = {"--steps": "2", "--world": "slip_rate=0", "--eval_problems": "4"}, UNIVERSES[2]
    (run,) = runs_of(f"{SDPO} --steps 120 --world persona_rate=0", given, u, tmp_path)
    folder = run.result.parent
    assert run.result == folder / "summary.json" and folder.parent == tmp_path / "runs"
    assert run.text == (
        "python train_gpt.py --method sdpo --steps 2 --batch_size 64 --threads 1 "
        "--eval_every 1000000 --world persona_rate=0,slip_rate=0 --eval_problems 4 "
        f"--learning_rate {own_rate('sdpo') / 2:g} --seed 2 --out_dir {folder}"
    )
    (run,) = runs_of(Measure("horizon", "--world persona_rate=0"), given, UNIVERSES[1], tmp_path)
    assert run.text == (
        "python -m lab.measures horizon --world persona_rate=0,slip_rate=0 --seed 1 "
        f"--pretrain_steps {round(0.7 * Toy.pretrain_steps)} --out {run.result}"
    )
    first, second = runs_of(MeasuredRun("rules", SDPO), given, u, tmp_path)
    folder = first.result.parent
    assert second.words[1:] == ("lab.measures", "rules", "--run", str(folder), "--out",
                                str(folder / "rules.json"))
    assert "late" in arms_in(MADE_UP, UNIVERSES[0]) and "late" not in arms_in(MADE_UP, u)


def test_the_base_models_of_the_effect_are_looked_at_once_each(monkeypatch):
    """Catches a base model that is not looked at, or that of a control world that need not be."""
    monkeypatch.setattr("lab.claims.runs.measures.NAMES", ("careful",))
    world = "--world persona_rate=0"
    arms = {"arm": SDPO, "late": f"{SDPO} {world}", "b": Measure("x", world), "other": "--world y"}
    terms = change("x", "arm") - change("x", "late") + value("y", "b") < 0
    claim = replace(MADE_UP, arms=arms, effect=terms, once={})
    assert arms_in(claim, UNIVERSES[1]) == arms | {
        "base": Measure("careful"), "base 2": Measure("careful", world)}


def test_every_arm_is_a_command_that_training_takes(tmp_path):
    """Catches a flag or a value in an arm that train_gpt.py does not know."""
    import train_gpt

    arms = {arm for claim in CLAIMS.values() for arm in claim.all_arms.values()}
    trained = [arm for arm in arms if not isinstance(arm, Measure)]
    for words in {runs_of(arm, {}, UNIVERSES[7], tmp_path)[0].words for arm in trained}:
        settings, resumed = train_gpt.parse(list(words[1:]))
        assert (settings.run.seed, settings.run.batch_size, resumed) == (7, 64, False)


def test_a_run_is_named_by_what_its_numbers_depend_on(tmp_path):
    """Catches a stale result for other settings, and a rerun where only a path differs."""
    def result(arm, number=0, **given):
        flags = {f"--{k}": str(v) for k, v in given.items()}
        return runs_of(arm, flags, UNIVERSES[number], tmp_path)[-1].result

    same = result(SDPO)
    assert same == result(SDPO, cache_dir="elsewhere")
    others = [result("--method grpo"), result(SDPO, 1), result(SDPO, clip_low=0.1),
              result(SDPO, world="slip_rate=0"), result(Measure("horizon"))]
    assert len({same, *others}) == 6


def test_the_queue_is_claim_by_claim_and_base_models_come_first(tmp_path):
    """Catches workers that wait for a base model while another could be pretrained, or a claim
    that is judged only when all are."""
    one = [runs_of(a, {}, u, tmp_path) for u in UNIVERSES[:2] for a in MADE_UP.arms.values()]
    two = [runs_of(a, {}, UNIVERSES[0], tmp_path) for a in (
        SDPO, "--method grpo", "--method sft --external_teacher larger", MeasuredRun("rules", SDPO),
        f"{SDPO} --world persona_rate=0")]
    two = [runs_of("--method grpo", {}, UNIVERSES[1], tmp_path), *two]
    queue = queue_of([one, two])
    assert len(queue) == 4 + 4  # sdpo is shared, with the measurement behind it
    assert [len(job.runs) for job in queue] == [2, 1, 1, 1, 1, 1, 1, 1]
    assert [len(job.begins) for job in queue] == [1, 1, 0, 0, 1, 1, 0, 0]
    # The model of universe 1 began after that of universe 0, so what needs it comes later.
    assert [job.runs[0] for job in queue[6:]] == [two[2][0], two[0][0]]
    assert {job.runs[0].result for job in queue[:4]} == {runs[0].result for runs in one}
    begun = frozenset().union(*(job.begins for job in queue))
    assert begun == frozenset().union(*(models_of(job.runs[0]) for job in queue))
    assert queue[0].cost > queue[2].cost > 0


def script(result: Path, code: str) -> list[Run]:
    return [Run(("-c", f"import sys; from pathlib import Path; {code}"), result)]


def test_finished_and_failed_runs_are_kept_and_errors_end_the_queue(tmp_path):
    """Catches a run that is repeated, a failed one that is, and an error that nobody sees."""
    done, failed = tmp_path / "done.json", tmp_path / "failed.json"
    one = script(done, f"p = Path({str(done)!r}); p.write_text('1' * (p.exists() + 1))")
    two = script(failed, "print('x: error: loss not finite', file=sys.stderr); sys.exit(2)")
    for order in ("cab", "abc"):  # at first c has nothing to wait for, then all have nothing
        told = []
        run_all({"a": [one], "b": [one, two], "c": []}, 1, lambda *t, to=told: to.append(t))
        assert "".join(name for name, _ in told) == order
    assert {seconds for _, seconds in told} == {None}
    assert done.read_text() == "1"
    assert arm_numbers(two) == {"failed": "x: error: loss not finite\n"}
    slow = script(tmp_path / "slow.json", "import time; time.sleep(60)")
    wrong = script(tmp_path / "wrong.json", "sys.exit('--stops: 1; allowed: 2')")
    start, told = time.perf_counter(), []
    with pytest.raises(ValueError, match="--stops: 1; allowed: 2"):
        run_all({"a": [slow], "b": [wrong]}, 2, lambda name, _: told.append(name))
    assert time.perf_counter() - start < 30 and told == []


def test_numbers_of_a_run_by_hand(tmp_path):
    """Catches before for after, a reward that is never reached, generations of another batch."""
    means = {"accuracy_frac": 0.5, "markers_per_completion": 1.0, "mine_frac": 0.1}
    better = {"accuracy_frac": 0.75, "markers_per_completion": 0.25, "mine_frac": 0.2}
    summary = {
        "before": {"train": means, "fresh": means}, "after": {"train": better, "fresh": better},
        "teacher_accuracy_frac": {"unadapted": 0.8, "before": 0.9, "after": 0.7}, "train_s": 3.5,
        "pretrain_s": 20.0,
    }
    step = {"kind": "step", "completion_tokens": 9.0, "reverse_kl": 0.1, "loss": 0.3}
    rows = [
        {"kind": "evaluation", "step": 0, "train": means, "teacher": {"accuracy_frac": 0.9}},
        {**step, "step": 1, "reward": 0.25}, {**step, "step": 5, "reward": 0.95},
        {"kind": "evaluation", "step": 5, "train": better, "teacher": {"accuracy_frac": 0.7}},
    ]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"run": {"batch_size": 16}}}))
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    numbers = numbers_of(tmp_path)
    assert (numbers["before.fresh.accuracy"], numbers["after.train.markers"]) == (0.5, 0.25)
    assert (numbers["before.teacher.accuracy"], numbers["after.teacher.accuracy"]) == (0.9, 0.7)
    assert (numbers["before.fresh.mine"], numbers["curve.loss"]) == (0.1, [0.3, 0.3])
    assert (numbers["curve.evaluated"], numbers["curve.train.accuracy"]) == ([0, 5], [0.5, 0.75])
    assert numbers["curve.teacher.accuracy"] == [0.9, 0.7]
    assert numbers["initial gap"] == pytest.approx(0.4)
    assert (numbers["curve.step"], numbers["curve.generations"]) == ([1, 5], [16, 80])
    assert (numbers["mean reward"], numbers["generations to 0.9"]) == (pytest.approx(0.6), 80)
    assert (numbers["seconds"], numbers["pretrain seconds"]) == (3.5, 20)
    rows[2]["reward"] = 0.5
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert numbers_of(tmp_path)["generations to 0.9"] == 80


def test_flags_are_merged_and_the_last_one_counts():
    """Catches a world that replaces the arm's, a switch that swallows a word."""
    words = "coverage --steps 3 --world a=1 --deterministic --workers=4 all --steps 5 --world b=2"
    rest, flags = split_flags(shlex.split(words))
    assert rest == ["coverage", "all"]
    expected = {"--steps": "5", "--world": "a=1,b=2", "--deterministic": None, "--workers": "4"}
    assert flags == expected


def test_the_command_of_a_row_can_be_typed():
    """Catches a switch with a value, a pattern that a shell expands, a flag that was not kept."""
    flags = {"--world": "operators=+-*", "--deterministic": None}
    words = claim_flags({"claim": "coverage", "universes": [{}, {}], "flags": flags})
    assert words == "coverage --universes 2 --world 'operators=+-*' --deterministic"
    settings, given = command.settings_of(shlex.split(words))
    assert (settings.names, settings.universes, given) == (["coverage"], 2, flags)
    assert claim_flags({"claim": "coverage", "universes": [{}] * 8, "flags": {}}) == "coverage"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nonsense"], "suppression"),
        (["suppression", "--universes", "0"], "--universes"),
        (["suppression", "--universes", "9"], "--universes"),
        (["suppression", "--workers", "two"], "--workers"),
        (["suppression", "--method", "grpo"], "--method"),
        (["suppression", "--seed", "4"], "the number of the universe"),
    ],
)
def test_bad_calls_are_met_by_one_line(arguments, word, capsys):
    """Catches a traceback, or an hour of runs before an error."""
    with pytest.raises((ValueError, SystemExit)) as stopped:
        command.main(arguments)
    error = capsys.readouterr().err if stopped.type is SystemExit else f"{stopped.value}\n"
    assert error.count("\n") == 1 and word in error


def test_names_are_listed_and_results_of_another_version_are_refused(tmp_path, capsys):
    """Catches a claim that nobody can find, and a file that is overwritten."""
    command.main(["list"])
    assert len(capsys.readouterr().out.splitlines()) == len(CLAIMS)
    (tmp_path / "claims.json").write_text('{"suppression": {"verdict": "reproduced"}}')
    with pytest.raises(ValueError, match=r"--out_dir: .* no claims of this version"):
        command.read_rows(tmp_path)


def test_a_claim_from_the_command_to_the_picture(
    tmp_path, cache_dir, small_runs, monkeypatch, capsys
):
    """Catches a broken command, table or picture, and a finished run that is made again."""
    tiny = (
        "--steps 1 --batch_size 4 --group_size 2 --eval_problems 4 --max_new_tokens 6 "
        "--train_problems 8 --pretrain_steps 1 --world operators=+,max_operations=2 "
        f"--cache_dir {cache_dir} --out_dir {tmp_path}"
    )
    claim = replace(MADE_UP, once={})
    monkeypatch.setattr("lab.claims.runs.measures.NAMES", ())  # the base model is not looked at
    monkeypatch.setattr(command, "all_claims", lambda: {"made_up": claim})
    words = ["all", "--universes", "1", *tiny.split()]
    command.main(words)
    out = capsys.readouterr().out
    assert "[1/1] made_up: too few universes (holds in 0 of 1)" in out
    assert "made_up: TOO FEW UNIVERSES" in out and "written: " in out
    (row,) = json.loads((tmp_path / "claims.json").read_text())
    assert row["universes"][0]["effect"] is not None and row["core_seconds"] > 0
    assert (tmp_path / "claim-made_up.png").stat().st_size > 10_000
    commands = re.findall(r"`(python train_gpt\.py [^`]+)`", (tmp_path / "claims.md").read_text())
    assert len(commands) == 2 and f"--learning_rate {own_rate('sdpo') / 2:g} " in commands[0]

    # As a stop leaves it: one of the two runs is made anew, and another claim's row stays.
    (tmp_path / "claims.json").write_text(json.dumps([row | {"claim": "another"}]))
    kept, lost = (Path(shlex.split(c)[-1]) / "summary.json" for c in commands)
    lost.unlink()
    then = kept.stat().st_mtime_ns
    command.main(words)
    assert lost.exists() and kept.stat().st_mtime_ns == then
    assert [r["claim"] for r in json.loads((tmp_path / "claims.json").read_text())] == [
        "made_up", "another"]
