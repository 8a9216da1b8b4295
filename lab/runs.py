"""Experiments are commands: each run is a process of its own, in one thread, and can be pasted."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from lab import storage
from lab.base import progress

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
PATIENCE = 30.0  # seconds in which a stopped run may finish its step and save

Flags = dict[str, str | None]  # name with its two dashes -> value; None for a switch
Start = Callable[[list[str]], None]  # runs a command: the words behind `python`


class Failed(ValueError):
    """A command that failed; `said` is the last line of its errors."""

    def __init__(self, words: list[str], said: str):
        super().__init__(f"{paste_ready(words)}: {said}")
        self.said = said


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


def paste_ready(words: list[str]) -> str:
    """The command, to be pasted into a shell in the folder of train_gpt.py."""
    return f"python {shlex.join(words)}"


def run_command(words: list[str]) -> None:
    """One command to its end, such as ["train_gpt.py", "--steps", "2"]; see `in_parallel`."""
    in_parallel([lambda start: start(words)], workers=1)


def in_parallel(jobs: list[Callable[[Start], None]], workers: int, what: str = "runs") -> None:
    """Calls every job(start), `workers` at a time, in their order; start(words) runs a command.

    A run that an earlier call left unfinished is gone on with. If a command fails, start raises
    Failed. If a job raises, or a signal comes, no further command begins, and those at work are
    stopped, with time to save.
    """
    children: set[subprocess.Popen] = set()
    lock, stopped = threading.Lock(), threading.Event()

    def start(words: list[str]) -> None:
        try:
            execute(words)
        except Failed as error:
            if UNFINISHED not in error.said:
                raise
            execute(["train_gpt.py", "--resume", words[words.index("--out_dir") + 1]])

    def execute(words: list[str]) -> None:
        place = [str(ROOT / word) if word == "train_gpt.py" else word for word in words]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]  # for `-m lab...` in any folder
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with lock:
            if stopped.is_set():
                raise Failed(words, "not begun")
            # In a session of its own, so that Ctrl-C comes once: a second signal stops at once.
            child = subprocess.Popen(
                [sys.executable, *place], env=environment, text=True, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            children.add(child)
        said = child.communicate()[1].strip()
        children.discard(child)
        if child.returncode:
            raise Failed(words, said.splitlines()[-1] if said else f"exit code {child.returncode}")

    with ThreadPoolExecutor(workers) as pool, storage.handled_signals(storage.stop_at_once):
        try:
            waiting = [pool.submit(job, start) for job in jobs]
            for future in progress(as_completed(waiting), what, len(waiting)):
                future.result()
        except BaseException as error:
            with lock:
                stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            stop(children)
            if isinstance(error, storage.Interrupted):
                raise storage.Interrupted(error.args[0], "; the same command goes on") from None
            raise


UNFINISHED = ", unfinished; to go on"  # what train_gpt.py says of a folder with the same run


def stop(children: set[subprocess.Popen]) -> None:
    """SIGINT to all of them, and the end if they take too long."""
    running = list(children)
    for child in running:
        child.send_signal(signal.SIGINT)
    for child in running:
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
