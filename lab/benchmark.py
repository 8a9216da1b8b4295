"""Speed and memory, each figure beside the limit that it is compared with.

python -m lab.benchmark                      # all sections, five minutes
python -m lab.benchmark step sampling        # these two; older ones stay in the file
python -m lab.benchmark --quick              # smaller and fewer, to see that everything runs

Writes benchmark.md and scaling.png into --out_dir. What is compared runs side by side in one
process, in alternation, on one thread; times are medians of the CPU seconds of that process, which
other work on the machine does not add to (it can slow them a little: trust the ratios).
"""

import argparse
import contextlib
import copy
import functools
import itertools
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

import minisd
from lab import base
from lab.flags import OneLineParser, out_folder, run_main
from lab.limits import decoding, products, rest_of_decoding
from lab.memory import peak_mib
from lab.peers import (
    DATA,
    TRL,
    StepSizes,
    Writing,
    batch_of,
    in_transformers,
    small_checkpoint,
    speeds,
    step_seconds,
    step_subject,
    steps_table,
)
from lab.report import save_figure
from lab.runs import ROOT, in_parallel
from lab.timing import Stopwatch, alternate, table
from minisd import GPT, METHODS, Batch, Completions, GPTConfig, Prompts, Sizes, Teacher
from toy_tasks import Toy, ToyTask, World, draw_document

PROMPT_TOKENS = 12  # of random prompts; about that of the toy's
GROUP = 8  # completions of a problem, as in a run with the default settings


@dataclass(frozen=True)
class Shape:
    """A random model that samples, and how."""

    config: GPTConfig
    batches: tuple[int, ...]  # completions, in groups of GROUP
    new: int  # tokens of each
    prompt_tokens: int = PROMPT_TOKENS
    dtypes: tuple[str, ...] = ("float32",)
    aim: float = 1.5  # times the speed of transformers


SHAPES = {
    "4 layers, width 256": Shape(
        GPTConfig(4096, n_layers=4, width=256, head_dim=64, mlp_width=704), (32, 128), 64),
    "SmolLM2 form, 135M": Shape(GPTConfig(
        49_152, n_layers=30, width=576, n_heads=9, n_kv_heads=3, head_dim=64, mlp_width=1536,
        tied_embeddings=True, init_std=0.02), (16,), 32, 96, ("float32", "bfloat16")),
}
TOY_AIM = 3.5
LARGE = 10**7  # parameters
MEMORY = {  # name: completions, new tokens, vocabulary
    "toy": (128, 48, 30), "4 x batch": (512, 48, 30), "4 x length": (128, 192, 30),
    "vocabulary 2,000": (128, 48, 2000), "vocabulary 8,000": (128, 48, 8000),
}
GROWTH = {  # quantity: its sizes; the others stay at BASE
    "batch": (4, 16, 64, 256), "new tokens": (8, 32, 128, 512),
    "width": (32, 64, 128, 256, 512), "vocabulary": (32, 512, 4096, 32_768),
}
BASE = {"batch": 32, "new tokens": 32, "vocabulary": 64, "width": 64}  # as `random_step` takes them
OTHERS = ", ".join(f"{name} {size}" for name, size in BASE.items())
LIMIT_OF_GROWTH = {"batch": 1, "new tokens": 2, "width": 2, "vocabulary": 1}  # by the arithmetic


@dataclass(frozen=True)
class Amount:
    """How much is measured. The defaults are those of published figures."""

    repetitions: int = 7
    step_repetitions: int = 24
    sizes: Sizes = field(default_factory=lambda: Sizes(max_new_tokens=96))
    toy_batches: tuple[int, ...] = (32, 128, 512)
    shapes: dict = field(default_factory=lambda: SHAPES)
    pretrain_steps: int = Toy.pretrain_steps
    beside_trl: StepSizes = field(default_factory=StepSizes)
    seeds: int = 5
    run_flags: tuple[str, ...] = ("--steps", "20", "--pretrain_steps", "300")
    memory: dict = field(default_factory=lambda: MEMORY)
    chunked: tuple[int, int, int] = (1024, 151_936, 64)  # tokens, vocabulary (Qwen3), chunk
    growth: dict = field(default_factory=lambda: GROWTH)
    cache_dir: str = "out/base"


QUICK = Amount(
    repetitions=1, step_repetitions=3, toy_batches=(32,), shapes={}, pretrain_steps=100, seeds=2,
    beside_trl=StepSizes(16, 8, 8),
    run_flags=("--steps", "4", "--pretrain_steps", "40"), chunked=(128, 151_936, 64),
    growth={what: sizes[:-1] for what, sizes in GROWTH.items()})


def toy(amount: Amount) -> tuple[GPT, ToyTask]:
    """The base model and the task of a run with the default settings."""
    how = {"steps": amount.pretrain_steps, "cache_dir": amount.cache_dir}
    return base.base_model(World(), 0, **how)[0], ToyTask(World(), pool_size=64)


def sampling(amount: Amount, folder: Path) -> str:
    """Tokens per second of minisd.sample and of generate of transformers."""
    (student, task), rng, rows = toy(amount), random.Random(0), []
    todo, new = [], amount.sizes.max_new_tokens  # what it is called, model, what it writes, aim
    for B in amount.toy_batches:
        shown = in_groups(B, lambda: task.prompt_ids(task.draw("train", rng)))
        todo += [("toy", student, Writing(shown, new, end), TOY_AIM)
                 for end in (None, task.end_ids[0])]
    for name, shape in amount.shapes.items():
        model = GPT(shape.config, torch.Generator().manual_seed(0))
        for B, dtype in itertools.product(shape.batches, shape.dtypes):
            one = shape.config.vocab_size, (shape.prompt_tokens,)
            shown = in_groups(B, lambda one=one: torch.randint(*one).tolist())
            todo.append((name, model, Writing(shown, shape.new, dtype=dtype), shape.aim))
    for name, model, writing, aim in todo:
        dtype, (B, P) = getattr(torch, writing.dtype), writing.prompts.ids.shape
        writers = {"ours": writing.by_minisd(model),
                   "theirs": writing.by_generate(in_transformers(model, dtype))}
        # A large model takes seconds each time, which vary less than milliseconds.
        large = sum(p.numel() for p in model.parameters()) > LARGE
        ours, theirs = speeds(writers, 2 if large else amount.repetitions).values()
        stops, most = f"after {writing.new}", ("-", "-")
        if writing.end_id is None:  # else rows leave, and the shapes change
            kernels = {"": decoding(model.config, B, P + writing.new // 2, dtype),
                       "rest": rest_of_decoding(model.config, B, dtype)}
            spent = itertools.accumulate(alternate(kernels, 10).values())
            most = tuple(f"{B / s / theirs:.2f}" for s in spent)
        else:
            stops = "at the end token"
        cells = f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}"
        rows.append((name, writing.dtype, B, stops, *cells, *most, aim))
    names = ("minisd tokens/s", "transformers tokens/s", "ratio", "limit", "with the rest", "aim")
    return table(("model", "dtype", "batch", "stops", *names), rows) + (
        f"\n\nSame weights, same prompts, {GROUP} completions each, temperature 1, key-value "
        "cache. `after N`: every row writes N tokens. `at the end token`: only tokens up to the "
        "end token are counted. The limit is the ratio of a program that only multiplies, attends "
        "and draws, half way through its text, and reads no prompt; with the rest: of one that "
        "also calls each other operation of the model (norms, rotation, cache, SwiGLU, sums) once.")


def in_groups(count: int, draw: Callable[[], list[int]]) -> Prompts:
    """So many prompts of which each stands there GROUP times, as far as it goes."""
    drawn = [draw() for _ in range(-(-count // GROUP))]
    return Prompts.of([drawn[i // GROUP] for i in range(count)], 0)


PADDED = "tokens and padding"
PARTS = {  # part of a step: where its function is looked up
    "sample": (minisd, "sample"), "score": (minisd, "score"), "loss": (minisd, "loss_of"),
    "backward": (torch.Tensor, "backward"), "clip": (torch.nn.utils, "clip_grad_norm_"),
    "AdamW": (torch.optim.AdamW, "step"), "teacher": (Teacher, "update"),
    "rest of rollout": (minisd, "rollout"), "rest of step": (minisd, "step"),
}


def step(amount: Amount, folder: Path) -> str:
    """A step of sdpo and of grpo by part, beside its matrix products alone; and beside TRL's."""
    return "\n\n".join([*(step_of(name, amount) for name in ("sdpo", "grpo")), beside_trl(amount)])


def beside_trl(amount: Amount) -> str:
    """A step of sdpo on a small text model, the same row in TRL, and the products of its shapes."""
    sizes = amount.beside_trl
    with tempfile.TemporaryDirectory() as folder:
        small_checkpoint(init := Path(folder, "model"))
        seconds = step_seconds(init, DATA, sizes, amount.repetitions)
        settings, task, student = step_subject(init, DATA, sizes)
    batch = batch_of(settings, task, student)
    limits = limits_of(student.config, settings.method, token_counts(batch))
    return (
        f"`sdpo`, {sizes.batch_size} completions of {sizes.max_new_tokens} tokens at most, an "
        "untrained model of the toy's form that reads problems in words:\n\n"
        + steps_table(seconds | limits) + f"\n\nAim: a tenth of the time of {TRL.split(',')[0]}.")


def step_of(name: str, amount: Amount) -> str:
    (student, task), method = toy(amount), METHODS[name]
    teacher = Teacher(method, student)
    reference = copy.deepcopy(student).requires_grad_(False) if method.kl_coef else None
    # With a rate of almost 0 the texts stay as long as the base model's.
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-12)
    draws, watch, taken, counted = (random.Random(0), torch.Generator()), Stopwatch(), [], []
    with contextlib.ExitStack() as stack:
        for part, (owner, attribute) in PARTS.items():
            function = watch.timed(part, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, function))
        for n in range(1, amount.step_repetitions + 2):
            watch.seconds = {}
            batch = minisd.rollout(method, task, student, teacher, *draws, amount.sizes)
            minisd.step(method, student, teacher, optimizer, batch, reference=reference)
            teacher.update(n)
            taken.append(watch.seconds)
            counted.append(token_counts(batch))
    spent = {part: statistics.median(t[part] for t in taken[1:]) for part in taken[0]}
    count = {key: int(statistics.median(c[key] for c in counted[1:])) for key in counted[0]}
    limits = limits_of(student.config, method, count)
    total, ordered = sum(spent.values()), sorted(spent.items(), key=lambda row: -row[1])
    rows = [*ordered, ("whole step", total), *limits.items()]
    cells = [(what, f"{1e3 * s:.1f}", f"{s / total:.0%}") for what, s in rows]
    real, padded = (total / s for s in limits.values())
    return (
        f"`{name}`, {len(batch.rows)} completions, {count['none', 'tokens']} tokens "
        f"({count['none', PADDED]} with the padding of the parts), not logged: step "
        f"/ limit = {real:.1f} ({padded:.1f} if padding were work); aim 4.\n\n"
        + table(("part", "ms", "share"), cells))


def token_counts(batch: Batch) -> dict[tuple[str, str], int]:
    """Of prompts and completions, by context, with and without the padding of the parts."""
    counts = {(kind, words): 0 for kind in batch.shown for words in ("tokens", PADDED)}
    for _, part in batch.parts():
        for kind, prompts in part.shown.items():
            all_of_it = prompts.ids.numel() + part.completions.ids.numel()
            padding = int(prompts.pad_count.sum() + (~part.completions.mask).sum())
            counts[kind, "tokens"] += all_of_it - padding
            counts[kind, PADDED] += all_of_it
    return counts


def limits_of(config: GPTConfig, method: minisd.Method, count: dict) -> dict[str, float]:
    """CPU seconds of a step's products: sampling, loss with gradient, teacher or reference."""
    # A pure policy gradient has a reference instead, which sees what the student sees.
    scored = "none" if method.reward_weight == 1 else method.context
    uses, limits = (("none", "sample"), ("none", "gradient"), (scored, "score")), {}
    for words in ("tokens", PADDED):
        works = {use: products(config, count[kind, words], use == "gradient") for kind, use in uses}
        limits[f"matrix products alone, {words}"] = sum(alternate(works, 5).values())
    return limits


def pretraining(amount: Amount, folder: Path) -> str:
    """CPU seconds of the base model's pretraining, from some of its steps, and of its products."""
    steps, config = amount.pretrain_steps, base.shape_of("base")
    model, some = GPT(config, torch.Generator().manual_seed(0)), -(-steps // 6)
    batches = base.pretrain_batches(draw_document, World(), random.Random("documents-0"))
    tokens = statistics.mean(next(batches)[:, 1:].numel() for _ in range(200))
    start = time.process_time()
    base.pretrain(model, World(), some, 0)
    seconds = (time.process_time() - start) / some
    limit = alternate({"limit": products(config, int(tokens), True)}, 20)["limit"]
    rows = [("pretraining", f"{tokens / seconds:,.0f}", f"{steps * seconds:.0f}"),
            ("matrix products alone", f"{tokens / limit:,.0f}", f"{steps * limit:.0f}")]
    return table(("", "tokens/s", f"s for {steps} steps"), rows) + (
        f"\n\nPretraining / limit = {seconds / limit:.1f}, from {some} steps.")


def seeds(amount: Amount, folder: Path) -> str:
    """Wall seconds of one run and of several, on all cores, each with a base model of its own."""
    cores, walls = os.cpu_count() or 1, []
    words = ["train_gpt.py", "--method", "grpo", *amount.run_flags]
    for count in (1, amount.seeds, 1):
        with tempfile.TemporaryDirectory() as scratch:
            rest = ["--eval_problems", "64", "--threads", "1", "--cache_dir", f"{scratch}/base"]
            runs = [[*words, *rest, "--seed", str(seed), "--out_dir", f"{scratch}/{seed}"]
                    for seed in range(count)]
            start = time.perf_counter()
            in_parallel([lambda begin, run=run: begin(run) for run in runs], cores)
            walls.append(time.perf_counter() - start)
    one, several = (walls[0] + walls[2]) / 2, walls[1]
    return (
        f"`python {' '.join(words)}`, base model included, on {cores} cores, wall seconds: one "
        f"seed {one:.0f}, {amount.seeds} seeds {several:.0f}: {several / one:.2f} times. Load of "
        f"the machine at the end: {os.getloadavg()[0]:.1f} processes. Aim for five seeds on two "
        "cores: at most 3.2 times; 2.5 would be ideal.")


BY_OTHER = replace(METHODS["sdpo"], teacher="external", teacher_update_rate=0.0)
# Stands for an optimiser: weights and gradient stay.
KEEPS_GRADIENT = SimpleNamespace(step=lambda: None, zero_grad=lambda set_to_none: None)


def random_step(B: int, T: int, V: int, width: int = 64, chunk: int = 0) -> tuple[GPT, Callable]:
    """A student of the toy's form, and a step of sdpo on random tokens that leaves its gradient."""
    heads = width // 16
    shape = GPTConfig(V, width=width, n_heads=heads, n_kv_heads=heads, mlp_width=width * 5 // 2)
    student, other = (GPT(shape, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    ids = torch.randint(V, (B, PROMPT_TOKENS + T), generator=torch.Generator().manual_seed(1))
    prompts = Prompts(ids[:, :PROMPT_TOKENS], torch.zeros(B, dtype=torch.long))
    written = Completions.of(ids[:, PROMPT_TOKENS:].tolist(), 0)
    shown, sizes = {"none": prompts, "solution": prompts}, Sizes(chunk_tokens=chunk)
    batch = Batch([], shown, written, torch.zeros(B), sizes)
    counts = minisd.REDUCTIONS[BY_OTHER.reduction](written.mask.float(), T)
    batch.weights["distillation"], batch.totals["distillation"] = counts
    how = BY_OTHER, student, Teacher(BY_OTHER, student, external=other), KEEPS_GRADIENT, batch
    return student, functools.partial(minisd.step, *how, grad_clip=math.inf)


def memory_child(B: int, T: int, V: int, chunk: int, path: str) -> None:
    """In a process of its own: prints MiB at the peak and of the step; path: gets the gradient."""
    torch.set_num_threads(1)
    student, run = random_step(B, T, V, chunk=chunk)
    before = peak_mib()
    loss = run()["loss"]
    peak = peak_mib()
    print(json.dumps({"peak": peak, "step": peak - before, "loss": loss}))
    if path:
        torch.save(torch.cat([p.grad.flatten() for p in student.parameters()]), path)


def child(code: str, *words: str) -> str:
    """The last line that Python prints of the code, in the folder of train_gpt.py."""
    words = [sys.executable, "-c", code, *words]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        said = result.stderr.strip() or f"exit code {result.returncode}"
        raise ValueError(f"a process failed: {said.splitlines()[-1]}")
    return result.stdout.splitlines()[-1]


def in_child(B: int, T: int, V: int, chunk: int = 0, path: str = "") -> dict[str, float]:
    """What `memory_child` prints."""
    call = f"memory_child({B}, {T}, {V}, {chunk}, {path!r})"
    return json.loads(child(f"from lab import benchmark; benchmark.{call}"))


def memory(amount: Amount, folder: Path) -> str:
    """Peaks of a run and of steps, and the loss in chunks beside the plain one."""
    found = [(what, sizes, in_child(*sizes)) for what, sizes in amount.memory.items()]
    rows = [(w, *s, f"{m['peak']:,.0f}", f"{m['step']:,.0f}") for w, s, m in found]
    names = ("", "batch", "new tokens", "vocabulary", "peak MiB", "of which step MiB")
    run = ("import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__');"
           "from lab.memory import peak_mib; print(round(peak_mib()))")
    with tempfile.TemporaryDirectory() as scratch:
        whole = int(child(
            run, "train_gpt.py", "--steps", "5", "--pretrain_steps", "40", "--threads", "1",
            "--out_dir", f"{scratch}/run", "--cache_dir", f"{scratch}/base"))
    text = f"A whole run of sdpo at the default sizes peaks at {whole:,} MiB, PyTorch included."
    return f"{text}\n\n{table(names, rows)}\n\n{chunked(*amount.chunked)}"


def chunked(tokens: int, V: int, chunk: int) -> str:
    """The step at a large vocabulary, plain and in chunks: memory, value, gradient."""
    # Qwen3's logits of a chunk are above 32 MiB, which glibc never holds in its fraying heap.
    with tempfile.TemporaryDirectory() as folder:
        paths = {n: f"{folder}/{n}.pt" for n in (0, chunk)}
        plain, other = (in_child(8, tokens // 8, V, n, path) for n, path in paths.items())
        a, b = (torch.load(path, weights_only=True) for path in paths.values())
    ratio, differ = plain["step"] / other["step"], (b - a).norm() / a.norm()
    return (
        f"A step of {tokens} tokens at a vocabulary of {V:,}, width 64: plain {plain['step']:,.0f} "
        f"MiB, in chunks of {chunk} tokens {other['step']:,.0f} MiB, 1/{ratio:.1f} (aim 1/8). Loss "
        f"{plain['loss']:.7f} and {other['loss']:.7f} nats; gradients differ by {differ:.1e}.")


def growth(amount: Amount, folder: Path) -> str:
    """scaling.png, and its slopes as a table."""
    measured, rows = {}, []
    for what, sizes in amount.growth.items():
        steps = {size: random_step(*(BASE | {what: size}).values())[1] for size in sizes}
        seconds = alternate(steps, min(5, amount.repetitions))
        measured[what] = {size: 1e3 * s for size, s in seconds.items()}
        ends = [f"{measured[what][n]:.0f} ms at {n:,}" for n in (sizes[0], sizes[-1])]
        (n0, t0), (n1, t1) = list(measured[what].items())[-2:]
        rows.append((what, *ends, f"{slope(n0, t0, n1, t1):.2f}", LIMIT_OF_GROWTH[what]))
    draw(measured, folder / "scaling.png")
    return (
        "![time against size](scaling.png)\n\nA step of sdpo without sampling, student and teacher "
        f"of 2 layers; one size changes, the others stay at {OTHERS}. The exponent is that of the "
        "last stretch; the limit is what the arithmetic alone tends to.\n\n"
        + table(("size", "from", "to", "exponent", "limit"), rows))


def slope(n0: float, t0: float, n1: float, t1: float) -> float:
    """The exponent e of time ~ size^e between two points."""
    return math.log(t1 / t0) / math.log(n1 / n0)


def draw(measured: dict[str, dict[int, float]], path: Path) -> None:
    """One panel per quantity, doubly logarithmic, with a dashed line for "twice costs twice"."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(f"A step of sdpo without sampling, one size growing (others: {OTHERS})")
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for axes, (what, times) in zip(panels, measured.items()):
        sizes, last = list(times), list(times)[-1]
        axes.loglog(sizes, list(times.values()), "o-", label="measured")
        line = [times[last] * size / last for size in sizes]  # twice the size, twice the time
        axes.loglog(sizes, line, "--", color="grey", label="in proportion to the size")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(what)
    panels[0].set_ylabel("milliseconds")
    panels[0].legend(loc="upper left")
    save_figure(path, figure)


SECTIONS = {
    "sampling": ("Sampling", sampling), "step": ("A post-training step", step),
    "pretraining": ("Pretraining", pretraining), "seeds": ("Several seeds at once", seeds),
    "memory": ("Memory", memory), "growth": ("Growth", growth),
}


def machine() -> str:
    """What this was measured on."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return (f"{os.cpu_count()} cores, {found[1] if found else platform.machine()}; Python "
            f"{platform.python_version()}, torch {torch.__version__}; one thread, float32")


def write_report(path: Path, done: dict[str, str]) -> None:
    """The file with the sections just measured in place of their older versions."""
    old = path.read_text().split("\n## ")[1:] if path.exists() else []
    texts = dict(part.partition("\n\n")[::2] for part in old) | done
    order = [title for title, _ in SECTIONS.values() if title in texts]
    sections = [f"## {title}\n\n{texts[title].strip()}" for title in order]
    path.write_text("\n\n".join(["# Speed and memory as measured", *sections]) + "\n")


def main(argv: list[str]) -> None:
    known, raw = ", ".join(SECTIONS), argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(prog="python -m lab.benchmark", description=__doc__, formatter_class=raw)
    parser.add_argument("sections", nargs="*", default=[], help=f"{known} (default: all)")
    parser.add_argument("--quick", action="store_true", default=False, help="smaller and fewer")
    parser.add_argument("--out_dir", default="out/benchmark", help="default: out/benchmark")
    parser.add_argument("--cache_dir", default="out/base", help="where base models are kept")
    settings = parser.parse_args(argv)
    for name in settings.sections:
        if name not in SECTIONS:
            raise ValueError(f"section: {name!r}; allowed: {known}")
    torch.set_num_threads(1)
    folder = out_folder(settings.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    amount = replace(QUICK if settings.quick else Amount(), cache_dir=settings.cache_dir)
    for name in settings.sections or SECTIONS:
        title, measure = SECTIONS[name]
        start = time.perf_counter()
        text = measure(amount, folder)
        text += f"\n\n({machine()}; this section took {time.perf_counter() - start:.0f} s)"
        write_report(folder / "benchmark.md", {title: text})
        print(f"## {title}\n\n{text}\n", flush=True)
    print(f"written: {folder / 'benchmark.md'}")


if __name__ == "__main__":
    run_main("python -m lab.benchmark", main)
