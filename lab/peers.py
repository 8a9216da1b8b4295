"""The same work in other libraries: `generate` of transformers, a step of TRL's SDPOTrainer.

Everything runs in one process and in turns, with the same weights, prompts and numbers of tokens.
"""

import copy
import importlib.util
import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import minisd
from lab import bridge, bridge_check, hf
from lab.bridge_rows import plan_of
from lab.bridge_script import VERSION
from lab.runs import ROOT
from lab.text_tasks import TextTask
from lab.timing import alternate, clock, table
from minisd import GPT, Batch, GPTConfig, Prompts, Sizes, Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATA = ROOT / "lab/data/word_problems.jsonl"
TRL = f"TRL {VERSION} SDPOTrainer, same batch"
NOT_INSTALLED = "not installed"

# Sampling -----------------------------------------------------------------------------------------


def in_transformers(model: GPT, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The same weights in a model of transformers, on the same device."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        hf.save(model, None, path := Path(folder, "model"))
        with hf.named_errors("transformers"):  # and without its bars
            theirs = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return theirs.to(model.norm.weight.device)


@dataclass(frozen=True)
class Writing:
    """What all of them write: tokens behind prompts, up to an end token if there is one."""

    prompts: Prompts
    new: int
    end_id: int | None = None
    dtype: str = "float32"

    def by_minisd(self, model: GPT) -> Callable[[], int]:
        """A function that samples and returns the number of tokens up to the end token."""
        device = self.prompts.ids.device
        generator, ends = torch.Generator(device).manual_seed(0), (self.end_id or -1,)

        def write() -> int:
            with Sizes(dtype=self.dtype).autocast(device):
                written = minisd.sample(
                    [(1.0, model, self.prompts)], max_new_tokens=self.new, end_ids=ends, pad_id=0,
                    generator=generator)
            return int(written.mask.sum())

        return write

    def by_generate(self, theirs: torch.nn.Module, **more: Any) -> Callable[[], int]:
        """The same by a model of transformers; more: options of its `generate`."""
        ids, P = self.prompts.ids, self.prompts.ids.shape[1]
        columns = torch.arange(P, device=ids.device)
        attention = (columns >= self.prompts.pad_count[:, None]).long()
        options = {"max_new_tokens": self.new, "do_sample": True, "top_k": 0, "top_p": 1.0,
                   "temperature": 1.0, "use_cache": True, "pad_token_id": 0,
                   "eos_token_id": self.end_id} | more

        def write() -> int:
            made = theirs.generate(ids, attention_mask=attention, **options)[:, P:]
            ended = made == (self.end_id or -1)
            return int((ended.cumsum(1) - ended.long() == 0).sum())

        return write


def speeds(
    writers: dict[str, Callable[[], int]], repetitions: int, device: str = "cpu"
) -> dict[str, float]:
    """Tokens per second of each: the medians of its tokens and of its seconds."""
    counts: dict[str, list[int]] = {name: [] for name in writers}
    counted = {name: lambda name=name, write=write: counts[name].append(write())
               for name, write in writers.items()}
    seconds = alternate(counted, repetitions, device)
    return {name: statistics.median(counts[name][1:]) / seconds[name] for name in writers}


# A step -------------------------------------------------------------------------------------------


def has_trl() -> bool:
    return all(map(importlib.util.find_spec, ("trl", "datasets")))


def small_checkpoint(folder: Path) -> None:
    """An untrained model of the toy's form, whose tokens are pieces of the words of DATA."""
    tokenizer = word_tokenizer(DATA.read_text().splitlines())
    hf.save(GPT(GPTConfig(len(tokenizer)), torch.Generator().manual_seed(0)), tokenizer, folder)


def word_tokenizer(lines: list[str]) -> "PreTrainedTokenizerBase":
    """Pairs of bytes that stand together often become tokens; 512 in all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inside = Tokenizer(models.BPE())
    inside.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inside.decoder = decoders.ByteLevel()
    inside.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<pad>", "<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=inside, pad_token="<pad>", eos_token="<end>")


@dataclass(frozen=True)
class StepSizes:
    """A step of sdpo, as flags of train_gpt.py have it."""

    batch_size: int = 128
    group_size: int = 8
    max_new_tokens: int = 32
    dtype: str = "float32"


def step_seconds(
    init: Path, data: Path, sizes: StepSizes, repetitions: int, device: str = "cpu",
    change: dict[str, Callable[[GPT], GPT]] | None = None,
) -> dict[str, float]:
    """Median seconds of a whole step of sdpo, by who makes it; TRL's too if it is installed.

    change: further students, by name, each made of a copy of the checkpoint.
    """
    settings, task, student = step_subject(init, data, sizes, device)
    made = {"minisd": student} | {
        name: turn(copy.deepcopy(student)) for name, turn in (change or {}).items()}
    ours = {name: step_of(settings, task, model) for name, model in made.items()}
    if not has_trl():
        return alternate(ours, repetitions, device)
    return in_turns_with_trl(settings, task, ours, repetitions, device)


def step_subject(
    init: Path, data: Path, sizes: StepSizes, device: str = "cpu"
) -> tuple[bridge.Settings, TextTask, GPT]:
    """Settings, task and student of such a step."""
    flags = {"method": "sdpo", "init": init, "data": data, "micro_batch": sizes.batch_size,
             **vars(sizes)}
    settings, _ = bridge.parse(["trl", *(f"--{name}={value}" for name, value in flags.items())])
    return settings, bridge.task_of(settings), hf.load(init, device=device)[0]


def sizes_of(s: bridge.Settings) -> Sizes:
    return Sizes(s.run.batch_size // s.run.group_size, s.run.group_size, s.run.max_new_tokens,
                 dtype=s.checkpoint.dtype)


def batch_of(s: bridge.Settings, task: TextTask, student: GPT) -> Batch:
    """The first batch of a run."""
    chance = random.Random(0), torch.Generator(student.norm.weight.device).manual_seed(0)
    return minisd.rollout(s.method, task, student, Teacher(s.method, student), *chance, sizes_of(s))


def step_of(s: bridge.Settings, task: TextTask, student: GPT) -> Callable[[], None]:
    """A function that makes a step: texts, teacher, loss, gradient, optimiser."""
    device, teacher = student.norm.weight.device, Teacher(s.method, student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=s.method.learning_rate)
    rng, generator = random.Random(0), torch.Generator(device).manual_seed(0)

    def step() -> None:
        batch = minisd.rollout(s.method, task, student, teacher, rng, generator, sizes_of(s))
        minisd.step(s.method, student, teacher, optimizer, batch)
        teacher.update(1)

    return step


def in_turns_with_trl(
    s: bridge.Settings, task: TextTask, ours: dict[str, Callable], repetitions: int, device: str
) -> dict[str, float]:
    """Behind every step of TRL's trainer one of each of ours."""
    from transformers import PrinterCallback, TrainerCallback

    now, seconds = clock(device), {name: [] for name in (TRL, *ours)}

    class Turns(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = now()

        def on_step_end(self, *_, **__):
            seconds[TRL].append(now() - self.start)
            for name, step in ours.items():
                start = now()
                step()
                seconds[name].append(now() - start)

    with tempfile.TemporaryDirectory() as scratch, bridge_check.quiet():
        placed = replace(s, run=replace(s.run, out_dir=f"{scratch}/trl"))
        folder = bridge.write_folder(placed, plan_of(placed), task, "")
        module = bridge_check.imported(folder / "train.py")
        trainer = module.make_trainer(
            output_dir=f"{scratch}/run", max_steps=repetitions + 1, use_cpu=device == "cpu",
            save_strategy="no", logging_strategy="no", disable_tqdm=True)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Turns())
        trainer.train()
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def steps_table(seconds: dict[str, float]) -> str:
    """Milliseconds of a step, and how many of minisd's it takes."""
    rows = [(name, f"{1e3 * s:,.0f}", f"{s / seconds['minisd']:.1f}")
            for name, s in seconds.items()]
    if TRL not in seconds:
        rows.append((TRL, NOT_INSTALLED, ""))
    return table(("", "ms", "steps of minisd"), rows)
