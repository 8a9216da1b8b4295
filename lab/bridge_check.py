"""One step by the script of lab/bridge.py, and the loss and gradient of its completions here."""

import dataclasses
import importlib.metadata
import importlib.util
import math
import random
import tempfile
import types
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import minisd
from lab import hf, identity
from lab.bridge_rows import Settings
from lab.text_tasks import TextExample, TextTask
from minisd import GPT, Batch, Completions, Row, Sizes, Teacher

LIMIT = 1e-5  # of the difference of losses, nats, in float32
GRADIENT_LIMIT = 1e-3  # of the norm of the difference of gradients, by the norm
MOST_TOKENS = 24  # of a completion


@dataclasses.dataclass
class Taken:
    """What TRL did in one step: the inputs of its loss, the loss, the gradient by name."""

    inputs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    loss: float = 0.0
    gradient: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def reward_of(ids: list[int]) -> float:
    """A reward that half of all completions have: with none of them right there is no gradient."""
    return float(len(ids) > 1 and zlib.crc32(bytes(str(ids), "ascii")) % 2)


def step_of_trl(s: Settings, path: Path, scratch: str) -> Taken:
    """One step of the script on the CPU, its generation and its data included."""
    spec = importlib.util.spec_from_file_location("written_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.WRITTEN = Path(scratch) / "written.jsonl"
    module.reward = lambda completion_ids, **_: [reward_of(ids) for ids in completion_ids]
    module.LIMIT, module.PART = min(s.run.max_new_tokens, MOST_TOKENS), 4
    if hasattr(module, "reward") and s.method.credit == "imitation":
        module.reward = lambda completion_ids, answer: [reward_of(ids) for ids in completion_ids]
    parts = max(2, Fraction(s.method.student_frac).limit_denominator(1000).denominator)
    names = {"max_completion_length", "max_new_tokens"} & {*module.SETTINGS}
    trainer = module.make_trainer(
        output_dir=scratch, max_steps=1, max_grad_norm=0.0, bf16=False, use_cpu=True,
        per_device_train_batch_size=max(2, s.run.group_size), gradient_accumulation_steps=parts,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, **dict.fromkeys(names, module.LIMIT))
    return recorded(trainer)


def recorded(trainer: Any) -> Taken:
    """Lets a trainer make its step."""
    taken, compute_loss, training_step = Taken(), trainer.compute_loss, trainer.training_step

    def seen(model, inputs, *arguments, **options):
        taken.inputs.append(dict(inputs))
        return compute_loss(model, inputs, *arguments, **options)

    def summed(*arguments):
        loss = training_step(*arguments)
        taken.loss += loss.item()
        return loss

    class Keep(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_, model, **__):
            for name, weight in model.named_parameters():
                taken.gradient[name.removeprefix("model.")] = weight.grad.clone()

    trainer.compute_loss, trainer.training_step = seen, summed
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.add_callback(Keep())
    trainer.train()
    return taken
