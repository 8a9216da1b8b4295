"""Experiments are commands: each run is a process of its own, in one thread, and can be pasted.

1 commands as words   2 a process   3 the queue
"""

import argparse
import contextlib
import multiprocessing
import os
import pkgutil
import runpy
import shlex
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing import connection, forkserver
from pathlib import Path

from lab import storage
from lab.base import progress
from lab.flags import OneLineParser, out_folder

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
PATIENCE = 30.0  # seconds in which a stopped run may finish its step and save
UNFINISHED = ", unfinished; to go on"  # what train_gpt.py says of a folder with the same run

Flags = dict[str, str | None]  # name with its two dashes -> value; None for a switch
Start = Callable[[list[str]], None]  # runs a command: the words behind `python`


class Failed(ValueError):
    """A command that failed; `said` is the last line of its errors."""

    def __init__(self, words: list[str], said: str):
        super().__init__(f"{paste_ready(words)}: {said}")
        self.said = said


# 1. Commands as words -----------------------------------------------------------------------------


def split_flags(words: list[str]) -> tuple[list[str], Flags]:
    """Words that belong to no flag, and the flags; the last one of a name counts.

    Two worlds are one with the changes of both.
    """
    rest, flags = [], {}
    words = list(words)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            rest.append(name + equals + value)
            continue
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else None
        if name == "--world" and flags.get(name):
            value = ",".join(filter(None, (flags[name], value)))
        flags[name] = value
    return rest, flags


def joined(flags: Flags) -> list[str]:
    """Flags as a command has them."""
    return [part for name, v in flags.items() for part in ([name] if v is None else [name, v])]


def own_and_passed(
    parser: OneLineParser, argv: list[str], *, limits: dict[str, tuple[int, int]],
    refused: dict[str, str], out_dir: str, switches: tuple[str, ...] = (),
) -> tuple[argparse.Namespace, Flags]:
    """The settings of a command that starts runs, and the flags that it passes on to all of them.

    limits: its whole numbers, least and most; switches: its flags without a value; --workers and
    --out_dir (with its default) it always has. refused: flags that its runs may not be given, and
    why. Raises ValueError.
    """
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--out_dir", default=out_dir, help=f"default: {out_dir}")
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    limits = limits | {"workers": (1, 1000)}
    (words, flags), names = split_flags(argv), {*limits, *switches, "out_dir"}
    own = {k: v for k, v in flags.items() if k.removeprefix("--") in names}
    settings = parser.parse_args([*words, *joined(own)])
    for name, (least, most) in limits.items():
        if not least <= (value := getattr(settings, name)) <= most:
            raise ValueError(f"--{name}: {value}; allowed: {least} or more, at most {most}")
    for name, why in refused.items():
        if name in flags:
            raise ValueError(f"{name}: {flags[name]!r}; allowed: not here ({why})")
    out_folder(settings.out_dir)
    return settings, {k: v for k, v in flags.items() if k not in own}


def paste_ready(words: list[str]) -> str:
    """The command, to be pasted into a shell in the folder of train_gpt.py."""
    return f"python {shlex.join(words)}"


# 2. A process -------------------------------------------------------------------------------------


# Importing the libraries takes seconds, and a run of the toy not many more. So that they are
# imported once, a server imports them and every run is a fork of it. What is run is not among
# them: it is read anew by each run. NOTE: PyTorch imports _dynamo (2 s) with its first optimiser.
LIBRARIES = ("torch._dynamo", "scipy.stats", "matplotlib.figure", "matplotlib.backends.backend_agg")
OURS = ("evaluation", "extra_losses", "flags", "hf", "report", "storage", "text_tasks", "words")


def preloaded() -> list[str]:
    """The modules that the server imports; it passes over one that is not there."""
    measures = pkgutil.iter_modules([str(ROOT / "lab" / "measures")], "lab.measures.")
    names = (m.name for m in measures if not m.name.endswith("__main__"))
    return [*LIBRARIES, *(f"lab.{name}" for name in OURS), *names]


def environment() -> dict[str, str]:
    """The environment of a run: one thread, no bar, and our packages in any folder."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return os.environ | ONE_THREAD | {"PYTHONPATH": paths}


def server() -> multiprocessing.context.BaseContext:
    """What starts processes: forks of a server, or new interpreters on Windows."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preloaded())
    kept = dict(os.environ)
    # Before the imports: a library that has its threads already cannot be forked.
    os.environ.update(environment())
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return context


@contextlib.contextmanager
def nothing_imported() -> Iterator[None]:
    """A new process imports its parent's main module first: give it an empty one."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def become(words: list[str], settings: dict[str, str], errors: str) -> None:
    """In a new process: does what `python WORDS` does, silently, with its errors in a file."""
    if hasattr(os, "setsid"):  # so that Ctrl-C comes once: a second signal stops at once
        os.setsid()
    os.environ.clear()
    os.environ.update(settings)
    for place, stream in ((os.devnull, 1), (errors, 2)):
        with open(place, "w") as file:
            os.dup2(file.fileno(), stream)
    first = os.getcwd() if words[0] in ("-m", "-c") else os.path.dirname(os.path.abspath(words[0]))
    sys.path[:] = dict.fromkeys((first, *sys.path, str(ROOT)))
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


# 3. The queue -------------------------------------------------------------------------------------


def run_command(words: list[str]) -> None:
    """One command to its end, such as ["train_gpt.py", "--steps", "2"]; see `in_parallel`."""
    in_parallel([lambda start: start(words)], workers=1)


def in_parallel(jobs: list[Callable[[Start], None]], workers: int, what: str = "runs") -> None:
    """Calls every job(start), `workers` at a time, in their order; start(words) runs a command.

    A run that an earlier call left unfinished is gone on with. If a command fails, start raises
    Failed. If a job raises, or a signal comes, no further command begins, and those at work are
    stopped, with time to save.
    """
    context, scratch = server(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    children: set[multiprocessing.Process] = set()
    lock, stopped, failed = threading.Lock(), threading.Event(), []

    def attempt(job: Callable[[Start], None]) -> None:
        try:
            job(start)
        except BaseException as error:
            failed.append(error)  # the first is the reason; the others may be `not begun`
            stopped.set()
            raise

    def start(words: list[str]) -> None:
        try:
            execute(words)
        except Failed as error:
            if UNFINISHED not in error.said:
                raise
            execute(["train_gpt.py", "--resume", words[words.index("--out_dir") + 1]])

    def execute(words: list[str]) -> None:
        place = [str(ROOT / word) if word == "train_gpt.py" else word for word in words]
        errors = Path(scratch.name) / str(threading.get_ident())
        with lock:
            if stopped.is_set():
                raise Failed(words, "not begun")
            child = context.Process(target=become, args=(place, environment(), str(errors)))
            with nothing_imported():
                child.start()
            children.add(child)
        connection.wait([child.sentinel])
        with lock:  # NOTE: its exit code can be read once, and `start` of another reads it, too
            code = child.exitcode
            children.discard(child)
        if code:
            said = errors.read_text().strip() if errors.exists() else ""
            raise Failed(words, said.splitlines()[-1] if said else f"exit code {code}")

    signals = storage.handled_signals(storage.stop_at_once)
    with scratch, ThreadPoolExecutor(workers) as pool, signals:
        try:
            waiting = [pool.submit(attempt, job) for job in jobs]
            for future in progress(as_completed(waiting), what, len(waiting)):
                future.result()
        except BaseException as error:
            with lock:
                stopped.set()
                running = list(children)
            pool.shutdown(wait=False, cancel_futures=True)
            stop(running)
            if isinstance(error, storage.Interrupted):
                raise storage.Interrupted(error.args[0], "; the same command goes on") from None
            if failed:
                raise failed[0] from None
            raise


def stop(running: list[multiprocessing.Process]) -> None:
    """SIGINT to all of them, and the end if they take too long."""
    for child in running:
        send(child, signal.SIGINT)
    for child in running:
        if not connection.wait([child.sentinel], PATIENCE):
            send(child, getattr(signal, "SIGKILL", signal.SIGTERM))


def send(child: multiprocessing.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(child.pid, number)
