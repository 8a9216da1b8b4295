"""Laws of runs that are interrupted: what is kept, what goes on, what is refused."""

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from multiprocessing import connection
from pathlib import Path

import pytest
import torch

import minisd
import toy_tasks
import train_gpt
from lab import flags, report, runs, storage
from lab.kill_and_resume import outcome
from lab.storage import Interrupted
from minisd import METHODS, Method

ROOT = Path(__file__).parents[2]
SMALL = {"steps": 5, "save_every": 2, "eval_every": 3, "batch_size": 8, "group_size": 4,
         "max_new_tokens": 4, "eval_problems": 4, "pretrain_steps": 2, "train_problems": 16,
         "learning_rate": 0.01, "world": "operators=+,max_operations=2", "threads": 1}


@pytest.fixture(autouse=True)
def rewards_and_rows(monkeypatch, small_runs):
    """Rewards that differ, so that a policy gradient is not 0, and a row for every step."""
    honest = toy_tasks.ToyTask.reward

    def reward(self, text, example) -> float:  # right answers are right, others by chance
        return max(honest(self, text, example), float(sum(map(ord, text)) % 2))

    monkeypatch.setattr(toy_tasks.ToyTask, "reward", reward)
    monkeypatch.setattr(train_gpt, "LOG_EVERY", 1)
    # A teacher with two terms and weights of its own behind both.
    contrast = Method("here", target=((1.5, "ema", "solution"), (-0.5, "frozen", "none")),
                      teacher_update_rate=0.3)
    monkeypatch.setitem(METHODS, "contrast", contrast)


class Crash(Exception):
    """Stands for the end of the process."""


def crash() -> None:
    raise Crash


@pytest.fixture
def command(cache_dir):
    """Settings -> the command line of a small run in a folder."""
    def arguments(folder: Path, **changes) -> list[str]:
        settings = SMALL | {"cache_dir": cache_dir, "out_dir": folder} | changes
        return [part for name, value in settings.items() for part in (f"--{name}", str(value))]

    return arguments


def resume(folder: Path) -> list[str]:
    return ["--resume", str(folder)]


# Where in the program something happens.
PLACES = {"checks": (report, "start_up_checks"), "evaluate": (train_gpt, "evaluate_all"),
          "rollout": (minisd, "rollout"), "step": (minisd, "step"),
          "save": (storage, "save_tensors"), "clean up": (storage, "checkpoint_files"),
          "student": (storage, "save_student"), "checkpoint": (storage, "save_checkpoint"),
          "draw": (report, "draw_curves"), "json": (storage, "write_json"),
          "set-up": (train_gpt, "initial")}


def at_call(monkeypatch, place: str, number: int, action) -> None:
    """The call of that number of a place begins with the action."""
    module, name = PLACES[place]
    function, calls = getattr(module, name), []

    def replaced(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            action()
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, replaced)


def crashed(monkeypatch, arguments: list[str], place: str = "step", number: int = 5) -> None:
    """A run that ends at a call of a place; by default in step 5, after checkpoint 4."""
    with monkeypatch.context() as patch:
        at_call(patch, place, number, crash)
        with pytest.raises(Crash):
            train_gpt.main(arguments)


@pytest.fixture
def crashed_run(command, tmp_path, tmp_path_factory, monkeypatch):
    """The folder of a run that ended in step 5, after checkpoint 4; the run itself is made once."""
    kept = tmp_path_factory.getbasetemp() / "crashed"
    if not kept.exists():
        crashed(monkeypatch, command(kept))
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    path = folder / "config.json"
    path.write_text(path.read_text().replace(str(kept), str(folder)))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(cache_dir, tmp_path_factory):
    """The outcome of a whole run with these flags, which is made once."""
    @functools.cache
    def outcome_of(arguments: tuple[str, ...]) -> dict:
        folder = tmp_path_factory.mktemp("whole") / "run"
        train_gpt.main([*arguments, "--out_dir", str(folder)])  # the last one counts
        return outcome(folder)

    def whole(arguments: list[str]) -> dict:
        at = arguments.index("--out_dir")
        return dict(outcome_of((*arguments[:at], *arguments[at + 2 :])))

    return whole


def refused(capsys, monkeypatch, arguments: list[str], code: int = 2) -> str:
    """The one line with which a command ends, warnings aside."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        flags.run_main("train_gpt.py", train_gpt.main)
    lines = capsys.readouterr().err.splitlines(keepends=True)
    said = [line for line in lines if not line.startswith("warning: ")]
    assert stop.value.code == code and len(said) == 1, lines
    return said[0]


# Going on -----------------------------------------------------------------------------------------

RUNS = [
    {"method": "sdpo", "teacher": "trust_region", "teacher_update_rate": 0.3},
    {"method": "contrast"},
    {"method": "sdft", "train_problems": 0, "teacher": "snapshot", "teacher_every": 2},
    {"method": "grpo", "kl_coef": 5.0, "updates_per_batch": 2},
    {"method": "rlvr_teacher", "adapt_steps": 2},
    {"method": "gkd"},
    {"method": "sft_then_sdpo", "warm_start_steps": 2, "kl_coef": 5.0},
]


@pytest.mark.parametrize("settings", RUNS, ids=str)
def test_resumed_is_uninterrupted(settings, command, tmp_path, monkeypatch, uninterrupted):
    """Catches a part of the state (teacher, reference, optimiser, a generator) left out."""
    broken = command(tmp_path / "run", **settings)
    # In an adapted teacher or a warm start there are steps before; none of them is done again.
    before = settings.get("warm_start_steps", 0) + settings.get("adapt_steps", 0)
    crashed(monkeypatch, broken, number=before + 4 * settings.get("updates_per_batch", 1) + 1)
    with monkeypatch.context() as patch:
        at_call(patch, "evaluate", 2, crash)  # that of step 5 alone: nothing is done twice
        train_gpt.main(resume(tmp_path / "run"))
    assert outcome(tmp_path / "run") == uninterrupted(broken)


MOMENTS = [("checks", 1), ("evaluate", 1), ("evaluate", 3), ("rollout", 3), ("rollout", 5),
           ("save", 2), ("clean up", 2), ("student", 1), ("draw", 1), ("json", 2), ("set-up", 1)]


@pytest.mark.parametrize("place, number", MOMENTS)
def test_a_run_goes_on_from_every_moment(
    place, number, command, tmp_path, monkeypatch, uninterrupted
):
    """Catches metrics rows lost or doubled, and a moment after which the folder is refused."""
    folder, broken = tmp_path / "run", command(tmp_path / "run")
    expected = uninterrupted(broken)  # before: it also pretrains the base model
    crashed(monkeypatch, broken, place, number)
    with (folder / "metrics.jsonl").open("a") as f:
        f.write('{"kind": "step", "st')  # half a row, as a kill leaves it
    (folder / ".summary.json.123").write_text("half a file")
    train_gpt.main(resume(folder))
    assert outcome(folder) == expected


def test_before_anything_is_written_the_same_command_starts_over(command, tmp_path, monkeypatch):
    """Catches a folder that is refused because a run died in its first moment."""
    crashed(monkeypatch, command(tmp_path / "run"), "json", 1)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / ".config.json.123").write_text("half a file")
    train_gpt.main(command(tmp_path / "run"))
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("every, kept", [(1, [4, 5]), (2, [2, 4]), (0, [])])
def test_the_last_two_checkpoints_are_kept_or_none(every, kept, command, tmp_path):
    """Catches a disk that fills up, and --save_every 0 that saves."""
    train_gpt.main(command(tmp_path / "run", save_every=every))
    names = [path.name for path in storage.checkpoint_files(tmp_path / "run")[::-1]]
    assert names == [f"step-{step:08d}.pt" for step in kept]


def test_resume_takes_no_other_flag_and_the_same_command_names_it(
    command, crashed_run, tmp_path, monkeypatch, capsys
):
    """Catches settings that change midway, and an unfinished run that is started over."""
    folder = crashed_run
    fail = functools.partial(refused, capsys, monkeypatch)
    assert "--steps: not with --resume" in fail([*resume(folder), "--steps", "9"])
    assert "no config.json" in fail(resume(tmp_path / "nowhere"))
    assert f"python train_gpt.py --resume {folder}" in fail(command(folder))
    assert "--steps 5 instead of 6" in fail(command(folder, steps=6))
    path = folder / "config.json"
    settings = path.read_text()
    for old, new in (('"steps": 5', '"steps": 5.5'), ('"rules": ""', '"rules": 3'),
                     ('"rules"', '"ru"'), ('"run": {', '"walk": {'), ('"settings"', '"set"'),
                     (settings[-200:], "")):
        assert old in settings
        path.write_text(settings.replace(old, new))
        assert "error: --" in fail(resume(folder))
    path.write_text(settings)
    train_gpt.main(resume(folder))
    assert "going on after step 4" in capsys.readouterr().out
    train_gpt.main(resume(folder))
    assert "already holds this run" in capsys.readouterr().out


def test_a_run_of_the_first_edition_is_refused(command, tmp_path, monkeypatch, capsys):
    """Catches settings that are read with other meanings, and a folder that is overwritten."""
    old = {"settings": {"method": "sdpo", "steps": 5, "loss": "reverse_kl"}, "record": {}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    for arguments in (resume(tmp_path), command(tmp_path)):
        assert "holds a run of the first edition" in refused(capsys, monkeypatch, arguments)
    assert json.loads((tmp_path / "config.json").read_text()) == old


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


def half_of_it(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    torch.save({"training": saved["training"]}, path)


def objects(path: Path) -> None:
    torch.save({"training": Trap()}, path)


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return crash, ()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, other_tensors, half_of_it, objects, empty])
def test_a_broken_checkpoint_is_named_and_the_older_one_used(
    damage, command, crashed_run, capsys, uninterrupted
):
    """Catches a run that goes on from wrong weights, a traceback, and unpickled objects."""
    folder, expected = crashed_run, uninterrupted(command(crashed_run))
    newest, older = storage.checkpoint_files(folder)
    damage(newest)
    capsys.readouterr()
    train_gpt.main(resume(folder))
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and newest.name in error and older.name in error
    found = outcome(folder)
    assert f"checkpoints/{newest.stem}.refused" in found.pop("files") and expected.pop("files")
    assert found == expected


def test_without_a_whole_checkpoint_nothing_is_started_over(
    crashed_run, monkeypatch, capsys
):
    """Catches hours of training that are overwritten because two files are damaged."""
    folder = crashed_run
    for path in storage.checkpoint_files(folder):
        cut(path)
    content = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    error = refused(capsys, monkeypatch, resume(folder))
    assert "step-00000004.pt" in error and "no other checkpoint is whole" in error
    assert content == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_full_disk_is_one_line_and_loses_nothing(
    command, tmp_path, monkeypatch, capsys, uninterrupted
):
    """Catches half a checkpoint in place of a whole one, and a traceback of PyTorch's."""
    folder, whole = tmp_path / "run", command(tmp_path / "run")
    expected = uninterrupted(whole)
    for place, number, arguments, said in (
        ("checkpoint", 2, whole, "step-00000004.pt' cannot be written"),
        ("json", 1, resume(folder), "[Errno 27]"),  # the summary
    ):
        with monkeypatch.context() as patch:
            at_call(patch, place, number, lambda: limit_file_size(1000))
            try:
                error = refused(capsys, monkeypatch, arguments)
            finally:
                limit_file_size(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        assert said in error and f"to go on: python train_gpt.py --resume {folder}" in error
        assert not any(map(storage.is_temporary, folder.rglob("*")))
    train_gpt.main(resume(folder))
    assert outcome(folder) == expected


def limit_file_size(limit: int) -> None:
    """No file of this process grows beyond; Python ignores the signal that says so."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# Two at once, signals, numbers that are none ------------------------------------------------------


def test_two_runs_in_one_folder_are_refused_and_a_dead_one_is_not_in_the_way(
    command, crashed_run, monkeypatch, capsys
):
    """Catches two runs that write into each other's files, and a lock that outlives its process."""
    folder = crashed_run
    code = "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire()\n"
    code += "print(flush=True); time.sleep(60)"
    other = [sys.executable, "-c", code, str(folder / storage.LOCK)]
    with subprocess.Popen(other, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        for arguments in (command(folder), resume(folder)):
            assert "another process is at work" in refused(capsys, monkeypatch, arguments)
        process.kill()
    train_gpt.main(resume(folder))
    assert (folder / "summary.json").exists() and not (folder / storage.LOCK).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_says_how_to_go_on(
    number, command, tmp_path, monkeypatch, capsys, uninterrupted
):
    """Catches steps that are lost, a traceback, and handlers that stay."""
    folder, whole = tmp_path / "run", command(tmp_path / "run", save_every=0)
    expected, name = uninterrupted(whole), signal.Signals(number).name
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    for arguments, place, call, said in (
        (whole, "set-up", 1, f"stopped by {name}; to"),
        (resume(folder), "rollout", 3, f"stopped by {name} after step 3, which is saved; to"),
        (resume(folder), "evaluate", 1, f"stopped by {name} after step 5, which is saved; to"),
        (resume(folder), "draw", 1, f"stopped by {name}; to"),
    ):
        with monkeypatch.context() as patch:
            at_call(patch, place, call, lambda: os.kill(os.getpid(), number))
            error = refused(capsys, monkeypatch, arguments, code=128 + number)
        assert f"{said} go on: python train_gpt.py --resume {folder}" in error
        assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    train_gpt.main(resume(folder))
    found = outcome(folder)
    assert found.pop("files") and expected.pop("files") and found == expected


def test_a_command_that_a_scheduler_stops_can_be_pasted_on(command, tmp_path):
    """Catches a process that dies of SIGTERM, or ends it as a success."""
    words = [str(ROOT / "train_gpt.py"), *command(tmp_path / "a b", steps=9999)]
    errors, log = tmp_path / "errors", tmp_path / "a b" / "metrics.jsonl"
    process = runs.server().Process(
        target=runs.become, args=(words, runs.environment(), str(errors)))
    with runs.nothing_imported():
        process.start()
    while not (log.exists() and '"step": 5,' in log.read_text()):
        assert not connection.wait([process.sentinel], 0.05), errors.read_text()
    process.terminate()
    process.join()
    error = errors.read_text()
    assert process.exitcode == 128 + signal.SIGTERM
    assert error.startswith("train_gpt.py: stopped by SIGTERM after step ")
    assert error.endswith(f"; to go on: python train_gpt.py --resume '{tmp_path / 'a b'}'\n")
    step = int(error.split("after step ")[1].split(",")[0])
    assert storage.last_checkpoint(tmp_path / "a b")["training"]["step"] == step


def test_a_stop_in_a_preparation_says_so(command, tmp_path, monkeypatch, capsys):
    """Catches a step that is said to be saved and is not."""
    warm = command(tmp_path / "run", method="sft_then_sdpo", warm_start_steps=3)
    at_call(monkeypatch, "step", 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    error = refused(capsys, monkeypatch, warm, code=128 + signal.SIGINT)
    assert "stopped by SIGINT in stage 'warm start'; to go on" in error


def test_a_second_signal_stops_at_once():
    """Catches a process that cannot be stopped in a long step."""
    with storage.deferred_signals() as received, pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        assert received() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_numbers_that_are_none_stop_the_run_before_the_weights_are_touched(
    what, command, tmp_path, monkeypatch, capsys
):
    """Catches weights of nan, which no later step repairs, and a checkpoint of them."""
    rollout, seen, calls = minisd.rollout, {}, []

    def poisoned(method, task, student, *rest):
        batch = rollout(method, task, student, *rest)
        calls.append(None)
        if len(calls) == 5:
            if what == "loss":
                batch.weights["advantages"] = batch.weights["advantages"] * torch.nan
            else:
                student.lm_head.weight.register_hook(lambda gradient: gradient * torch.inf)
            seen["student"] = student
            seen["before"] = {name: x.clone() for name, x in student.state_dict().items()}
        return batch

    monkeypatch.setattr(minisd, "rollout", poisoned)
    folder = tmp_path / "run"
    arguments = command(folder, method="grpo", save_every=1)
    error = refused(capsys, monkeypatch, arguments)
    assert ("loss nan" if what == "loss" else "gradient norm inf") in error
    assert "step-00000004.pt; try a lower --learning_rate" in error
    now = seen["student"].state_dict()
    assert all(torch.equal(now[name], seen["before"][name]) for name in now)
    saved = storage.last_checkpoint(folder)["training"]["models"]["student"]
    assert torch.equal(saved["lm_head.weight"], now["lm_head.weight"])


def test_weights_that_overflow_are_reported_and_not_a_traceback(
    command, tmp_path, monkeypatch, capsys
):
    """Catches an index out of range where a distribution of nan is sampled from."""
    error = refused(capsys, monkeypatch, command(tmp_path / "run", learning_rate=2e9))
    assert "nan" in error and "weights untouched" in error


# The record ---------------------------------------------------------------------------------------


def test_the_record_names_code_and_machine_and_a_change_is_said(
    command, tmp_path, monkeypatch, capsys
):
    """Catches a run of which nobody can say where it was made, or that went on elsewhere."""
    folder = tmp_path / "run"
    crashed(monkeypatch, command(folder, device="cpu"))
    path = folder / "config.json"
    content = json.loads(path.read_text())
    names = {"git_commit", "code", "python", "torch", "threads", "device", "machine", "processes"}
    assert names == content["record"].keys() and content["record"]["device"] == "cpu"
    assert content["record"]["code"] == storage.code_version()
    content["record"]["torch"] = "1.0"
    path.write_text(json.dumps(content))
    capsys.readouterr()
    train_gpt.main(resume(folder))
    assert "not bit for bit: torch\n" in capsys.readouterr().err


def test_deterministic_is_switched_on_and_off_again(monkeypatch):
    """Catches a flag that does nothing, or that reaches into the next run."""
    on, benchmark = torch.are_deterministic_algorithms_enabled, torch.backends.cudnn
    monkeypatch.setattr(benchmark, "benchmark", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    storage.prepare_device("cpu", 1, deterministic=True)
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    assert on() and not benchmark.benchmark
    storage.prepare_device("cpu", 1, deterministic=False)
    assert not on()
