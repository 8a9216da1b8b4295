"""What tests share so that it is made once: base models, and processes that import nothing.

Under xdist the process that hands out the tests reads this file, too: it imports no library, so
that the others begin at once. Models and worlds for tests are in tiny.py.
"""

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

gc.disable()  # until all is imported: nothing of that is garbage


def pytest_collection_finish() -> None:
    """Before the first test."""
    gc.enable()
    gc.freeze()  # what is imported stays: to look through it again and again took a tenth of all
    if "torch" in sys.modules:  # else this process hands out the tests
        # Two test processes share two cores, and a second thread costs more than it gives here.
        importlib.import_module("torch").set_num_threads(1)
        # Checkpoints are compared to the last digits, whatever this processor multiplies in.
        importlib.import_module("lab.hf").CHECKPOINT_DEFAULTS["dtype"] = "float32"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> str:
    """Base models are pretrained once for all tests, whichever process they run in."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return str(tmp_path_factory.getbasetemp().parent / "base")
    return str(tmp_path_factory.mktemp("base"))


class Fork(getattr(multiprocessing.context, "ForkProcess", multiprocessing.Process)):
    """A process that has all imports of this one."""

    def __init__(self, target: Callable, args: tuple):
        super().__init__(target=afresh, args=(target, *args))

    @property
    def exitcode(self) -> int:
        """Asked for when the process ends, which shows a moment before there is a code."""
        self.join()
        return super().exitcode


def afresh(function: Callable, *arguments) -> None:
    """In a fork: undoes what pytest has changed, as far as a command would notice."""
    gc.freeze()  # else every collection touches, so copies, the memory of all tests
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    warnings.resetwarnings()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = 0
    try:
        function(*arguments)
    except SystemExit as stop:
        code = stop.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        code = 1
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not as multiprocessing ends: it waits for threads that this process lacks


@pytest.fixture(scope="session", autouse=True)
def imported_once():
    """Runs of experiments are forks of the tests, not of a server with imports of its own."""
    import torch

    from lab import runs

    def server() -> SimpleNamespace:
        for name in runs.LIBRARIES:  # once, and not in every fork
            importlib.import_module(name)
        return SimpleNamespace(Process=Fork)

    with pytest.MonkeyPatch.context() as patch:
        if hasattr(os, "fork") and not torch.cuda.is_available():  # CUDA cannot be forked
            patch.setattr(runs, "server", server)
        yield


@pytest.fixture
def small_runs(monkeypatch) -> None:
    """Runs of train_gpt.py, started ones as well, have small models and draw no picture.

    A picture takes longer than the run.
    """
    from lab import base, report

    monkeypatch.setattr(base, "SIZES", {"base": {"n_layers": 1}, "larger": {"n_layers": 2}})
    monkeypatch.setattr(report, "draw_curves", lambda path, *_: path.write_text("a picture"))


@pytest.fixture
def make_gpt() -> Callable:
    """Builds a tiny GPT; its head is large, so that its distributions are far from uniform."""
    from tiny import build_gpt

    return build_gpt


@pytest.fixture(scope="module")
def world() -> Any:
    from tiny import enumerated_world

    return enumerated_world()
