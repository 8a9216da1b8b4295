"""Whether a GPU computes what the CPU does, and how fast: one command for whoever has a card.

python -m lab.gpu_check                                              # the toy: some minutes
python -m lab.gpu_check --init out/smollm2-135m --data lab/data/word_problems.jsonl   # and a model
python -m lab.gpu_check --device cpu                                 # small, to see that it runs

Compared are logits, loss, gradient and greedy text with those of the CPU; bfloat16 with float32;
sampling, plain and with --compile, with `generate` of transformers; a step of sdpo with TRL's.
Writes gpu.md and gpu.json to --out_dir.
"""

import argparse
import copy
import dataclasses
import platform
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import minisd
from lab import base, compiled, hf, peers, precision
from lab.compiled import check_compiler, compile_sampling
from lab.flags import OneLineParser, out_folder, run_main
from lab.memory import peak_mib
from lab.peers import StepSizes, Writing
from lab.storage import prepare_device, write_atomically, write_json
from lab.text_tasks import TextTask, read_jsonl
from lab.timing import table
from minisd import GPT, Batch, Completions, Prompts, Sizes, Task, Teacher
from toy_tasks import Toy, ToyTask, World

# Sums in another order, in float32: the log_softmax of a CPU alone is off by 1e-5 nats.
LIMITS = {
    "log-probabilities, the largest difference, nats": 2e-3,
    "loss of a batch, relative": 1e-3,
    "gradient, its difference over its norm": 1e-3,
    "greedy completions that differ, share": 0.05,  # where two tokens are as likely
    "the same with --compile, share": 0.05,
}
ON_CPU = ("**Measured on the CPU, and not on a GPU**: it says that the command runs, and nothing "
          "of the speed of a GPU.")


@dataclass(frozen=True)
class Amount:
    """How much is measured on a GPU."""

    toy: Sizes = dataclasses.field(default_factory=lambda: Sizes(16, 8, 96))
    real: Sizes = dataclasses.field(default_factory=lambda: Sizes(
        4, 8, 256, micro_batch=8, chunk_tokens=1024))
    step: StepSizes = dataclasses.field(default_factory=StepSizes)
    repetitions: int = 7


SMALL = Amount(  # on a CPU
    Sizes(2, 2, 6), Sizes(1, 2, 4, micro_batch=2, chunk_tokens=64), StepSizes(4, 2, 4), 1)


@dataclass(frozen=True)
class Subject:
    """A model on the CPU with its task."""

    name: str
    student: GPT
    task: Task
    sizes: Sizes
    learning_rate: float


COMPILED = {"minisd --compile": compile_sampling}


def why_not(device: torch.device) -> str:
    """Why nothing can be compiled here, or nothing."""
    try:
        return check_compiler(compiled.BACKEND, device.type) or ""
    except ValueError as error:
        return str(error)


def can_compile(device: torch.device) -> bool:
    return not why_not(device)


# Equality -----------------------------------------------------------------------------------------


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    def to(x: Prompts | Completions) -> Any:
        return type(x)(*(value.to(device) for value in vars(x).values()))

    return dataclasses.replace(
        batch, shown={kind: to(prompts) for kind, prompts in batch.shown.items()},
        completions=to(batch.completions), rewards=batch.rewards.to(device),
        weights={name: w.to(device) for name, w in batch.weights.items()},
        totals={name: w.to(device) for name, w in batch.totals.items()})


@torch.no_grad()
def log_probs(student: GPT, batch: Batch) -> Tensor:
    """Those of the student's next token on all completion tokens, (N, V), on the CPU."""
    shown = batch.shown[precision.METHOD.student_context]
    states = minisd.completion_hidden(student, shown, batch.completions.ids)
    return minisd.log_softmax(student.lm_head(states[batch.completions.mask])).cpu()


def greedy(student: GPT, subject: Subject, prompts: Prompts) -> list[list[int]]:
    """What the student writes at temperature 0, on its own device."""
    device = student.norm.weight.device
    prompts = Prompts(prompts.ids.to(device), prompts.pad_count.to(device))
    written = minisd.sample(
        [(1.0, student, prompts)], max_new_tokens=subject.sizes.max_new_tokens, temperature=0.0,
        end_ids=subject.task.end_ids, pad_id=subject.task.pad_id)
    return [row[mask].tolist() for row, mask in zip(written.ids, written.mask)]


def equality(subject: Subject, device: torch.device) -> dict[str, float]:
    """The differences between CPU and device that LIMITS names, in its order."""
    here, there = subject.student, copy.deepcopy(subject.student).to(device)
    batch = precision.batch_of(
        subject.task, here, Teacher(precision.METHOD, here), subject.sizes, seed=0)
    (loss, g), (other_loss, other_g) = (
        precision.gradient(student, Teacher(precision.METHOD, student), moved(batch, place))
        for student, place in ((here, torch.device("cpu")), (there, device)))
    prompts = batch.shown[precision.METHOD.student_context]
    texts = greedy(here, subject, prompts)
    students, shares = [there], []
    if can_compile(device):
        students.append(compile_sampling(copy.deepcopy(there)))
    for student in students:
        differ = [a != b for a, b in zip(texts, greedy(student, subject, prompts))]
        shares.append(sum(differ) / len(differ))
    differences = (log_probs(here, batch) - log_probs(there, moved(batch, device))).abs()
    found = (differences.max().item(), abs(other_loss / loss - 1),
             ((other_g.cpu() - g).norm() / g.norm()).item(), *shares)
    return dict(zip(LIMITS, found))


def equality_table(found: dict[str, float]) -> str:
    return table(("", "difference", "allowed", ""), [
        (name, f"{value:.2g}", f"{LIMITS[name]:.2g}", "ok" if value <= LIMITS[name] else "TOO MUCH")
        for name, value in found.items()])


# Speed and memory ---------------------------------------------------------------------------------


def sampling(
    subject: Subject, device: torch.device, dtype: str, repetitions: int
) -> dict[str, dict[str, float] | float]:
    """Tokens per second of each, every row to the limit; seconds of the first call that compiles.
    """
    sizes, rng = subject.sizes, random.Random(0)
    student, count = copy.deepcopy(subject.student).to(device), sizes.groups * sizes.group_size
    rows = [subject.task.prompt_ids(subject.task.draw("train", rng)) for _ in range(count)]
    writing = Writing(Prompts.of(rows, subject.task.pad_id, device), sizes.max_new_tokens,
                      dtype=dtype)
    theirs = peers.in_transformers(student, getattr(torch, dtype))
    writers = {"minisd": writing.by_minisd(student)}
    start = time.perf_counter()
    for name, turn in COMPILED.items() if can_compile(device) else ():
        writers[name] = writing.by_minisd(turn(copy.deepcopy(student)))
        writers[name]()
    first = time.perf_counter() - start
    writers |= {
        "generate, dynamic cache": writing.by_generate(theirs),
        "generate, static cache": writing.by_generate(theirs, cache_implementation="static")}
    return {"first_s": first, "tokens_per_s": peers.speeds(writers, repetitions, device.type)}


def sampling_table(found: dict[str, Any]) -> str:
    speeds = found["tokens_per_s"]
    rows = [(name, f"{speed:,.0f}", f"{speed / speeds['minisd']:.2f}")
            for name, speed in speeds.items()]
    return table(("", "tokens/s", "times minisd"), rows) + (
        f"\n\nBefore, the first call with `--compile` took {found['first_s']:.0f} s.")


def steps(
    init: str, data: str, sizes: StepSizes, device: torch.device, repetitions: int
) -> dict[str, float]:
    """Seconds of a step of sdpo, by who makes it."""
    how = {"device": device.type, "change": COMPILED if can_compile(device) else None}
    if init:
        return peers.step_seconds(Path(init), Path(data), sizes, repetitions, **how)
    with tempfile.TemporaryDirectory() as folder:
        peers.small_checkpoint(path := Path(folder, "model"))
        return peers.step_seconds(path, peers.DATA, sizes, repetitions, **how)


def memory(subject: Subject, device: torch.device, dtype: str) -> float:
    """MiB at the peak of a step of sdpo with its sampling; on a CPU of all so far."""
    student = copy.deepcopy(subject.student).to(device)
    teacher = Teacher(precision.METHOD, student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=subject.learning_rate)
    sizes = dataclasses.replace(subject.sizes, dtype=dtype)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batch = precision.batch_of(subject.task, student, teacher, sizes, 0)
    minisd.step(precision.METHOD, student, teacher, optimizer, batch)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_mib()


# The page -----------------------------------------------------------------------------------------


def subjects(init: str, data: str, amount: Amount, cache_dir: str) -> list[Subject]:
    """The toy's base model, and a checkpoint if there is one."""
    toy, _ = base.base_model(World(), 0, steps=Toy.pretrain_steps, cache_dir=cache_dir)
    found = [Subject("toy", toy, ToyTask(World(), pool_size=64), amount.toy, 3e-4)]
    if init:
        student, tokenizer = hf.load(init)
        task = TextTask(read_jsonl(data), tokenizer, end_ids=hf.end_ids(student, tokenizer))
        found.append(Subject(Path(init).name, student, task, amount.real, 1e-5))
    return found


def measured(given: argparse.Namespace, amount: Amount, device: torch.device) -> dict[str, Any]:
    """All numbers of the page."""
    result: dict[str, Any] = {"machine": machine(device), "device": device.type,
                              "not_compiled": why_not(device)}
    for subject in subjects(given.init, given.data, amount, given.cache_dir):
        print(f"{subject.name} ...", flush=True)
        fast = hf.fast_dtype() if subject.name != "toy" else "float32"
        there = copy.deepcopy(subject.student).to(device)
        result[subject.name] = {
            "equality": equality(subject, device),
            "bfloat16": precision.compared(
                subject.task, there, subject.sizes, "bfloat16", subject.learning_rate),
            "dtype": fast, "rows": subject.sizes.groups * subject.sizes.group_size,
            "new_tokens": subject.sizes.max_new_tokens,
            "sampling": sampling(subject, device, fast, amount.repetitions),
            "peak_mib": memory(subject, device, fast)}
    result["step"] = steps(given.init, given.data, amount.step, device, amount.repetitions)
    result["step_sizes"] = dataclasses.asdict(amount.step)
    return result


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    return f"{name}; Python {platform.python_version()}, torch {torch.__version__}"


def page(result: dict[str, Any], command: str) -> str:
    """gpu.md."""
    parts = ["# One GPU", f"    {command}", f"{result['machine']}; {time.strftime('%Y-%m-%d')}."]
    if result["device"] == "cpu":
        parts.append(ON_CPU)
    if result["not_compiled"]:
        parts.append(f"Without `--compile`: {result['not_compiled']}")
    named = {name: x for name, x in result.items() if isinstance(x, dict) and "equality" in x}
    for name, x in named.items():
        rows = f"{x['rows']} completions of {x['new_tokens']} tokens"
        parts += [
            f"## {name}", "Against the CPU, float32:", equality_table(x["equality"]),
            precision.table(x["bfloat16"], "bfloat16"),
            f"Sampling, {rows}, {x['dtype']}:", sampling_table(x["sampling"]),
            f"A step of sdpo, at most {rows}, {x['dtype']}: {x['peak_mib']:,.0f} MiB at the peak."]
    sizes = result["step_sizes"]
    words = (f"{sizes['batch_size']} completions of at most {sizes['max_new_tokens']} tokens, "
             f"{sizes['dtype']}:")
    parts += ["## A step of sdpo", words, peers.steps_table(result["step"])]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> None:
    parser = OneLineParser(
        prog="python -m lab.gpu_check", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", default="", help="a checkpoint, besides the toy")
    parser.add_argument("--data", default="", help="its problems, a JSONL file")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu: small, to see that it runs")
    parser.add_argument("--cache_dir", default="out/base", help="where base models are kept")
    parser.add_argument("--out_dir", default="out/gpu_check", help="default: out/gpu_check")
    given = parser.parse_args(arguments)
    if given.device not in ("cuda", "cpu"):
        raise ValueError(f"--device: {given.device!r}; allowed: cuda, cpu")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: 'cuda', and there is no GPU; allowed: cpu, which is small and "
                         "says nothing of a GPU")
    hf.Checkpoint(init=given.init, data=given.data)  # both or none
    folder = out_folder(given.out_dir)
    device = prepare_device(given.device, 1, False)
    folder.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    amount = SMALL if given.device == "cpu" else Amount()
    result = measured(given, amount, device)
    write_json(folder / "gpu.json", result)
    text = page(result, " ".join(["python -m lab.gpu_check", *arguments]))
    write_atomically(folder / "gpu.md", lambda path: path.write_text(text))
    print(text)
    print(f"written: {folder / 'gpu.md'}")


if __name__ == "__main__":
    run_main("python -m lab.gpu_check", main)
