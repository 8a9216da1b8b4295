"""Laws of runs that are interrupted: what is kept, what goes on, what is refused."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from kill_and_resume import outcome

import toy_tasks
import train_gpt
from train_gpt import Interrupted, TrainConfig, method_config

SMALL = {"steps": 5, "save_every": 2, "eval_every": 3, "batch_size": 8, "group_size": 4}
SMALL |= {"max_new_tokens": 8, "eval_problems": 4, "pretrain_steps": 2, "train_problems": 16}
SMALL |= {"learning_rate": 0.01, "world": "operators=+,max_operations=2"}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def rewards_and_rows(monkeypatch):
    """Rewards that differ, so that a policy gradient is not 0, and a row for every step."""
    monkeypatch.setattr(toy_tasks.ToyTask, "grade", coin_grade)
    monkeypatch.setattr(train_gpt, "LOG_EVERY", 1)
    monkeypatch.setattr(train_gpt, "draw_curves", lambda path, *_: path.write_text("a picture"))


def coin_grade(self, text, example):
    """Right answers are right, and every other text is by chance."""
    right = toy_tasks.grade(text, example.answer).reward
    return toy_tasks.Grade(max(right, float(sum(map(ord, text)) % 2)), 0, False, False)


class Crash(Exception):
    """Stands for the end of the process."""


def config_in(folder: Path, cache_dir: str, **flags) -> TrainConfig:
    return method_config(SMALL | {"cache_dir": cache_dir, "out_dir": str(folder)} | flags)


def arguments(config: TrainConfig) -> list[str]:
    """The command line of these settings."""
    settings = dataclasses.asdict(config).items()
    given = [(k, v) for k, v in settings if v != "" and not isinstance(v, bool)]
    return [part for k, v in given for part in (f"--{k}", str(v))]


def at_call(monkeypatch, name: str, number: int, action) -> None:
    """Replaces train_gpt.<name> so that its call of that number begins with the action."""
    function, calls = getattr(train_gpt, name), []

    def replaced(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            action()
        return function(*args, **kwargs)

    monkeypatch.setattr(train_gpt, name, replaced)


def crash() -> None:
    raise Crash


def crashed_run(monkeypatch, config: TrainConfig, name: str = "update", number: int = 5) -> None:
    """A run that ends at a call of train_gpt.<name>; by default in step 5, after checkpoint 4."""
    with monkeypatch.context() as patch:
        at_call(patch, name, number, crash)
        with pytest.raises(Crash):
            train_gpt.run(config, quiet=True)


@pytest.fixture(scope="module")
def uninterrupted(cache_dir, tmp_path_factory):
    """The outcome of a whole run with these flags, which is made once."""
    known = {}

    def outcome_of(**flags) -> dict:
        key = json.dumps(flags)
        if key not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            train_gpt.run(config_in(folder, cache_dir, **flags), quiet=True)
            known[key] = outcome(folder)
        return dict(known[key])

    return outcome_of


def refused(capsys, given: list[str], code: int = 2) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train_gpt.main(given)
    error = capsys.readouterr().err
    assert stop.value.code == code and error.count("\n") == 1, error
    return error


# Going on -----------------------------------------------------------------------------------------

RUNS = [
    {"method": "sdpo", "teacher_update_rate": 0.3},
    {"method": "sdpo", "teacher": "trust_region", "teacher_update_rate": 0.3},
    {"method": "sdpo", "teacher": "snapshot", "teacher_every": 2},
    {"method": "sdpo", "teacher": "live"},
    {"method": "sdft", "train_problems": 0, "teacher_update_rate": 0.3},
    {"method": "grpo", "kl_coef": 5.0, "updates_per_batch": 2},
    {"method": "rlvr_teacher", "adapt_steps": 2},
    {"method": "gkd"},
    {"method": "sft_then_sdpo", "warm_start_steps": 2, "kl_coef": 5.0},
]


@pytest.mark.parametrize("flags", RUNS, ids=str)
def test_resumed_is_uninterrupted(flags, cache_dir, tmp_path, monkeypatch, uninterrupted):
    """Catches a part of the state (teacher, reference, optimiser, a generator) left out."""
    expected, broken = uninterrupted(**flags), config_in(tmp_path / "run", cache_dir, **flags)
    # In an adapted teacher or a warm start there are updates before; none of them is done again.
    before = broken.warm_start_steps + (flags["method"] == "rlvr_teacher") * broken.adapt_steps
    crashed_run(monkeypatch, broken, number=before + 4 * broken.updates_per_batch + 1)
    with monkeypatch.context() as patch:
        at_call(patch, "evaluate_all", 2, crash)  # that of step 5 alone: nothing is done twice
        train_gpt.run(broken, quiet=True, resume=True)
    assert outcome(broken.folder) == expected


MOMENTS = [("start_up_checks", 1), ("evaluate_all", 1), ("evaluate_all", 3), ("collect", 3)]
MOMENTS += [("collect", 6), ("save_tensors", 2), ("checkpoint_files", 2), ("save", 1)]
MOMENTS += [("draw_curves", 1), ("write_json", 2), ("initial_model", 1)]


@pytest.mark.parametrize("name, number", MOMENTS)
def test_a_run_goes_on_from_every_moment(
    name, number, cache_dir, tmp_path, monkeypatch, uninterrupted
):
    """Catches metrics rows lost or doubled, and a moment after which the folder is refused."""
    expected, broken = uninterrupted(), config_in(tmp_path / "run", cache_dir)
    crashed_run(monkeypatch, broken, name, number)
    with (broken.folder / "metrics.jsonl").open("a") as f:
        f.write('{"kind": "step", "st')  # half a row, as a kill leaves it
    (broken.folder / ".summary.json.123").write_text("half a file")
    train_gpt.run(broken, quiet=True, resume=True)
    assert outcome(broken.folder) == expected


def test_the_last_two_checkpoints_are_kept_or_none(cache_dir, tmp_path):
    """Catches a disk that fills up, and --save_every 0 that saves."""
    for every, kept in ((1, [4, 5]), (2, [2, 4]), (0, [])):
        config = config_in(tmp_path / str(every), cache_dir, save_every=every)
        train_gpt.run(config, quiet=True)
        names = [p.name for p in train_gpt.checkpoint_files(config.folder)[::-1]]
        assert names == [f"step-{step:08d}.pt" for step in kept]


def test_resume_takes_no_other_flag_and_the_same_command_names_it(
    cache_dir, tmp_path, monkeypatch, capsys
):
    """Catches settings that change midway, and an unfinished run that is started over."""
    config = config_in(tmp_path / "run", cache_dir)
    crashed_run(monkeypatch, config)
    resume = ["--resume", str(config.folder)]
    assert "--steps" in refused(capsys, [*resume, "--steps", "9"])
    assert "--compare" in refused(capsys, [*resume, "--compare", "sdpo"])
    assert "no config.json" in refused(capsys, ["--resume", str(tmp_path / "nowhere")])
    assert f"--resume {config.folder}" in refused(capsys, arguments(config))
    settings, path = (config.folder / "config.json").read_text(), config.folder / "config.json"
    for old, new in (
        ('"steps": 5', '"steps": 5.5'),
        ('"rules": ""', '"rules": 3'),
        ("rules", "ru"),
    ):
        path.write_text(settings.replace(old, new))
        assert "settings of another version" in refused(capsys, resume)
    path.write_text(settings)
    train_gpt.main(resume)
    assert "going on after step 4" in capsys.readouterr().out
    train_gpt.main(resume)
    assert "already holds this run" in capsys.readouterr().out


# Damage -------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """One bit of one weight, which torch.load itself does not notice."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2 + 100] ^= 1
    path.write_bytes(content)


def other_tensors(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def other_run(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    saved["settings"]["seed"] = 5
    torch.save(saved, path)


def objects(path: Path) -> None:
    torch.save({"settings": Trap()}, path)


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return crash, ()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, other_tensors, other_run, objects, empty])
def test_a_broken_checkpoint_is_named_and_the_older_one_used(
    damage, cache_dir, tmp_path, monkeypatch, capsys, uninterrupted
):
    """Catches a run that goes on from wrong weights, a traceback, and unpickled objects."""
    expected, broken = uninterrupted(), config_in(tmp_path / "run", cache_dir)
    crashed_run(monkeypatch, broken)
    newest, older = train_gpt.checkpoint_files(broken.folder)
    damage(newest)
    train_gpt.run(broken, quiet=True, resume=True)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and newest.name in error and older.name in error
    found = outcome(broken.folder)
    assert f"checkpoints/{newest.stem}.refused" in found.pop("files") and expected.pop("files")
    assert found == expected


def test_without_a_whole_checkpoint_nothing_is_started_over(
    cache_dir, tmp_path, monkeypatch, capsys
):
    """Catches hours of training that are overwritten because two files are damaged."""
    config = config_in(tmp_path / "run", cache_dir)
    crashed_run(monkeypatch, config)
    for path in train_gpt.checkpoint_files(config.folder):
        cut(path)
    content = {p: p.read_bytes() for p in config.folder.rglob("*") if p.is_file()}
    error = refused(capsys, ["--resume", str(config.folder)])
    assert "step-00000004.pt" in error and "no other" in error
    assert content == {p: p.read_bytes() for p in config.folder.rglob("*") if p.is_file()}


def test_a_full_disk_is_one_line_and_loses_nothing(
    cache_dir, tmp_path, monkeypatch, capsys, uninterrupted
):
    """Catches half a checkpoint in place of a whole one, and a traceback of PyTorch's."""
    expected, config = uninterrupted(), config_in(tmp_path / "run", cache_dir)
    for name, number, words in (
        ("save_checkpoint", 2, "step-00000004.pt"),
        ("write_json", 1, "[Errno 27]"),
    ):
        given = arguments(config) if name == "save_checkpoint" else ["--resume", str(config.folder)]
        with monkeypatch.context() as patch:
            at_call(patch, name, number, lambda: limit_file_size(1000))
            try:
                error = refused(capsys, given)
            finally:
                limit_file_size(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        assert words in error and f"--resume {config.folder}" in error
        assert not any(map(train_gpt.is_temporary, config.folder.rglob("*")))
    assert train_gpt.run(config, quiet=True, resume=True)
    assert outcome(config.folder) == expected


def limit_file_size(limit: int) -> None:
    """No file of this process grows beyond; Python ignores the signal that says so."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# Two at once, signals, numbers that are none ------------------------------------------------------


def test_two_runs_in_one_folder_are_refused_and_a_dead_one_is_not_in_the_way(
    cache_dir, tmp_path, monkeypatch, capsys
):
    """Catches two runs that write into each other's files, and a lock that outlives its process."""
    config = config_in(tmp_path / "run", cache_dir)
    crashed_run(monkeypatch, config)
    code = "import fcntl, os, sys, time; f = os.open(sys.argv[1], os.O_RDONLY)\n"
    code += "fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(config.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for given in (arguments(config), ["--resume", str(config.folder)]):
            assert "another process" in refused(capsys, given)
        other.kill()
    assert train_gpt.run(config, quiet=True, resume=True)["steps"] == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_says_how_to_go_on(
    number, cache_dir, tmp_path, monkeypatch, capsys, uninterrupted
):
    """Catches steps that are lost, a traceback, and handlers that stay."""
    expected, config = uninterrupted(), config_in(tmp_path / "run", cache_dir, save_every=0)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    resume = ["--resume", str(config.folder)]
    for given, name, call, words in (  # the start-up checks collect once
        (arguments(config), "initial_model", 1, f"stopped by {signal.Signals(number).name}; to"),
        (resume, "collect", 4, "after step 3, which is saved; to"),
        (resume, "evaluate_all", 1, "after step 5, which is saved; to"),
        (resume, "draw_curves", 1, f"stopped by {signal.Signals(number).name}; to"),
    ):
        with monkeypatch.context() as patch:
            at_call(patch, name, call, lambda: os.kill(os.getpid(), number))
            error = refused(capsys, given, code=128 + number)
        assert f"{words} go on: python train_gpt.py --resume {config.folder}" in error
        assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    train_gpt.main(resume)
    found = outcome(config.folder)
    assert found.pop("files") and expected.pop("files") and found == expected


def test_a_second_signal_stops_at_once():
    """Catches a process that cannot be stopped in a long step."""
    with train_gpt.deferred_signals() as received, pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_numbers_that_are_none_stop_the_run_before_the_weights_are_touched(
    what, cache_dir, tmp_path, monkeypatch, capsys
):
    """Catches weights of nan, which no later step repairs, and a checkpoint of them."""
    config = config_in(tmp_path / "run", cache_dir, method="grpo", save_every=1)
    collect, update, models, calls = train_gpt.collect, train_gpt.update, [], []

    def poisoned(config, task, student, *rest, **options):
        batch = collect(config, task, student, *rest, **options)
        calls.append(None)
        if len(calls) == 5 + 1 and what == "loss":  # the start-up checks collect once
            batch.rewards[6] = torch.nan  # of the second group of four
        elif len(calls) == 5 + 1:
            student.head.weight.register_hook(lambda gradient: gradient * torch.inf)
        return batch

    def observed(config, state, *rest):
        models[:] = [state.student, {k: v.clone() for k, v in state.student.state_dict().items()}]
        return update(config, state, *rest)

    monkeypatch.setattr(train_gpt, "collect", poisoned)
    monkeypatch.setattr(train_gpt, "update", observed)
    error = refused(capsys, arguments(config))
    rows = "rows 4, 5, 6 and 1 more" if what == "loss" else "rows 0, 1, 2 and 5 more"
    value = "nan" if what == "loss" else "inf"
    for words in (f"step 5: {what} {value}; in {rows}", "step-00000004.pt"):
        assert words in error
    now, before = models[0].state_dict(), models[1]
    assert all(torch.equal(now[name], before[name]) for name in before)
    saved = train_gpt.read_checkpoint(train_gpt.checkpoint_files(config.folder)[0], config)
    assert torch.equal(saved["training"]["models"]["student"]["head.weight"], now["head.weight"])


def test_weights_that_overflow_are_reported_and_not_a_traceback(cache_dir, tmp_path, capsys):
    """Catches an index out of range where a distribution of nan is sampled from."""
    config = config_in(tmp_path / "run", cache_dir, learning_rate=1e30)
    assert "step 2: " in refused(capsys, arguments(config))


# The record ---------------------------------------------------------------------------------------


def test_the_record_names_code_machine_and_device_and_a_change_is_said(
    cache_dir, tmp_path, monkeypatch, capsys
):
    """Catches a run of which nobody can say where it was made, or that went on elsewhere."""
    config = config_in(tmp_path / "run", cache_dir, device="cpu")
    crashed_run(monkeypatch, config)
    path = config.folder / "config.json"
    content = json.loads(path.read_text())
    names = {"git_commit", "code", "python", "torch", "numpy", "threads", "device", "machine"}
    names.add("processes")
    assert names == content["record"].keys() and content["record"]["device"] == "cpu"
    content["record"]["torch"] = "1.0"
    path.write_text(json.dumps(content))
    train_gpt.run(config, quiet=True, resume=True)
    assert "not bit for bit: torch\n" in capsys.readouterr().err


def test_deterministic_is_switched_on_and_off_again(cache_dir, tmp_path, monkeypatch):
    """Catches a flag that does nothing, or that reaches into the next run."""
    seen = []
    states = (torch.are_deterministic_algorithms_enabled, lambda: torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for on in (True, False):
        config = config_in(tmp_path / str(on), cache_dir, deterministic=on, steps=1)
        at_call(monkeypatch, "start_up_checks", 1, lambda: seen.append([f() for f in states]))
        train_gpt.run(config, quiet=True)
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    assert seen[0] == [True, False] and seen[-1][0] is False
