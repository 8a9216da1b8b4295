"""One step by the script of lab/bridge.py, and the loss and gradient of its completions here.

TRL draws the problems, writes prompts and completions, and computes. Only the verdicts are others,
as a model that is never right has no gradient, and some completions are cut, so that their lengths
differ. Here minisd scores the same completions.
"""

import contextlib
import copy
import dataclasses
import gc
import importlib.util
import itertools
import math
import random
import sys
import tempfile
import types
import warnings
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import minisd
from lab import hf, identity
from lab.bridge_rows import Settings
from lab.bridge_script import VERSION
from lab.text_tasks import TextExample, TextTask
from minisd import GPT, Batch, Completions, Row, Sizes, Teacher

# In float32 the log_softmax of PyTorch on a CPU is off by 8e-6 nats at 49,152 tokens. SFTTrainer
# and GRPOTrainer, which have one of their own, are not; hence these limits.
LOSS_LIMIT = 1e-5  # of the difference, nats; of larger losses, this share
GRADIENT_LIMIT = 3e-4  # of the norm of the difference, in norms of the gradient
MOST_TOKENS = 24  # of a completion
SEVERAL = 4  # completions at a time, where no group has to stand together

Verdict = Callable[[list[int]], float]


@dataclasses.dataclass
class Taken:
    """What TRL did in one step: the inputs of its loss, the loss, the gradient by name."""

    inputs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    loss: float = 0.0
    gradient: dict[str, Tensor] = dataclasses.field(default_factory=dict)


# 1. In TRL ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def uneven_lengths(end_id: int) -> Iterator[None]:
    """Meanwhile two of three completions that a model of transformers writes end somewhere."""
    from transformers import GenerationMixin

    generate, rng = GenerationMixin.generate, random.Random(0)

    def cut(self, *arguments, **options):
        made = generate(self, *arguments, **options)
        width, ids = options["input_ids"].shape[1], getattr(made, "sequences", made)
        for i, row in enumerate(ids):
            if i % 3:
                row[rng.randrange(width, len(row))] = end_id
        return made

    GenerationMixin.generate = cut
    try:
        yield
    finally:
        GenerationMixin.generate = generate


def imported(path: Path) -> types.ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("script_for_trl", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step_of_trl(s: Settings, path: Path, scratch: str, verdict: Verdict) -> Taken:
    """One step of the script on the CPU, in float32 and without clipping."""
    module = imported(path)
    module.reward = lambda completion_ids, *_, **__: [verdict(ids) for ids in completion_ids]
    module.WRITTEN, module.PART = Path(scratch, "written.jsonl"), SEVERAL
    module.LIMIT = limit = min(s.run.max_new_tokens, MOST_TOKENS)
    parts = max(2, Fraction(s.method.student_frac).limit_denominator(1000).denominator)
    lengths = {"max_completion_length", "max_new_tokens"} & {*module.SETTINGS}
    trainer = module.make_trainer(
        output_dir=scratch, max_steps=1, max_grad_norm=0.0, bf16=False, use_cpu=True,
        per_device_train_batch_size=s.run.group_size if s.run.group_size > 1 else SEVERAL,
        gradient_accumulation_steps=parts, save_strategy="no", logging_strategy="no",
        disable_tqdm=True, **dict.fromkeys(lengths, limit))
    return recorded(trainer)


def recorded(trainer: Any) -> Taken:
    """Lets a trainer make its step."""
    from transformers import PrinterCallback, TrainerCallback

    taken, compute_loss, training_step = Taken(), trainer.compute_loss, trainer.training_step

    def seen(model, inputs, *arguments, **options):
        taken.inputs.append(dict(inputs))
        return compute_loss(model, inputs, *arguments, **options)

    def summed(*arguments):
        loss = training_step(*arguments)
        taken.loss += loss.item()
        return loss

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_, model, **__):
            for name, weight in model.named_parameters():
                taken.gradient[name.removeprefix("model.")] = weight.grad.clone()

    trainer.compute_loss, trainer.training_step = seen, summed
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Keep())
    trainer.train()
    return taken


def sequences(inputs: dict[str, Tensor]) -> list[list[int]]:
    """Prompt and completion of each row, without padding."""
    if "completion_ids" in inputs:
        ids = torch.cat((inputs["prompt_ids"], inputs["completion_ids"]), 1)
        mask = torch.cat((inputs["prompt_mask"], inputs["completion_mask"]), 1)
    else:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return [row[kept].tolist() for row, kept in zip(ids, mask.bool())]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile no bars and warnings of TRL, and nothing that it tells its makers."""
    import datasets
    from huggingface_hub import constants
    from transformers.utils import logging

    constants.HF_HUB_DISABLE_TELEMETRY = True
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TRL and transformers, on names that will change
            yield
    finally:
        logging.enable_progress_bar()
        datasets.enable_progress_bars()


# 2. Here ------------------------------------------------------------------------------------------


def batch_of(s: Settings, task: TextTask, student: GPT, rows: list[Row], limit: int) -> Batch:
    """The batch of completions that stand by problem; as `minisd.rollout` has it."""
    m, contexts, rng = s.method, s.method.contexts, random.Random(s.run.seed)
    for _, group in itertools.groupby(rows, key=lambda row: row.example):
        group = list(group)
        for row, kind in itertools.product(group, set(contexts) - {"none"}):
            seen = next((x for x in group if x is not row and x.reward == 1), None)
            missing = kind in task.attempts and seen is None
            text = seen.text if seen else ""
            row.contexts[kind] = "" if missing else task.context(row.example, kind, rng, text)
    cpu = torch.device("cpu")
    shown = {kind: minisd.prompts_of(task, rows, kind, cpu) for kind in contexts}
    completions = Completions.of([row.ids for row in rows], task.pad_id)
    rewards = torch.tensor([row.reward for row in rows])
    sizes = Sizes(group_size=s.run.group_size, max_new_tokens=limit, micro_batch=SEVERAL)
    batch = Batch(rows, shown, completions, rewards, sizes)
    with torch.no_grad():  # one update: they are those of the model that wrote
        completions.token_log_probs = minisd.score(m, student, [], batch)["student_log_probs"]
    return batch


def rows_of(task: TextTask, found: list[list[int]], verdict: Verdict) -> list[Row]:
    """Rows of what TRL wrote, by problem. Raises ValueError for a prompt that is none of ours."""
    pool = [(tuple(task.prompt_ids(e)), i, e) for i, e in enumerate(task.pools["train"])]
    pool.sort(key=lambda known: -len(known[0]))
    placed: list[tuple[int, TextExample, list[int]]] = []
    for row in found:
        match = (known for known in pool if tuple(row[: len(known[0])]) == known[0])
        prompt, place, example = next(match, ((), -1, None))
        if example is None:
            text = task.tokenizer.decode(row)[:60]
            raise ValueError(f"the prompt in {text!r} is not minisd's; allowed: the same tokens")
        placed.append((place, example, row[len(prompt) :]))
    placed.sort(key=lambda known: known[0])
    return [Row(example, {"none": ""}, ids, [0.0] * len(ids), task.decode(ids), verdict(ids))
            for _, example, ids in placed]


def step_here(s: Settings, task: TextTask, student: GPT, batch: Batch) -> Taken:
    """Loss and gradient of the batch by minisd."""
    taken, external = Taken(), None
    if s.external:
        external = identity.named_teacher(s.method.external_teacher, task, student)
    reference = copy.deepcopy(student).requires_grad_(False) if s.method.kl_coef else None
    teacher = Teacher(s.method, student, external=external)

    class Keep(torch.optim.SGD):
        def step(self):
            for name, weight in student.named_parameters():
                taken.gradient[name] = weight.grad.clone()

    minisd.weigh(s.method, student, teacher, batch)
    optimizer = Keep(student.parameters())
    numbers = minisd.step(s.method, student, teacher, optimizer, batch, reference=reference,
                          grad_clip=math.inf)
    taken.loss = numbers["loss"]
    return taken


def compare(s: Settings, task: TextTask, path: Path) -> dict[str, float]:
    """Loss and gradient norm here, and how far those of TRL are from them."""
    references = s.method.credit == "imitation" and s.method.off_policy == "data"

    def verdict(ids: list[int]) -> float:  # half of them are right; references all
        right = zlib.crc32(bytes(str(ids), "ascii")) % 2 and task.decode(ids).strip()
        return float(references or bool(right))

    with tempfile.TemporaryDirectory() as scratch, uneven_lengths(task.end_ids[0]):
        theirs = step_of_trl(s, path, scratch, verdict)
    gc.collect()  # the trainer and its models, which refer to each other
    found = [row for inputs in theirs.inputs for row in sequences(inputs)]
    rows = rows_of(task, found, verdict)
    student, _ = hf.load(s.checkpoint.init)
    batch = batch_of(s, task, student, rows, min(s.run.max_new_tokens, MOST_TOKENS))
    ours = step_here(s, task, student, batch)
    norm = math.hypot(*(g.norm().item() for g in ours.gradient.values()))
    away = math.hypot(*((g - theirs.gradient[name]).norm().item()
                        for name, g in ours.gradient.items()))
    return {
        "completions": len(rows), "tokens": sum(len(row.ids) for row in rows),
        "loss": ours.loss, "loss_of_trl": theirs.loss,
        "loss_difference": abs(ours.loss - theirs.loss),
        "gradient_norm": norm, "gradient_difference": away / norm if norm else away}


def run(s: Settings, task: TextTask, path: Path) -> None:
    """Prints the comparison; ends with exit code 1 if it is not the same."""
    import trl

    if trl.__version__ != VERSION:
        print(f"NOTE: TRL {trl.__version__} is installed; the source that was read is {VERSION}")
    with quiet():
        x = compare(s, task, path)
    limit = LOSS_LIMIT * max(1.0, abs(x["loss"]))
    same = x["loss_difference"] < limit and x["gradient_difference"] < GRADIENT_LIMIT
    print("\n".join([
        f"batch     {x['completions']} completions, {x['tokens']} tokens, written by the script",
        f"loss      {x['loss']:.8f} in minisd, {x['loss_of_trl']:.8f} in TRL, "
        f"difference {x['loss_difference']:.1e} (limit {limit:.1e})",
        f"gradient  norm {x['gradient_norm']:.6f}, difference {x['gradient_difference']:.1e} of it "
        f"(limit {GRADIENT_LIMIT:.0e})",
        f"verdict   {'the same' if same else 'NOT the same'}"]))
    if not same:
        sys.exit(1)
