"""Whom `lab.preflight` looks at: settings, the student, its teacher at the start, its task."""

import argparse
import dataclasses
import functools
import random
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import lab.extra_losses  # noqa: F401 (its rows)
import minisd
import toy_tasks
from lab import base, distributed, flags, hf, identity, storage
from lab.evaluation import seeded
from lab.forecast import TOY_CLASSES, Look, token_classes
from lab.preflight_law import TEXT_CLASSES
from lab.text_tasks import TextTask, read_jsonl
from minisd import GPT, METHODS, Method, Prompts, Row, Sizes
from toy_tasks import Toy

# 1. Settings -----------------------------------------------------------------------------
LEAST = {"seed": 0, "train_problems": 0, "threads": 0, "fix_problems": 0, "problems": 8}
# With a checkpoint: those of train_gpt.py, but for what would take minutes.
REAL = hf.CHECKPOINT_DEFAULTS | {"max_new_tokens": 80, "problems": 64, "fix_problems": 0}


@dataclass(frozen=True)
class Preflight:
    """What is looked at, and the run that is asked for."""

    method: str = "sdpo"  # row of the method table; other flags override it
    problems: int = 256  # problems of each kind that are looked at
    fix_problems: int = 64  # problems on which other contexts and targets are tried; 0: none
    seed: int = 0  # of the base model, the problems and the samples
    steps: int = 150  # of the run asked for
    train_problems: int = 64  # problems in its training pool; 0: endless, or all of --data
    batch_size: int = 128  # completions per step of it
    group_size: int = 8  # completions per problem
    max_new_tokens: int = 96  # length limit of a completion, tokens
    temperature: float = 1.0  # of the sampling in training
    device: str = "auto"  # auto, cpu, cuda or mps
    threads: int = 1  # CPU threads; 0: as PyTorch decides
    out_dir: str = "out/preflight"  # where preflight.json and preflight.png go
    cache_dir: str = "out/base"  # where base models are kept

    def __post_init__(self):
        flags.check_numbers(self, LEAST)
        if self.batch_size % self.group_size:
            allowed = f"a divisor of batch_size {self.batch_size}"
            raise ValueError(f"--group_size: {self.group_size}; allowed: {allowed}")
        flags.out_folder(self.out_dir)


Settings = tuple[Preflight, Method, Toy, hf.Checkpoint]


def parse(arguments: list[str], prog: str, description: str) -> Settings:
    """The settings of a command line. Raises ValueError."""
    parser = flags.OneLineParser(
        prog=prog, description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = {"preflight": Preflight, "method": Method, "toy": Toy, "checkpoint": hf.Checkpoint}
    for name, kind in groups.items():
        flags.add_group(parser, kind, name, with_init=REAL)
    given = vars(parser.parse_args(arguments))
    name, defaults = given.get("method", Preflight.method), REAL if given.get("init") else {}
    if name not in METHODS:
        raise ValueError(f"--method: {name!r}; allowed: {', '.join(METHODS)}")
    row = dataclasses.asdict(METHODS[name])
    if defaults and str(given.get("reward_weight", row["reward_weight"])) in ("1", "1.0"):
        row |= {"teacher": "live", "context": "none"}  # as train_gpt.py: no solutions needed
    rows = dict.fromkeys(groups, defaults) | {"method": row}
    asked, method, toy, checkpoint = (
        flags.settings_of(kind, given, rows[group]) for group, kind in groups.items())
    flags.check_loss(method, 10**6 if checkpoint.init else len(toy_tasks.VOCABULARY))
    if not checkpoint.init:
        flags.check_context(toy, set(method.contexts), method.reward_weight < 1)
    elif toy != Toy():
        raise ValueError("--init: with flags of the toy; allowed: without them")
    for name in ("compile", "shard"):  # a forecast and a cost that these would not change mislead
        if getattr(checkpoint, name):
            words = "allowed: without it (one process looks, and compiles nothing)"
            raise ValueError(f"--{name}: True; {words}")
    return asked, method, toy, checkpoint


# 2. What is looked at -----------------------------------------------------------------------------


class AtStart:
    """A teacher before the first step: every copy that it will have is the student still."""

    def __init__(self, method: Method, student: GPT, external: GPT | None = None):
        self.method, self.student, self.external = method, student, external

    def terms(self, shown: dict[str, Prompts]) -> minisd.Terms:
        models = {"external": self.external}
        return [(a, models.get(w) or self.student, shown[c]) for a, w, c in self.method.terms]


@dataclass
class Subject:
    """A student, its teacher and its task, and what the parts of the page read of them."""

    asked: Preflight
    method: Method
    task: Any
    teacher: AtStart
    checkpoint: hf.Checkpoint

    @property
    def student(self) -> GPT:
        return self.teacher.student

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    @property
    def real(self) -> bool:
        return bool(self.checkpoint.init)

    @property
    def distils(self) -> bool:
        return self.method.reward_weight < 1

    def sizes(self, groups: int, group_size: int) -> Sizes:
        asked, c = self.asked, self.checkpoint
        return Sizes(groups, group_size, asked.max_new_tokens, asked.temperature, c.micro_batch,
                     c.chunk_tokens, c.dtype)

    def chance(self, name: str) -> tuple[random.Random, torch.Generator]:
        name = f"preflight-{name}-{self.asked.seed}"
        return random.Random(name), seeded(name, self.device)

    @functools.cached_property
    def words(self) -> list[str]:  # the text of every token
        if not self.real:
            return list(toy_tasks.VOCABULARY)
        known, ids = len(self.task.tokenizer), range(self.student.config.vocab_size)
        return [self.task.tokenizer.decode([i]) if i < known else f"unused {i}" for i in ids]

    @property
    def patterns(self) -> tuple[str, ...]:
        return TEXT_CLASSES if self.real else TOY_CLASSES

    @functools.cached_property
    def kinds(self) -> Tensor:  # (V,) index in KINDS of every token
        found = [[bool(re.fullmatch(p, w)) for p in self.patterns] for w in self.words]
        kinds = [row.index(True) if any(row) else len(row) for row in found]
        return torch.tensor(kinds, device=self.device)

    def look(self, kind: str, laws: tuple[str, ...]) -> Look:
        """As lab/forecast.py wants it, at a kind of context."""
        G = self.asked.group_size if self.task.attempts.get(kind) == "sibling" else 1
        classes = token_classes(self.words, self.patterns).to(self.device)
        sizes = dataclasses.replace(self.sizes(1, G), temperature=1.0)
        return Look(self.task, self.student, kind, classes, sizes, laws, summed=False)

    @functools.cached_property
    def batch(self) -> minisd.Batch:
        """A small batch of the method itself, as training has it."""
        G = min(self.asked.group_size, 2 if self.real else 8)
        G = max(G, 2) if self.method.reward_weight > 0 else G
        rng, generator = self.chance("batch")
        return minisd.rollout(self.method, self.task, self.student, self.teacher, rng, generator,
                              self.sizes(-(-4 // G) if self.real else 8, G))

    @functools.cached_property
    def groups(self) -> list[list[Row]]:
        """Groups of completions that the student writes, whoever writes in the method."""
        G = min(self.asked.group_size, 4 if self.real else 8)
        credit = "token" if self.method.credit == "imitation" else self.method.credit
        method = dataclasses.replace(self.method, student_frac=1.0, credit=credit)
        rng, generator = self.chance("groups")
        count = max(2, self.asked.problems // 4)
        return minisd.write_groups(method, self.task, self.student, self.teacher, rng, generator,
                                   self.sizes(count, G), count)

    @functools.cached_property
    def rows(self) -> list[Row]:
        """A completion of each problem whose teacher has a context."""
        firsts = [group[0] for group in self.groups]
        kinds = {c for _, _, c in self.method.terms} - {"none"}
        return [row for row in firsts if all(row.contexts.get(kind) for kind in kinds)]

    def prompts(self, rows: list[Row], kind: str, prefixes: list[list[int]]) -> Prompts:
        shown = [self.task.prompt_ids(r.example, r.contexts[kind]) for r in rows]
        return Prompts.of([a + b for a, b in zip(shown, prefixes)], self.task.pad_id, self.device)


def subject_of(asked: Preflight, method: Method, toy: Toy, c: hf.Checkpoint) -> Subject:
    """The student, its teacher and its task. Raises ValueError for what cannot be looked at."""
    device = storage.prepare_device(asked.device, asked.threads)
    name, external = method.external_teacher, None
    needed = any(weights == "external" for _, weights, _ in method.terms)
    if needed and name == "adapted":
        raise ValueError("--external_teacher: 'adapted' is made by training; allowed: a folder")
    if c.init:
        student, tokenizer = hf.load(c.init, device=device)
        task = TextTask(
            read_jsonl(c.data), tokenizer, pool_size=asked.train_problems, reward=c.reward,
            end_ids=hf.end_ids(student, tokenizer), chat=c.chat(tokenizer))
        task.check_fit(method.contexts, asked.max_new_tokens, student.config.context_window)
    else:
        world = toy_tasks.parse_world(toy.world)
        task = toy.make_task(asked.train_problems, asked.seed)
        how = {"steps": toy.pretrain_steps, "device": device.type, "cache_dir": asked.cache_dir}
        flags.check_contexts(method, task)
        student, _ = base.base_model(world, asked.seed, **how)
    flags.check_contexts(method, task)
    if c.activation_checkpointing:
        distributed.checkpoint_blocks(student)
    if needed and name in base.EXTERNAL_BASES and not c.init:
        external, _ = base.external_base(name, world, **how)
    elif needed:
        external = identity.named_teacher(name, task, student).to(device)
    return Subject(asked, method, task, AtStart(method, student, external), c)
