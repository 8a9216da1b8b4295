"""Trains a model by one row of the method table, and shows what became of it.

python train_gpt.py --method sdpo    # a minute: surer, shorter, worse on fresh problems
python train_gpt.py --method grpo    # the same problems, rewards instead of hints
python train_gpt.py --method list    # every method as a row
python train_gpt.py --method sdpo --init Qwen/Qwen3-0.6B --data gsm8k.jsonl     # a real checkpoint
python train_gpt.py --resume out/sdpo-0                                         # an interrupted run
torchrun --nproc_per_node 8 train_gpt.py --method sdpo ...           # several processes, same flags

Start reading at `train`, the loop. A step is `rollout` and `step` in minisd.py; the rest is lab/.
"""

import dataclasses
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lab.extra_losses  # noqa: F401 (importing it adds its rows to the tables of the core)
import minisd
from lab import base, compiled, distributed, flags, hf, identity, moments, report, storage
from lab.evaluation import Evaluation, evaluate_all, seeded
from lab.text_tasks import TextTask, read_jsonl
from minisd import GPT, METHODS, Method, Sizes, Task, Teacher
from toy_tasks import VOCABULARY, Toy, parse_world

LOG_EVERY = 5  # steps
USAGE = """python train_gpt.py [--method NAME] [--flag VALUE ...]
       python train_gpt.py --method list | --resume FOLDER"""

@dataclass(frozen=True)
class Run:
    """How much is trained, where, and what is kept of it."""

    method: str = "sdpo"  # row of the method table, or list; other flags override the row
    seed: int = 0  # seeds base model, data, sampling, evaluation
    steps: int = 150  # post-training steps
    train_problems: int = 64  # problems in the training pool; 0: endless
    batch_size: int = 128  # completions per step
    group_size: int = 8  # completions per problem
    max_new_tokens: int = 96  # length limit of a completion, tokens
    temperature: float = 1.0  # of the sampling in training
    updates_per_batch: int = 1  # optimiser steps on the same completions
    grad_clip: float = 1.0  # maximal norm of the gradient
    eval_every: int = 25  # steps between evaluations
    eval_problems: int = 256  # completions per split and evaluation
    eval_temperature: float = 1.0  # of the sampling in evaluations; 0: greedy
    page_problems: int = 8  # completions per evaluation that lab.page can show; 0: none
    device: str = "auto"  # auto, cpu, cuda or mps
    threads: int = 1  # CPU threads; 0: as PyTorch decides
    deterministic: bool = False  # on a GPU: only operations that repeat bit for bit; slower
    save_every: int = 50  # steps between checkpoints, for --resume; 0: only when interrupted
    out_dir: str = ""  # where results go; empty: out/<method>-<seed>
    cache_dir: str = "out/base"  # where base models are kept
    pretrain: bool = False  # a base model made here, instead of the one that ships

    def __post_init__(self):
        may_be_0 = "train_problems save_every threads seed eval_temperature page_problems"
        flags.check_numbers(self, dict.fromkeys(may_be_0.split(), 0))

    require = Method.require  # of a flag: its value is allowed

    @property
    def folder(self) -> Path:
        return Path(self.out_dir or f"out/{self.method}-{self.seed}")

@dataclass(frozen=True)
class Settings:
    """The four groups of --help. Raises ValueError for what they cannot be together."""

    run: Run
    method: Method
    toy: Toy
    checkpoint: hf.Checkpoint

    def __post_init__(self):
        run, method, groups = self.run, self.method, self.run.batch_size / self.run.group_size
        flags.check_loss(method, 10**6 if self.checkpoint.init else len(VOCABULARY))
        adapted = self.has_external and method.external_teacher == "adapted"
        flags.check_groups(run, method, rewarded=method.reward_weight > 0 or adapted)
        whole = (method.student_frac * groups) % 1 == 0
        method.require(whole, "student_frac", f"a multiple of 1/{groups:g}, the share of a group")
        if not self.checkpoint.init:
            flags.check_context(self.toy, set(method.contexts), method.reward_weight < 1)
        elif self.toy != Toy():
            raise ValueError("--init: with flags of the toy; allowed: without them")
        elif self.has_external:
            known = method.external_teacher not in base.EXTERNAL_BASES
            method.require(known, "external_teacher", "adapted, or a checkpoint, with --init")

    @property
    def has_external(self) -> bool:
        return any(weights == "external" for _, weights, _ in self.method.terms)

    def pretraining(self, device: torch.device) -> dict[str, Any]:
        how = {"cache_dir": self.run.cache_dir, "here_made": self.run.pretrain}
        return how | {"steps": self.toy.pretrain_steps, "device": device.type}

    @property
    def sizes(self) -> Sizes:
        run, c = self.run, self.checkpoint
        groups = run.batch_size // run.group_size // distributed.processes()
        return Sizes(groups, run.group_size, run.max_new_tokens, run.temperature, c.micro_batch,
                     c.chunk_tokens, c.dtype)

# The loop -----------------------------------------------------------------------------------------
def train(
    settings: Settings, task: Task, state: storage.State, stage: str, steps: int,
    log: report.Log | None = None, notes: dict[str, Any] | None = None,
) -> dict[str, Evaluation]:
    """Trains state.student up to `steps`; returns the last evaluation.

    With a log it is the run itself, which is logged, evaluated and saved; else a preparation.
    """
    run, sizes, evaluation = settings.run, settings.sizes, {}
    student, teacher, method = state.student, state.teacher, state.teacher.method
    with storage.watched(state, stage) as stop_signal:
        for n in base.progress(range(state.step + 1, steps + 1), stage):
            start, logged = time.perf_counter(), log and (n == 1 or n % LOG_EVERY == 0)

            # 1. The student writes, rewards are given, the teacher is shown its context.
            with distributed.gathered(student, teacher):
                batch = minisd.rollout(
                    method, task, student, teacher, state.rng, state.generator, sizes)
            distributed.share_totals(batch)

            # 2. Both are scored on the same tokens; loss, gradient, optimiser.
            for _ in range(run.updates_per_batch):
                numbers = minisd.step(
                    method, student, teacher, state.optimizer, batch, reference=state.reference,
                    grad_clip=run.grad_clip, readings=report.READINGS if logged else None)

            # 3. The teacher follows the student, as far as its weights do.
            distributed.release(teacher, state.reference)
            teacher.update(n)
            state.step = n

            # 4. What happened goes to the terminal and to metrics.jsonl.
            seconds = time.perf_counter() - start
            if log:
                notes.setdefault("step_s", []).append(seconds)
            if logged:
                row = log.batch(n, batch, numbers, seconds, task.end_ids)
                report.warn_of_flat_signals(method, batch, row, log, steps, task)
            if log and (n % run.eval_every == 0 or n == steps):
                evaluation = evaluated(settings, task, state.teacher)
                log.evaluation(n, evaluation, task)
                report.draw_so_far(settings, task, log, notes, evaluation)

            # 5. The state is saved, now and then and before a stop.
            stop = stop_signal()
            if log and (stop or (run.save_every and n % run.save_every == 0)):
                spent = {"train_s": notes["train_s"] + time.perf_counter() - notes["start"]}
                storage.save_checkpoint(run.folder, state, rows=log.rows, notes=notes | spent)
            if stop:
                saved = f" after step {n}, which is saved" if log else f" in stage {stage!r}"
                raise storage.Interrupted(stop, saved)
    return evaluation

def evaluated(settings: Settings, task: Task, teacher: Teacher) -> dict[str, Evaluation]:
    """The student on every split, its teacher on train."""
    run = settings.run
    sizes = dataclasses.replace(settings.sizes, temperature=run.eval_temperature)
    how = {"count": run.eval_problems, "seed": run.seed, "sizes": sizes}
    with distributed.gathered(teacher.student, teacher):
        results = evaluate_all(task, teacher.student, teacher, **how)
        return moments.kept(run, results, task, teacher, settings.sizes)

# Set-up -------------------------------------------------------------------------------------------
def new_state(
    settings: Settings, method: Method, student: GPT, stage: str, external: GPT | None = None
) -> storage.State:
    """Teacher, optimiser and generators of a stage; each process draws its own problems."""
    name = f"{stage}-{settings.run.seed}" + f"-{distributed.rank()}" * (distributed.rank() > 0)
    teacher = Teacher(method, student, external=external, copied=distributed.copied)
    reference = distributed.copied(student).requires_grad_(False) if method.kl_coef else None
    rate, weights = method.learning_rate, student.parameters()
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    generator = seeded(name, next(student.parameters()).device)
    return storage.State(student, teacher, reference, optimizer, random.Random(name), generator)

def initial(settings: Settings, device: torch.device) -> tuple[Task, GPT, Any, float]:
    """The task, the model that training starts from, its tokenizer, seconds of pretraining."""
    run, toy, c = settings.run, settings.toy, settings.checkpoint
    if c.init:
        student, tokenizer = hf.load(c.init)
        options = {"pool_size": run.train_problems, "end_ids": hf.end_ids(student, tokenizer)}
        options |= {"reward": c.reward, "chat": c.chat(tokenizer)}
        task, seconds = TextTask(read_jsonl(c.data), tokenizer, **options), 0.0
        task.check_fit(settings.method.contexts, run.max_new_tokens, student.config.context_window)
        flags.check_contexts(settings.method, task)
    else:
        task, tokenizer = toy.make_task(run.train_problems, run.seed), None
        flags.check_contexts(settings.method, task)
        world, how = parse_world(toy.world), settings.pretraining(device)
        student, seconds = distributed.on_first(lambda: base.base_model(world, run.seed, **how))
    return task, spread(settings, student, device), tokenizer, seconds

def spread(settings: Settings, model: GPT, device: torch.device) -> GPT:
    """The model on the device, or over the processes."""
    c = settings.checkpoint
    if c.activation_checkpointing:
        distributed.checkpoint_blocks(model)
    model = distributed.spread(model, device, shard=c.shard, dtype=c.dtype)
    return compiled.compile_sampling(model) if c.compile else model

def external_teacher(settings: Settings, task: Task, student: GPT, device: torch.device) -> GPT:
    """A base model, the student of another run, or the base model as reward has adapted it."""
    name, m = settings.method.external_teacher, settings.method
    if name == "adapted":  # by GRPO, with the context in its own prompt
        row = {"teacher": "live", "context": m.context, "student_context": m.context}
        method = dataclasses.replace(METHODS["grpo"], learning_rate=m.learning_rate, **row)
        state = new_state(settings, method, distributed.copied(student), "adapting the teacher")
        train(settings, task, state, "adapting the teacher", m.adapt_steps)
        return state.student
    if name in base.EXTERNAL_BASES:
        world, how = parse_world(settings.toy.world), settings.pretraining(device)
        model, _ = distributed.on_first(lambda: base.external_base(name, world, **how))
    else:
        model = identity.named_teacher(name, task, student)
    return spread(settings, model, device)

def warm_start(settings: Settings, task: Task, student: GPT, device: torch.device) -> None:
    """Supervised steps on right samples of the teacher to be, or of the hinted student."""
    m, stage = settings.method, "warm start"
    use = settings.has_external and m.external_teacher in base.EXTERNAL_BASES
    row = {"teacher": "external" if use else "frozen", "learning_rate": m.learning_rate}
    external = external_teacher(settings, task, student, device) if use else None
    method = dataclasses.replace(METHODS["sft"], context=m.context, **row)
    train(settings, task, new_state(settings, method, student, stage, external), stage,
          m.warm_start_steps)

# One run ------------------------------------------------------------------------------------------
def begin(settings: Settings, task: Task, student: GPT, device: torch.device, log: report.Log):
    """The state of a new run after checks and preparations, and notes for its summary."""
    method, toy = settings.method, not settings.checkpoint.init
    with distributed.gathered(student):
        log.checks(report.start_up_checks(method, task, student, settings.sizes, toy=toy))
    looking = Method(teacher="live", context=method.context, reward_weight=1.0)
    prepared = method.warm_start_steps or settings.has_external
    before = evaluated(settings, task, Teacher(looking, student)) if prepared else None
    if method.warm_start_steps:
        warm_start(settings, task, student, device)
    external = external_teacher(settings, task, student, device) if settings.has_external else None
    state = new_state(settings, method, student, "post-training", external)
    at_start = evaluated(settings, task, state.teacher)
    before = before or at_start  # the same weights, of student and teacher
    log.evaluation(0, at_start, task)
    notes = {"before": {name: e.means for name, e in before.items()}, "train_s": 0.0}
    notes["samples"] = report.chosen(before[report.main_split(before)], task)
    return state, notes | {"teacher_at_start": at_start["teacher"].means["accuracy_frac"]}

def go_on(settings: Settings, student: GPT, device: torch.device, log: report.Log, saved: dict):
    """The state of a run as its checkpoint has it, and the notes beside it."""
    shape = saved["training"]["shapes"].get("external")
    external = spread(settings, GPT(minisd.GPTConfig(**shape)), device) if shape else None
    state = new_state(settings, settings.method, student, "post-training", external)
    state.load_state_dict(saved["training"])
    for name in storage.changes_since(settings.run.folder, device):
        log.warn(f"not as when this run began, so not bit for bit: {name}")
    log.say(f"going on after step {state.step}")
    return state, saved["notes"]

def train_and_report(settings: Settings, device: torch.device) -> dict[str, Any]:
    """The run itself, from its last checkpoint if its folder has one; returns its summary."""
    run, folder, begun = settings.run, settings.run.folder, time.perf_counter()
    distributed.on_first(lambda: storage.start_folder(folder, identity.Made(settings), device))
    print(report.start_lines(settings), flush=True)
    task, student, tokenizer, pretrain_s = initial(settings, device)
    saved = storage.last_checkpoint(folder)
    log = report.Log(folder if distributed.rank() == 0 else None, saved["rows"] if saved else [])
    if saved:
        state, notes = go_on(settings, student, device, log, saved)
    else:
        state, notes = begin(settings, task, student, device, log)
        notes["pretrain_s"] = pretrain_s
    notes["start"] = time.perf_counter()
    after = train(settings, task, state, "post-training", run.steps, log, notes)
    notes["train_s"] += time.perf_counter() - notes["start"]
    after = after or evaluated(settings, task, state.teacher)
    trained = distributed.whole(student)

    def write() -> dict[str, Any]:
        if tokenizer:
            hf.save(trained.to(getattr(torch, settings.checkpoint.dtype)), tokenizer,
                    folder / "checkpoint")
        else:
            storage.save_student(folder / "student.pt", trained)
        summary = report.summary_of(settings, task.splits, notes, after)
        report.draw(settings, log.rows, summary)
        summary["wall_s"] = time.perf_counter() - begun
        storage.write_json(folder / "summary.json", summary)
        return summary

    return distributed.on_first(write)

# Command line -------------------------------------------------------------------------------------
def parse(arguments: list[str]) -> tuple[Settings | None, bool]:
    """The settings, None for --method list, and whether a run is to be gone on with."""
    flags.refuse_old_flags(arguments)
    parser = flags.OneLineParser("train_gpt.py", USAGE, __doc__.splitlines()[0])
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the unfinished run there")
    groups = {"run": Run, "method": Method, "toy": Toy, "checkpoint": hf.Checkpoint}
    for name, kind in groups.items():
        flags.add_group(parser, kind, name, with_init=hf.CHECKPOINT_DEFAULTS)
    given = vars(parser.parse_args(arguments))
    if (folder := given.pop("resume", None)) is not None:
        if given:
            raise ValueError(f"--{next(iter(given))}: not with --resume, which has its settings")
        rows = storage.read_settings(Path(folder), "--resume")
        rows["run"]["out_dir"] = folder
    else:
        name = given.get("method", Run.method)
        if name == "list":
            return None, False
        if name not in METHODS:
            raise ValueError(f"--method: {name!r}; allowed: list, {', '.join(METHODS)}")
        row = dataclasses.asdict(METHODS[name])
        defaults = hf.CHECKPOINT_DEFAULTS if given.get("init") else {}
        row |= {key: value for key, value in defaults.items() if key in row}
        if defaults and str(given.get("reward_weight", row["reward_weight"])) in ("1", "1.0"):
            row |= {"teacher": "live", "context": "none"}  # no second copy, no solutions needed
        rows = dict.fromkeys(groups, defaults) | {"method": row}
    made = {name: flags.settings_of(kind, given, rows[name]) for name, kind in groups.items()}
    return Settings(**made), folder is not None

def main(arguments: list[str]) -> None:
    settings, resume = parse(arguments)
    if settings is None:
        return print(report.method_table(METHODS))
    run, folder, made = settings.run, settings.run.folder, identity.Made(settings)
    device = storage.prepare_device(run.device, run.threads, run.deterministic)
    groups, frac = run.batch_size // run.group_size, settings.method.student_frac
    with distributed.process_group(device, settings.checkpoint.shard, groups, frac):
        known = distributed.on_first(lambda: storage.finished_run(folder, made, resume))
        if not known:
            flags.require_packages(*report.NEEDED, *(hf.NEEDED if settings.checkpoint.init else ()))
            with storage.at_work_in(folder):
                summary = train_and_report(settings, device)
        print(report.end_lines(settings, known or summary, bool(known)))

if __name__ == "__main__":
    flags.run_main("train_gpt.py", main)
