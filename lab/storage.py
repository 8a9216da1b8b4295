"""A run's folder: one process at a time, nothing half written, bit for bit onwards after a stop."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import platform
import random
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lab import distributed
from lab.flags import out_folder, shell_word
from lab.weights import NOT_FINITE, not_finite
from minisd import GPT, GPTConfig, Teacher

ROOT = Path(__file__).parent.parent
LOCK = ".lock"
SPENT = ("pretrain_s", "train_s", "wall_s", "step_s", "peak_memory_gib")  # of a run's summary
# What two runs may differ in and still be the same run.
FREE_SETTINGS = ("out_dir", "save_every", "cache_dir")
UNREADABLE = (  # what zipfile, torch and a missing key raise at a broken file
    OSError, EOFError, KeyError, TypeError, RuntimeError, ValueError, AttributeError,
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError,
)


# Files --------------------------------------------------------------------------------------------


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls write(temporary path), then renames it: no reader ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("r+b") as f:
            os.fsync(f.fileno())  # so that a power cut leaves no name without content
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # half a file would only fill a full disk further
        raise


def is_temporary(path: Path) -> bool:
    """Whether it is the lock, or what a killed `write_atomically` or `hf.save` leaves."""
    left = path.name.startswith(".") and path.suffix[1:].isdigit()
    return path.name == LOCK or left or path.name.startswith(".checkpoint.")


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))


def save_tensors(path: Path, content: dict) -> None:
    """torch.save, atomically. Raises OSError if the disk is full."""

    def write(temporary: Path) -> None:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # PyTorch's own word for every failure of the file system
            reason = str(error).splitlines()[0]
            words = f"{str(path)!r} cannot be written; is the disk full? ({reason})"
            raise OSError(words) from None

    write_atomically(path, write)


def load_tensors(path: Path, flag: str, keys: set[str]) -> dict:
    """What `save_tensors` wrote. Raises ValueError, naming the flag, for damage and for NaN."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # the checksums, which torch.load does not look at
                raise EOFError
        # Of several processes, those of one machine share the file's pages in memory.
        shared = distributed.processes() > 1
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=shared)
        if not keys <= saved.keys():
            raise KeyError
        broken = not_finite(saved.get("weights", {}))
    except UNREADABLE:
        raise ValueError(f"{flag}: {str(path)!r} is damaged, or another kind of file") from None
    if broken:
        raise ValueError(f"{flag}: {str(path)!r}: {broken} {NOT_FINITE}")
    return saved


def save_student(path: Path, student: GPT) -> None:
    """A model of the toy with its shape; see `load_student`."""
    config = dataclasses.asdict(student.config)
    save_tensors(path, {"weights": student.state_dict(), "config": config})


def load_student(path: Path, flag: str, device: str | torch.device = "cpu") -> GPT:
    """The model of the toy in a run's folder. Raises ValueError that names the flag."""
    saved = load_tensors(path, flag, {"weights", "config"})
    try:
        student = GPT(GPTConfig(**saved["config"]))
        student.load_state_dict(saved["weights"])
    except UNREADABLE:
        raise ValueError(f"{flag}: {str(path)!r} does not fit this version") from None
    return student.to(device)


# A folder and what it holds -----------------------------------------------------------------------


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Locks the folder, which is made if need be. Raises ValueError if another process has."""
    out_folder(folder)
    made = not os.path.exists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out_dir: {str(folder)!r}: {error.strerror}") from None
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"--out_dir: another process is at work in {str(folder)!r}; allowed: another folder, "
            "or to wait for it"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # of Windows, which deletes no open file
            (folder / LOCK).unlink(missing_ok=True)  # first: who opened it before will notice
        lock.release()
        if made and not any(folder.iterdir()):
            folder.rmdir()


def comparable(settings: dict[str, dict]) -> dict[str, Any]:
    """Settings of all groups by flag, without those that two equal runs may differ in."""
    flat = {name: value for group in settings.values() for name, value in group.items()}
    flat = json.loads(json.dumps(flat))  # tuples are lists in a file
    return {name: value for name, value in flat.items() if name not in FREE_SETTINGS}


def read_settings(folder: Path, flag: str) -> dict[str, dict]:
    """The settings of the run in a folder. Raises ValueError for another or an older one."""
    return read_config(folder, flag)["settings"]


def read_config(folder: Path, flag: str) -> dict[str, dict]:
    """The config.json of a run: settings, record, checksums of what its flags name, by flag."""
    try:
        config = {"checksums": {}} | json.loads((folder / "config.json").read_text())
        settings, groups = config["settings"], config["settings"].keys()
        old = groups != {"run", "method", "toy", "checkpoint"}
        parts = (config.get("record", {}), *settings.values(), *config["checksums"].values())
        if not old and not all(isinstance(part, dict) for part in parts):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        words = "has no config.json of a run" if flag == "--resume" else "holds other files"
        raise ValueError(f"{flag}: {str(folder)!r} {words}; allowed: a run's folder") from None
    if old:
        raise ValueError(
            f"{flag}: {str(folder)!r} holds a run of the first edition; allowed: a new folder"
        )
    return config


def finished_run(folder: Path, made: Any, resume: bool) -> dict | None:
    """The summary of this very run (a lab.identity.Made), if it has finished in the folder.

    Changes nothing. Raises ValueError if the path is a file, or holds something else than a run of
    these settings and this content, or such a run unfinished, unless it is to be resumed.
    """
    out_folder(folder)
    if not os.path.isdir(folder) or all(map(is_temporary, folder.iterdir())):
        return None
    config = read_config(folder, "--out_dir")
    found, wanted = comparable(config["settings"]), comparable(made.settings)
    finished = (folder / "summary.json").exists()
    for name in wanted:
        by_content = wanted[name] and name in config["checksums"]  # below, whatever the path
        if found.get(name) != wanted[name] and not by_content:
            raise ValueError(
                f"--out_dir: {str(folder)!r} holds {'a' if finished else 'an unfinished'} run with "
                f"--{name} {found.get(name)!r} instead of {wanted[name]!r}; allowed: the same "
                "settings or another folder"
            )
    made.require_same(config["checksums"], folder)
    if finished:
        return read_summary(folder)
    with alone_in(folder):  # raises if that run is at work at this moment
        pass
    if not resume:
        raise ValueError(
            f"--out_dir: {str(folder)!r} holds this run, unfinished; to go on: "
            f"{resume_command(folder)}; to start over, delete that folder"
        )
    return None


def read_summary(folder: Path) -> dict:
    """The results of a finished run. Raises ValueError if the file is damaged."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        kinds = {"before": dict, "after": dict, "samples": list, "steps": int}
        kinds |= dict.fromkeys(SPENT, (int, float))
        if not all(isinstance(summary[name], kind) for name, kind in kinds.items()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"--out_dir: {str(path)!r} is damaged; allowed: another folder") from None
    return summary


def start_folder(folder: Path, made: Any, device: torch.device) -> None:
    """Removes what a killed process was writing; without checkpoints, writes config.json."""
    for path in (*folder.iterdir(), *(folder / "checkpoints").glob("*")):
        if is_temporary(path) and path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not (folder / "checkpoints").exists():
        content = {"settings": made.settings, "checksums": made.checksums()}
        write_json(folder / "config.json", content | {"record": record(device)})


def resume_command(folder: Path) -> str:
    """The line that goes on with an unfinished run."""
    count = distributed.processes()
    start = "python" if count == 1 else f"torchrun --nproc_per_node {count}"
    return f"{start} train_gpt.py --resume {shell_word(str(folder))}"


def pick_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError if this machine does not have it."""
    available = ["cpu"]
    available += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if "cuda" in available else "cpu")
    try:
        if name.split(":")[0] in available:
            return torch.device(name)
    except RuntimeError:
        pass
    raise ValueError(f"--device: {name!r}; allowed here: auto, {', '.join(available)}")


def prepare_device(name: str, threads: int = 0, deterministic: bool = False) -> torch.device:
    """The device, with so many CPU threads and, if asked, only repeatable operations."""
    device = pick_device(name)
    if threads:
        torch.set_num_threads(threads)
    if deterministic != torch.are_deterministic_algorithms_enabled():  # it imports a compiler
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        torch.backends.cudnn.benchmark = False
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS is first used
    return device


def code_version() -> str:
    """A hash of the code that a run executes, to tell whether results are older than it."""
    files = ["minisd.py", "toy_tasks.py", "train_gpt.py"]
    files += [f"lab/{p.name}" for p in sorted(Path(__file__).parent.glob("*.py"))]
    used = (name for name in files if (ROOT / name).exists())
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in used)).hexdigest()[:16]


def record(device: torch.device) -> dict[str, Any]:
    """What a reader needs to repeat a run: code version, packages and machine."""
    commit = ""
    with contextlib.suppress(OSError):  # without git it is unknown
        asked = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    return {
        "git_commit": commit or "unknown",
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": distributed.processes(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def changes_since(folder: Path, device: torch.device) -> list[str]:
    """What is not as it was when the run began: its numbers will not be the same bit for bit."""
    then = json.loads((folder / "config.json").read_text()).get("record", {})
    now = record(device)
    return [name for name in now if then.get(name) != now[name] and name != "git_commit"]


# The state of training ----------------------------------------------------------------------------

@dataclass
class State:
    """All that a step changes or depends on: with it, training goes on bit for bit on a CPU."""

    student: GPT
    teacher: Teacher
    reference: GPT | None
    optimizer: torch.optim.Optimizer
    rng: random.Random
    generator: torch.Generator
    step: int = 0  # the last one that is done

    def models(self) -> dict[str, GPT]:
        """Every model with weights of its own."""
        models = {"student": self.student, **self.teacher.copies}
        return models | ({"reference": self.reference} if self.reference else {})

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only, so that it is read without unpickling objects."""
        # Importing it takes a second, which a short run need not wait.
        from torch.distributed.checkpoint import state_dict as whole

        options = whole.StateDictOptions(full_state_dict=True, cpu_offload=True)
        models = {name: whole.get_model_state_dict(m, options=options)
                  for name, m in self.models().items()}
        return {
            "step": self.step,
            "models": models,
            "shapes": {name: dataclasses.asdict(m.config) for name, m in self.models().items()},
            "optimizer": whole.get_optimizer_state_dict(
                self.student, self.optimizer, options=options),
            # Of every process: each draws its own problems.
            "rngs": distributed.gather(self.rng.getstate()),
            "generators": distributed.gather(self.generator.get_state()),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes `saved` apart, so that its memory is free. Raises ValueError if it does not fit."""
        from torch.distributed.checkpoint import state_dict as whole

        options, then = whole.StateDictOptions(full_state_dict=True), len(saved.get("rngs", ()))
        if then != distributed.processes():
            raise ValueError(f"--resume: a run of {then} processes; allowed: as many, by torchrun")
        try:
            for name, model in self.models().items():
                whole.set_model_state_dict(model, saved["models"].pop(name), options=options)
            whole.set_optimizer_state_dict(
                self.student, self.optimizer, saved.pop("optimizer"), options=options
            )
            self.rng.setstate(saved["rngs"][distributed.rank()])
            self.generator.set_state(saved["generators"][distributed.rank()])
            self.step = int(saved["step"])
        except (RuntimeError, KeyError, TypeError, ValueError):
            raise ValueError("--resume: the checkpoint does not fit this version") from None


def checkpoint_files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"), reverse=True)


def save_checkpoint(folder: Path, state: State, **notes: Any) -> None:
    """Writes <folder>/checkpoints/step-<step>.pt, and keeps the one before, but no older one."""
    content = {"training": state.state_dict(), **notes}  # all processes take part
    content["settings"] = comparable(read_settings(folder, "--resume"))

    def write() -> None:
        (folder / "checkpoints").mkdir(exist_ok=True)
        save_tensors(folder / "checkpoints" / f"step-{state.step:08d}.pt", content)
        for old in checkpoint_files(folder)[2:]:
            old.unlink()

    distributed.on_first(write)


def last_checkpoint(folder: Path) -> dict | None:
    """The newest whole checkpoint of a run's folder; None if there is none at all.

    A damaged one is named and set aside. Raises ValueError if no other one is whole. The first
    process chooses, so that none goes on from another one.
    """
    keys = {"training", "rows", "notes", "settings"}
    files = checkpoint_files(folder)
    settings = comparable(read_settings(folder, "--resume")) if files else {}

    def choose() -> Path | None:
        refused = []
        for path in files:
            try:
                then = load_tensors(path, "--resume", keys)["settings"]
                if {name: then[name] for name in then if name not in FREE_SETTINGS} != settings:
                    raise ValueError(f"--resume: {str(path)!r} is a checkpoint of another run")
            except ValueError as error:
                refused.append((path, error))
                continue
            for other, error in refused:
                other.rename(other.with_suffix(".refused"))
                print(f"warning: {error}; the one before it is used: {path.name}", file=sys.stderr)
            return path
        if refused:
            raise ValueError(f"{refused[0][1]}, and no other checkpoint is whole")
        return None

    path = distributed.on_first(choose)
    return path and load_tensors(path, "--resume", keys)


# Signals ------------------------------------------------------------------------------------------


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM; args: its number and, in words, what had been reached."""

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.args[0]).name}{''.join(self.args[1:])}"


@contextlib.contextmanager
def handled_signals(handler: Callable) -> Iterator[None]:
    """SIGINT and SIGTERM go to handler(number, frame) meanwhile."""
    if threading.current_thread() is not threading.main_thread():  # only that one may choose
        yield
        return
    previous = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_at_once(number: int, frame: Any) -> None:
    raise Interrupted(number)


@contextlib.contextmanager
def deferred_signals() -> Iterator[Callable[[], int]]:
    """Yields a function that tells the first signal's number, or 0; a second one stops at once.

    In several processes it is the largest of theirs, since a signal reaches them at different
    steps, and torchrun passes on what a scheduler may have sent to all already.
    """
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if received and distributed.processes() == 1:
            raise Interrupted(number)
        received.append(number)

    with handled_signals(receive):
        yield lambda: max(distributed.gather(received[0] if received else 0))


@contextlib.contextmanager
def watched(state: State, stage: str) -> Iterator[Callable[[], int]]:
    """`deferred_signals` for a stage of training; numbers that are none are told with the step."""
    with deferred_signals() as stop_signal:
        try:
            yield stop_signal
        except FloatingPointError as error:
            raise FloatingPointError(f"{stage}, step {state.step + 1}: {error}") from None


@contextlib.contextmanager
def at_work_in(folder: Path) -> Iterator[None]:
    """The folder locked, and what stops the work said with the command that goes on from there.

    A new run that is refused before its first numbers leaves no files, as if it had not begun.
    """
    go_on, new = f"to go on: {resume_command(folder)}", not os.path.exists(folder / "config.json")
    with contextlib.ExitStack() as held:
        distributed.on_first(lambda: held.enter_context(alone_in(folder)))
        try:
            with handled_signals(stop_at_once):
                yield
        except FloatingPointError as error:
            last = next((str(path) for path in checkpoint_files(folder)), "none")
            raise ValueError(
                f"{error}; weights untouched; last checkpoint: {last}; try a lower --learning_rate "
                "in another --out_dir"
            ) from None
        except ValueError:
            log = folder / "metrics.jsonl"
            if new and not (log.exists() and log.stat().st_size):
                for path in (folder / "config.json", log):
                    path.unlink(missing_ok=True)
            raise
        except (OSError, Interrupted) as stop:
            if not (folder / "config.json").exists():
                raise
            if isinstance(stop, OSError):
                raise OSError(f"{stop}; what was saved is whole; {go_on}") from None
            raise Interrupted(*stop.args, f"; {go_on}") from None
