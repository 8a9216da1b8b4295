"""Tiny models, and a world so small that every completion can be listed and summed over.

Also what tests share so that it is made once: base models, and processes that import nothing.
"""

import dataclasses
import gc
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lab import hf, storage
from minisd import GPT, Batch, Completions, GPTConfig, Prompts, Sizes, token_log_probs
from toy_tasks import Toy

# Two test processes share two cores, and a second thread costs more than it gives at these sizes.
torch.set_num_threads(1)
# Checkpoints are compared to the last digits, whatever this processor multiplies in.
hf.CHECKPOINT_DEFAULTS["dtype"] = "float32"

TINY = {"vocab_size": 11, "n_layers": 2, "width": 12, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6,
        "mlp_width": 10}


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
def make_gpt():
    """Builds a tiny GPT; its head is large, so that its distributions are far from uniform."""
    return build_gpt


def build_gpt(seed: int = 0, dtype: torch.dtype = torch.float64, **config) -> GPT:
    generator = torch.Generator().manual_seed(seed)
    model = GPT(GPTConfig(**{**TINY, "init_std": 0.5, **config}), generator)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5, generator=generator)
    return model.to(dtype)


def finished_run(folder: Path, student: GPT, toy: Toy, **run) -> None:
    """What a measure of a finished run in the toy reads: its student and its settings."""
    storage.save_student(folder / "student.pt", student)
    run = {"seed": 0, "train_problems": 4, "threads": 1, "cache_dir": ""} | run
    groups = {"run": run, "toy": dataclasses.asdict(toy), "method": {}, "checkpoint": {}}
    storage.write_json(folder / "config.json", {"settings": groups})


def weights_of(model: GPT) -> Tensor:
    """All weights as one vector, without gradient."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def move(model: GPT, seed: int, size: float = 0.1) -> None:
    """Stands for an optimiser step: every weight moves, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * torch.randn(weight.shape, generator=generator)


def batch_of(prompts: Prompts, hinted: Prompts, completions: Completions, **sizes) -> Batch:
    """A batch without rows, as measures build it: what is shown and what was written."""
    shown = {"none": prompts, "solution": hinted}
    return Batch([], shown, completions, torch.zeros(len(completions.ids)), Sizes(**sizes))


def plain_log_probs(model: GPT, prompt: list[int], completion: list[int]) -> Tensor:
    """log p(. | prompt, completion so far) (T, V): one row, no padding, no cache."""
    rows = torch.tensor([prompt + completion])
    return model(rows)[0, len(prompt) - 1 : -1].log_softmax(-1)


@dataclass
class Enumerated:
    """Student, teacher and reference with all their completions: V=4 tokens, length at most T=3.

    A completion ends with its end token or at length T. The teacher has a longer prompt.
    """

    student: GPT
    teacher: GPT
    reference: GPT
    prompts: Prompts
    teacher_prompts: Prompts
    completions: Completions

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.student.parameters())

    def log_probs(self, model: GPT, prompts: Prompts) -> Tensor:
        """log p(. | prefix) (N, T, V) of every completion by a plain forward of whole rows."""
        ids = self.completions.ids
        prompt = prompts.ids[0].tolist()
        return torch.stack([plain_log_probs(model, prompt, row) for row in ids.tolist()])

    def token_log_probs(self, model: GPT, prompts: Prompts) -> Tensor:
        """log p(y_t | prefix) (N, T), 0 behind the end."""
        chosen = token_log_probs(self.log_probs(model, prompts), self.completions.ids)
        return chosen.masked_fill(~self.completions.mask, 0.0)

    def probability(self) -> Tensor:
        """P(y) (N,) under the student, without gradient."""
        with torch.no_grad():
            return self.token_log_probs(self.student, self.prompts).sum(1).exp()

    def expected(self, per_token: Tensor) -> Tensor:
        """E over the student's completions of the sum over tokens; sampling gets no gradient."""
        per_row = per_token.masked_fill(~self.completions.mask, 0.0).sum(1)
        return (self.probability() * per_row).sum()

    def gradient(self, value: Tensor) -> Tensor:
        """Gradient of a number in all student weights, as one vector."""
        gradients = torch.autograd.grad(value, self.parameters, retain_graph=True)
        return torch.cat([g.flatten() for g in gradients])

    def batch(self) -> Batch:
        return batch_of(self.prompts, self.teacher_prompts, self.completions)


def all_completions(vocab_size: int, length: int, end_id: int) -> Completions:
    """Every sequence that stops at its first end token or at the length limit, right-padded."""
    rows = {}
    for tokens in itertools.product(range(vocab_size), repeat=length):
        cut = tokens.index(end_id) + 1 if end_id in tokens else length
        rows[tokens[:cut]] = None
    return Completions.of([list(row) for row in rows], pad_id=0)


@pytest.fixture(scope="module")
def world() -> Enumerated:
    tiny = {"vocab_size": 4, "width": 8, "mlp_width": 6, "n_heads": 2, "n_kv_heads": 1,
            "head_dim": 4}
    completions = all_completions(vocab_size=4, length=3, end_id=1)
    N = len(completions.ids)
    return Enumerated(
        build_gpt(1, **tiny),
        build_gpt(2, **tiny).requires_grad_(False),
        build_gpt(3, **tiny).requires_grad_(False),
        Prompts.of([[2, 3]] * N, pad_id=0),
        Prompts.of([[0, 3, 2, 2, 3]] * N, pad_id=0),
        completions,
    )
