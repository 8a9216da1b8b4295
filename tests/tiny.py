"""Tiny models, and a world so small that every completion can be listed and summed over."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lab import storage
from minisd import GPT, Batch, Completions, GPTConfig, Prompts, Sizes, token_log_probs
from toy_tasks import Toy

TINY = {"vocab_size": 11, "n_layers": 2, "width": 12, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6,
        "mlp_width": 10}


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


def enumerated_world() -> Enumerated:
    """Three models with weights of their own, and all that they can write."""
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
