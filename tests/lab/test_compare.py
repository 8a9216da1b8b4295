"""Laws of comparisons, and of the queue of commands behind every experiment."""

import json
import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from lab import compare, runs, storage
from lab.flags import run_main

# A run of a moment, on a base model that has learned nothing.
TINY = (
    "--steps 1 --batch_size 4 --group_size 2 --max_new_tokens 6 --pretrain_steps 1 "
    "--eval_problems 4 --world operators=+,max_operations=2 --train_problems 8"
)


def script(code: str) -> list[str]:
    """A command that runs this code."""
    return ["-c", f"import sys, time; from pathlib import Path; {code}"]


# The queue ----------------------------------------------------------------------------------------


def test_flags_are_split_from_words_and_joined_again():
    """Catches a switch that swallows a method, a value with a minus, two worlds of which one goes.
    """
    words, flags = runs.split_flags(shlex.split(
        "base sdpo --steps=5 --world a=1 --no-deterministic --seeds 3 --world b=2"))
    assert words == ["base", "sdpo"]
    assert flags == {"--steps": "5", "--world": "a=1,b=2", "--no-deterministic": None,
                     "--seeds": "3"}
    assert runs.split_flags(runs.joined(flags)) == ([], flags)
    command = ["train_gpt.py", "--completion", "a b"]
    assert runs.paste_ready(command) == "python train_gpt.py --completion 'a b'"


def test_commands_run_side_by_side_with_one_thread_in_any_folder(tmp_path, monkeypatch):
    """Catches workers that wait for each other, threads, and a module that is not found."""
    monkeypatch.chdir(tmp_path)
    wait = "while len(list(Path().glob('*.go'))) < 2: time.sleep(0.01)"
    code = "import os, importlib.util; Path('{0}.go').write_text(os.environ['OMP_NUM_THREADS'] " \
           "+ os.environ['TQDM_DISABLE']); assert importlib.util.find_spec('lab.runs')\n" + wait
    jobs = [lambda start, n=n: start(script(code.format(n))) for n in (1, 2)]
    runs.in_parallel(jobs, workers=2)
    assert [path.read_text() for path in tmp_path.glob("*.go")] == ["11", "11"]


def test_a_failed_command_is_named_and_nothing_else_begins(tmp_path):
    """Catches an error that nobody sees, and hours of other runs before it is shown."""
    def begin(start):
        start(script(f"Path({str(tmp_path / 'begun')!r}).touch()"))

    wrong = script("print('a warning', file=sys.stderr); sys.exit('--stops: 1; allowed: 2')")
    with pytest.raises(runs.Failed) as failed:
        runs.in_parallel([lambda start: start(wrong), begin], workers=1)
    assert failed.value.said == "--stops: 1; allowed: 2"
    assert str(failed.value) == f"{runs.paste_ready(wrong)}: --stops: 1; allowed: 2"
    assert not (tmp_path / "begun").exists()
    with pytest.raises(runs.Failed, match="exit code 3"):
        runs.run_command(script("sys.exit(3)"))


def test_an_interrupt_reaches_the_runs_once_and_they_may_save(tmp_path):
    """Catches runs that go on alone, are killed before they save, or get a second signal."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    sleeper = script(
        f"import os\ntry:\n    Path({str(ready)!r}).touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.3)\n"
        f"    Path({str(saved)!r}).write_text(str(os.getsid(0)))")

    def interrupt(start):
        while not ready.exists():
            time.sleep(0.01)
        raise storage.Interrupted(15)

    begun = time.perf_counter()
    with pytest.raises(storage.Interrupted, match="by SIGTERM; the same command goes on"):
        runs.in_parallel([lambda start: start(sleeper), interrupt], workers=2)
    assert time.perf_counter() - begun < 20
    # The terminal's Ctrl-C reaches this session alone.
    assert int(saved.read_text()) != os.getsid(0)


# Comparisons --------------------------------------------------------------------------------------


def test_a_comparison_is_kept_gone_on_with_and_refused(tmp_path, small_runs, monkeypatch, capsys):
    """Catches results that are made anew or mixed, a stopped run that stops the whole table."""
    monkeypatch.chdir(tmp_path)
    asked = ["base", "sdpo", "--seeds", "1", "--seed", "3", "--workers", "1", *TINY.split()]
    compare.main(asked)
    out = capsys.readouterr().out
    folder = tmp_path / "out" / "compare"
    command = f"--method sdpo --seed 3 {TINY} --threads 1 --out_dir out/compare/sdpo-3"
    assert out.splitlines()[0] == f"python train_gpt.py {command}"
    result = json.loads((folder / "compare.json").read_text())
    summary = json.loads((folder / "sdpo-3" / "summary.json").read_text())
    for method, when in (("base", "before"), ("sdpo", "after")):
        for split, means in summary[when].items():
            found = result["methods"][method][split]
            assert {name: cell["mean"] for name, cell in found.items()} == means
    assert (folder / "compare.png").stat().st_size > 10_000

    monkeypatch.setattr(compare, "in_parallel", None)  # nothing is run
    compare.main(asked)
    again = capsys.readouterr().out
    assert "already holds this comparison" in again and "NOTE" not in again
    assert compare.comparison_table(result) in out and compare.comparison_table(result) in again
    for change in (["--seeds", "2"], ["grpo"], ["--learning_rate", "0.1"]):
        with pytest.raises(ValueError, match=r"--out_dir: .* holds a comparison of"):
            compare.main([*asked, *change])

    # As a stop leaves it.
    monkeypatch.setattr(compare, "in_parallel", runs.in_parallel)
    (folder / "compare.json").unlink()
    (folder / "sdpo-3" / "summary.json").unlink()
    compare.main(asked)
    assert json.loads((folder / "compare.json").read_text()) == result

    (folder / "compare.json").unlink()
    monkeypatch.setattr(storage, "code_version", lambda: "another")
    with pytest.raises(ValueError, match=r"--out_dir: .*sdpo-3' holds a run of other code"):
        compare.main(asked)


def test_means_and_intervals_are_over_seeds():
    """Catches an interval over completions, and a change that is not taken seed by seed."""
    def summary(before: float, after: float) -> dict:
        return {"before": {"fresh": {"x": before}}, "after": {"fresh": {"x": after}}}

    cell = compare.over_seeds([summary(0, 1), summary(1, 2), summary(2, 3)], "after", "fresh", "x")
    assert cell["mean"] == 2 and cell["high"] == pytest.approx(2 + 4.303 / 3**0.5, abs=1e-3)
    assert cell["change"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 3}


def test_tables_and_pictures_show_what_is_there(tmp_path):
    """Catches a missing interval that is drawn as one, and a measure that only some tasks have."""
    def cell(mean: float, half: float | None) -> dict:
        low, high = (None, None) if half is None else (mean - half, mean + half)
        return {"mean": mean, "low": low, "high": high, "n": 1 if half is None else 2}

    for half, said in ((None, "0.50 "), (0.25, "0.50 [0.25, 0.75]")):
        means = {"accuracy_frac": cell(0.5, half), "mine": cell(2.0, half)}
        splits = {"train": means, "reversed": means}
        result = {"seeds": [0, 1], "methods": {"base": splits, "sft_then_sdpo": splits}}
        table = compare.comparison_table(result)
        assert said in f"{table} " and "mine" in table and "direct" not in table
        assert max(map(len, table.splitlines())) <= 110
        compare.draw_comparison(tmp_path / "compare.png", result)
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_a_failed_run_says_which_one_it_was():
    """Catches a line that does not tell which of forty runs it is about."""
    def start(words):
        raise runs.Failed(words, "loss nan")

    with pytest.raises(ValueError, match=r"^grpo, seed 7: loss nan$"):
        compare.one_run("grpo", 7, ["train_gpt.py"], start)


BAD = [
    ("", "method", "besides base"),
    ("base", "method", "besides base"),
    ("sdpo nope", "method: 'nope'", "dr_grpo"),
    ("sdpo --seeds 0", "--seeds", "1 or more"),
    ("sdpo --seeds 99999", "--seeds", "at most 1000"),
    ("sdpo --seeds x", "--seeds", "int"),
    ("sdpo --workers 0", "--workers", "1 or more"),
    ("sdpo --method grpo", "--method", "not here"),
    ("sdpo --init Qwen", "--init", "the toy"),
    ("sdpo --threads 2", "--threads", "one thread"),
    ("sdpo --out_dir file", "--out_dir", "a folder"),
    ("sdpo --out_dir damaged", "--out_dir", "is no comparison"),
    ("sdpo --out_dir foreign --seeds 1", "--out_dir", "allowed"),
]


@pytest.mark.parametrize("arguments, named, allowed", BAD, ids=str)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, named, allowed, capsys, tmp_path, monkeypatch
):
    """Catches a traceback, and runs that begin before the refusal."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for path, text in (("damaged/compare.json", "{}"), ("foreign/sdpo-0/config.json", "{}")):
        Path(path).parent.mkdir(parents=True)
        Path(path).write_text(text)
    monkeypatch.setattr(compare, "in_parallel", None)
    monkeypatch.setattr(sys, "argv", ["compare", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        run_main("python -m lab.compare", compare.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"error: {named}" in error or f"error: argument {named}" in error
    assert allowed in error and sorted(os.listdir()) == ["damaged", "file", "foreign"]
