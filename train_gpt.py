"""Pretrain the toy model or load a checkpoint, let it teach itself, and see what became of it.

python train_gpt.py --method sdpo       # a minute: surer, shorter, worse on fresh problems
python train_gpt.py --method grpo       # 30 s: the same problems, rewards instead of hints
python train_gpt.py --compare base sdpo grpo sft --seeds 3   # minutes: a table with intervals
python train_gpt.py --list_methods      # every method as a row of settings
python train_gpt.py --method sdpo --init Qwen/Qwen3-0.6B --data gsm8k.jsonl   # a real checkpoint
torchrun --nproc_per_node 8 train_gpt.py --method sdpo ...   # several processes, same flags

1 configuration and method table   2 the initial model   3 one batch   4 its loss   5 evaluation
6 training   7 one run   8 tables and pictures   9 several methods and seeds   10 microscope
11 several processes   12 command line
"""

import argparse
import ast
import contextlib
import copy
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import pickle
import platform
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial, partialmethod, reduce
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from tqdm import tqdm

import minisd
import toy_tasks
from minisd import GPT, Completions, GPTConfig, NonFiniteError, Prompts, Teacher
from toy_tasks import Example, Task, TextExample, TextTask, ToyTask, World

try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are not noticed
    fcntl = None

# 1. Configuration: one dataclass, and methods as rows of overrides --------------------------------

LOSSES = {
    "forward_kl": "KL(teacher || student)",
    "reverse_kl": "KL(student || teacher)",
    "jensen_shannon": "{w} KL(teacher || m) + {v} KL(student || m), m = {w} teacher + {v} student",
    "clipped_forward_kl": "sum_v min(q log(q/p), {clip}), q teacher, p student",
    "top_k_reverse_kl": "KL(student || teacher) on the {k} likeliest of the {support}, tail {tail}",
    "sampled_token": "sg[log p(y_t) - log q(y_t)] log p(y_t)",
    "sequence_kl": "KL(student || teacher) of whole sequences (its gradient)",
    "averaged_advantage": "-sg[mean_t log q(y_t) - log p(y_t)] log p(y_t)",
    "imitation": "-log p(y_t)",
}


# Teachers that are base models of their own: (size, what is put behind --world).
EXTERNAL_BASES = {"larger": ("larger", ""), "other_style": ("base", "functional_markers=false")}
# As a checkpoint from elsewhere is the same for every seed of the student, so are these.
EXTERNAL_SEED = 1000
EXTERNAL_TEACHERS = f"{', '.join(EXTERNAL_BASES)}, adapted, or a folder with student.pt"

# Beyond 2^31 a size is a slip of the finger, and some library's 64-bit overflow.
POSITIVE = (lambda v: 1 <= v < 2**31, "1 or more, below 2^31")
COUNT = (lambda v: 0 <= v < 2**31, "0 or more, below 2^31")
ABOVE_ZERO = (lambda v: v > 0, "above 0")
FRACTION = (lambda v: 0 <= v <= 1, "0 to 1")
ANY = (lambda v: True, "")


def one_of(*names: str):
    """The range of an option that is one of these words."""
    return (lambda v: v in names, ", ".join(names))


def option(default, help: str, allowed=ANY):
    """A field of TrainConfig: its default, its help, and (test, words) for its range."""
    return field(default=default, metadata={"help": help, "allowed": allowed})


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run and their only defaults; every field is a flag of the same name."""

    method: str = option("sdpo", "row of the method table; other flags override it")
    seed: int = option(
        0,
        "seeds base model, data, sampling, evaluation; external base models have their own",
        (lambda v: 0 <= v < 2**63, "0 to 2^63 - 1"),
    )
    # A real checkpoint instead of the toy
    init: str = option("", "checkpoint, a folder or a name on the hub; empty: the toy's base model")
    data: str = option("", "problems for --init, a JSONL file; see toy_tasks.read_jsonl")
    reward: str = option("last_number", "reward of --data", one_of(*toy_tasks.TEXT_REWARDS))
    dtype: str = option(
        "float32",
        "of the computation and of the saved checkpoint; in training, weights are float32",
        one_of("float32", "bfloat16"),
    )
    micro_batch: int = option(0, "completions per pass and process; 0: all, same gradient", COUNT)
    chunk_tokens: int = option(
        0, "tokens whose logits exist at a time; 0: all, same gradient", COUNT
    )
    activation_checkpointing: bool = option(False, "less memory, every block computed twice")
    shard: bool = option(False, "divide weights and optimiser among the processes of torchrun")
    # Who is trained on what
    steps: int = option(150, "post-training steps", POSITIVE)
    train_problems: int = option(64, "problems in the training pool; 0: endless", COUNT)
    train_operators: str = option("", "operators in post-training, such as +-; empty: all")
    train_operations: int = option(
        0, "operations of every problem in post-training; 0: all lengths of the world", COUNT
    )
    rules: str = option("", "numbers to add to the answer, such as 3 or 2,7 (drawn per problem)")
    batch_size: int = option(128, "completions per step", POSITIVE)
    group_size: int = option(8, "completions per problem", POSITIVE)
    student_frac: float = option(
        1.0, "fraction of the groups that the student samples (GKD)", FRACTION
    )
    off_policy: str = option("teacher", "who writes the other groups", one_of("teacher", "data"))
    only_correct: bool = option(False, "drop completions with a wrong answer from the loss")
    max_new_tokens: int = option(64, "length limit of a completion, tokens", POSITIVE)
    temperature: float = option(1.0, "of the sampling in training", ABOVE_ZERO)
    # Teacher
    teacher: str = option("frozen", "teacher weights", one_of(*minisd.TEACHERS))
    teacher_update_rate: float = option(
        0.0, "r: ema and trust_region move by r towards the student", FRACTION
    )
    teacher_every: int = option(25, "steps between copies of a snapshot teacher", POSITIVE)
    external_teacher: str = option(
        "larger",
        "larger: a larger base model; other_style: one that never answers without steps; "
        "adapted: by reward, context shown; or a run's folder",
    )
    context: str = option("solution", "what only the teacher sees", one_of(*toy_tasks.CONTEXTS))
    # Loss
    loss: str = option("reverse_kl", "distillation loss", one_of(*LOSSES))
    teacher_weight: float = option(
        0.5, "w of jensen_shannon", (lambda v: 0 < v < 1, "strictly between 0 and 1")
    )
    clip: float = option(0.05, "of clipped_forward_kl, nats", ABOVE_ZERO)
    top_k: int = option(8, "tokens in the support of top_k_reverse_kl", POSITIVE)
    top_k_support: str = option("student", "whose top k", one_of(*minisd.SUPPORTS))
    top_k_tail: str = option("bucket", "what is done about the other tokens", one_of(*minisd.TAILS))
    discount: float = option(
        1.0, "of future KL in sequence_kl; 0: token level, 1: unbiased", FRACTION
    )
    importance_cap: float = option(0.0, "cap of SDPO's importance weight; 0: no weight", COUNT)
    reward_weight: float = option(0.0, "0: pure distillation, 1: pure policy gradient", FRACTION)
    advantage: str = option("std", "(r - mean) / std, or r - mean", one_of("std", "mean"))
    clip_low: float = option(0.2, "the policy ratio is clipped below at 1 - clip_low", FRACTION)
    clip_high: float = option(0.2, "and above at 1 + clip_high", FRACTION)
    kl_coef: float = option(0.0, "weight of the k3 penalty to the initial model", COUNT)
    resample: int = option(0, "times that groups with equal rewards are sampled anew (DAPO)", COUNT)
    token_share: float = option(
        1.0,
        "fraction of each completion's tokens that is distilled",
        (lambda v: 0 < v <= 1, "above 0, to 1"),
    )
    token_part: str = option("first", "which ones", one_of(*minisd.TOKEN_PARTS))
    reduction: str = option(
        "token_mean", "mean over tokens", one_of("token_mean", "sequence_mean", "constant")
    )
    # Optimisation
    learning_rate: float = option(1e-3, "AdamW", ABOVE_ZERO)
    updates_per_batch: int = option(1, "optimiser steps on the same completions", POSITIVE)
    grad_clip: float = option(1.0, "maximal norm of the gradient", ABOVE_ZERO)
    warm_start_steps: int = option(
        0, "supervised steps on the teacher's correct samples before", COUNT
    )
    adapt_steps: int = option(
        60, "GRPO steps, context shown, that adapt an adapted teacher", POSITIVE
    )
    # The world and the base model
    world: str = option("", "fields of the toy world, such as persona_rate=0,certainty.answer=0")
    pretrain_steps: int = option(1200, "steps of the base model", POSITIVE)
    # The run
    eval_every: int = option(25, "steps between evaluations", POSITIVE)
    eval_problems: int = option(256, "completions per split and evaluation", POSITIVE)
    device: str = option("auto", "auto, cpu, cuda or mps")
    threads: int = option(
        0, "CPU threads; 0: as PyTorch decides", (lambda v: 0 <= v <= 1024, "0 to 1024")
    )
    deterministic: bool = option(False, "on a GPU: only operations that repeat bit for bit; slower")
    save_every: int = option(
        50, "steps between checkpoints, for --resume; 0: only when interrupted", COUNT
    )
    out_dir: str = option("", "where results go; empty: out/<method>-<seed>")
    cache_dir: str = option("out/base", "where base models are kept")

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, (test, words) = getattr(self, f.name), f.metadata["allowed"]
            if isinstance(value, float) and not math.isfinite(value):
                test, words = (lambda v: False), "a finite number"
            if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
                test, words = (lambda v: False), "text in UTF-8, without NUL"
            self.require(test(value), f.name, words)
        self.require(self.method in METHODS, "method", ", ".join(METHODS))
        self.check_checkpoint()
        self.check_world()
        self.check_combinations()

    def require(self, condition: bool, name: str, allowed: str) -> None:
        """Raises ValueError that names the flag, its value and what is allowed."""
        if not condition:
            raise ValueError(f"--{name}: {getattr(self, name)!r}; allowed: {allowed}")

    def check_checkpoint(self) -> None:
        """Raises ValueError if toy and checkpoint are mixed."""
        for name, other in (("init", "data"), ("data", "init")):
            alone = getattr(self, name) and not getattr(self, other)
            self.require(not alone, name, f"only with --{other}")
        self.require(not self.data or Path(self.data).is_file(), "data", "a JSONL file")
        for name in ("world", "train_operators", "train_operations", "rules"):
            self.require(not (self.init and getattr(self, name)), name, "unset with --init")
        toy = self.teacher == "external" and self.external_teacher in EXTERNAL_BASES
        self.require(not (self.init and toy), "external_teacher", "adapted, or a checkpoint")
        if self.external_teacher not in (*EXTERNAL_BASES, "adapted") and not self.init:
            found = (Path(self.external_teacher) / "student.pt").is_file()
            self.require(found, "external_teacher", EXTERNAL_TEACHERS)

    def check_world(self) -> None:
        """Raises ValueError for a world, rules or operators that do not fit each other."""
        world, distils = self.toy_world, self.reward_weight < 1
        known = set(self.train_operators) <= set(world.operators)
        self.require(known, "train_operators", f"some of {' '.join(world.operators)}")
        fits = self.train_operations <= world.max_operations
        self.require(fits, "train_operations", f"0 to {world.max_operations}")
        if self.context == "rule" and not self.data:
            self.require(self.rule_numbers, "rules", "numbers such as 3 or 2,7 with --context rule")
        elif self.rule_numbers:  # every other context tells the answer without the rule
            self.require(not distils, "context", "rule, with --rules and a teacher")
            self.require(self.context != "feedback", "context", "no verdicts with --rules")

    def check_combinations(self) -> None:
        """Raises ValueError for settings that are each allowed but together teach nothing."""
        distils, on_policy = self.reward_weight < 1, self.student_frac == 1
        groups = self.batch_size / self.group_size
        self.require(groups % 1 == 0, "group_size", f"a divisor of batch_size {self.batch_size}")
        whole = (self.student_frac * groups) % 1 == 0
        self.require(whole, "student_frac", f"a multiple of 1/{groups:g}, the share of a group")
        if self.reward_weight > 0:
            self.require(self.group_size >= 2, "group_size", "2 or more with rewards")
            self.require(on_policy, "student_frac", "1 with rewards")
        for name in ("importance_cap", "kl_coef", "resample"):
            self.require(on_policy or not getattr(self, name), name, "0 unless the student samples")
        adapted = self.teacher == "external" and self.external_teacher == "adapted"
        if adapted:
            self.require(self.group_size >= 2, "group_size", "2 or more to adapt a teacher")
            self.require(on_policy, "student_frac", "1 with an adapted teacher")
        attempt_free = self.context not in ("sibling", "feedback")
        needs = "one that does not need the student's own completions"
        others_write = not on_policy and self.off_policy == "teacher"
        warm = self.warm_start_steps > 0
        self.require(attempt_free or not (others_write or adapted or warm), "context", needs)
        if distils:
            self.check_distillation(on_policy)

    def check_distillation(self, on_policy: bool) -> None:
        """Raises ValueError for a distillation loss that is zero, or no loss, by construction."""
        if self.loss == "imitation":
            self.require(self.student_frac == 0, "student_frac", "0 with --loss imitation")
        elif self.teacher != "external":
            allowed = (
                "any other: without it the teacher is the student, the loss zero by construction"
            )
            self.require(self.context != "none", "context", allowed)
        if self.loss in ("sampled_token", "sequence_kl", "averaged_advantage"):
            self.require(on_policy, "student_frac", f"1 with --loss {self.loss}")
            self.require(self.temperature == 1, "temperature", f"1 with --loss {self.loss}")
        if self.loss == "top_k_reverse_kl":
            vocabulary = math.inf if self.init else len(toy_tasks.VOCABULARY)
            self.require(self.top_k <= vocabulary, "top_k", f"1 to {vocabulary}")
            zero = self.top_k_tail == "renormalised" and self.top_k == 1
            self.require(not zero, "top_k", "2 or more, since renormalised it is zero")

    @property
    def rule_numbers(self) -> tuple[int, ...]:
        parts = [p for p in self.rules.split(",") if p]
        digits = all(len(p) == 1 and p in "123456789" for p in parts)
        self.require(digits, "rules", "digits 1-9 joined by commas, such as 2,7")
        return tuple(map(int, parts))

    @property
    def toy_world(self) -> World:
        """The world with the overrides of --world."""
        values = dataclasses.asdict(World())
        for part in filter(None, self.world.split(",")):
            name, _, text = part.partition("=")
            table, _, key = name.strip().partition(".")
            target, key = (values.get(table), key) if key else (values, table)
            if not isinstance(target, dict) or key not in target or isinstance(target[key], dict):
                known = ", ".join(
                    n + (".<context>" if isinstance(v, dict) else "") for n, v in values.items()
                )
                raise ValueError(f"--world: {name!r}; allowed: {known}")
            target[key] = parse_value(f"--world: {name}", text.strip(), type(target[key]))
        try:
            return World(**values)
        except ValueError as error:
            raise ValueError(f"--{error}") from None

    @property
    def folder(self) -> Path:
        return Path(self.out_dir or f"out/{self.method}-{self.seed}")


def parse_value(what: str, text: str, kind: type):
    """Text as a bool, int, float or str. Raises ValueError that begins with `what`."""
    words = {"true": True, "false": False, "1": True, "0": False}
    if kind is bool and text.lower() in words:
        return words[text.lower()]
    try:
        if kind is not bool:
            return kind(text)
    except ValueError:
        pass
    raise ValueError(
        f"{what} = {text!r}; allowed: {'true or false' if kind is bool else kind.__name__}"
    )


@dataclass(frozen=True)
class Method:
    """A row of the method table: a source, and the settings that differ from the defaults."""

    source: str
    settings: dict


SELF_TEACHER = {"teacher": "frozen", "context": "solution"}
EMA_TEACHER = {"teacher": "ema", "teacher_update_rate": 0.01, "context": "solution"}
OFF_POLICY = {"student_frac": 0.0, "off_policy": "teacher", "loss": "imitation"}
POLICY_GRADIENT = {"reward_weight": 1.0}

METHODS = {
    "sft": Method(
        "Kim et al. 2603.24472, table 2", SELF_TEACHER | OFF_POLICY | {"only_correct": True}
    ),
    "seq_kd": Method(
        "Kim and Rush 1606.07947", SELF_TEACHER | OFF_POLICY | {"only_correct": False}
    ),
    "gkd": Method(
        "Agarwal et al. 2306.13649",
        {"teacher": "external", "context": "none", "loss": "jensen_shannon"}
        | {"student_frac": 0.5, "off_policy": "data"},
    ),
    "opd": Method(
        "Lu et al. 2025", {"teacher": "external", "context": "none", "loss": "sampled_token"}
    ),
    "opsd": Method(
        "Zhao et al. 2601.18734 v3",
        SELF_TEACHER | {"loss": "forward_kl", "reduction": "sequence_mean"},
    ),
    "sdpo": Method("Huebotter et al. 2601.20802", EMA_TEACHER | {"loss": "reverse_kl"}),
    "sdft": Method(
        "Shenfeld et al. 2601.19897", EMA_TEACHER | {"context": "sibling", "loss": "reverse_kl"}
    ),
    "sequence_kl": Method(
        "Fu et al. 2603.25562",
        SELF_TEACHER | {"loss": "sequence_kl", "discount": 1.0, "reduction": "constant"},
    ),
    "grpo": Method(
        "Shao et al. 2402.03300", POLICY_GRADIENT | {"reduction": "sequence_mean", "kl_coef": 0.04}
    ),
    "dr_grpo": Method(
        "Liu et al. 2503.20783", POLICY_GRADIENT | {"advantage": "mean", "reduction": "constant"}
    ),
    "dapo": Method("Yu et al. 2503.14476", POLICY_GRADIENT | {"clip_high": 0.28, "resample": 2}),
    "sdpo_grpo": Method(
        "Huebotter et al. 2601.20802, hybrid",
        EMA_TEACHER | {"loss": "reverse_kl", "reward_weight": 0.9, "advantage": "mean"},
    ),
    "rlvr_teacher": Method(
        "Zhu et al. 2605.11182",
        {"teacher": "external", "external_teacher": "adapted", "loss": "reverse_kl"},
    ),
    "sft_then_sdpo": Method(
        "Zhu et al. 2605.11182", EMA_TEACHER | {"loss": "reverse_kl", "warm_start_steps": 50}
    ),
}

ADAPTING = METHODS["grpo"].settings  # of a teacher, by reward
SUPERVISED = METHODS["sft"].settings  # the warm start

# With --init these come before the row of the method; explicit flags beat both. The magnitudes are
# usual for models of 0.5 to 8 billion parameters, where the toy's would destroy the weights.
CHECKPOINT_SETTINGS = {
    **{"train_problems": 0, "batch_size": 32, "max_new_tokens": 512, "learning_rate": 1e-5},
    **{"micro_batch": 4, "chunk_tokens": 1024, "eval_problems": 64},
}
# A policy gradient needs no second copy of the weights, and no data with solutions.
WITHOUT_TEACHER = {"teacher": "live", "context": "none"}


# 2. The initial model -----------------------------------------------------------------------------

SIZES = {"base": {}, "larger": {"n_layers": 3}}
PRETRAIN_TOKENS = 2048  # per step
MUON = {"lr": 0.021, "momentum": 0.85, "weight_decay": 0.1}  # hidden matrices
ADAMW = {"lr": 0.014, "betas": (0.9, 0.99), "weight_decay": 0.0}  # embedding, head and norms


def progress(items, what: str, total: int | None = None):
    """The items, with a bar that shows the remaining time (in a file: a line every ten seconds)."""
    seldom = 0.1 if sys.stdout.isatty() else 10.0
    return tqdm(items, what, total, leave=False, file=sys.stdout, mininterval=seldom)


def pretrain_batches(world: World, rng: random.Random):
    """Endless batches (B, T) of right-padded documents; like lengths together save padding."""
    while True:
        documents = (toy_tasks.draw_document(rng, world) for _ in range(4096))
        rows = sorted(([*toy_tasks.encode(p + c), toy_tasks.END_ID] for p, c in documents), key=len)
        batches, start = [], 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or (end - start + 1) * len(rows[end]) > PRETRAIN_TOKENS:
                batches.append(rows[start:end])
                start = end
        rng.shuffle(batches)
        for batch in batches:
            T = max(map(len, batch))
            yield torch.tensor([row + [toy_tasks.PAD_ID] * (T - len(row)) for row in batch])


def pretrain(model: GPT, world: World, steps: int, seed: int) -> None:
    """Next-token training on documents of the world, with Muon on the hidden matrices."""
    hidden = [p for p in model.blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [torch.optim.Muon(hidden, **MUON), torch.optim.AdamW(others, **ADAMW)]
    peaks = [MUON["lr"], ADAMW["lr"]]
    device = next(model.parameters()).device
    batches = pretrain_batches(world, random.Random(f"documents-{seed}"))
    for step in progress(range(steps), "pretraining"):
        ids = next(batches).to(device)
        logits = model(ids[:, :-1])  # (B, T-1, V)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=toy_tasks.PAD_ID
        )
        loss.backward()
        scale = min((step + 1) / 20, 1 - step / steps)  # warm-up over 20 steps, linearly to zero
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


# What only reports or stores, and what every run's own settings stand for: no number depends on it.
NOT_FOLLOWED = {"TrainConfig", "METHODS", "Log", "progress", "write_atomically", "base_model"}
NOT_FOLLOWED |= {"warn_of_flat_signals", "load_hf", "save_hf", "load_student", "TextTask"}
NOT_FOLLOWED |= {"read_jsonl", "TextExample", "TEXT_REWARDS"}
# Of several processes; in one, each gives back what it was given.
NOT_FOLLOWED |= {"TrainState", "guilty_rows", "process_group", "on_first", "from_all", "spread"}
NOT_FOLLOWED |= {"over_processes", "copied", "gathered", "release", "loading_device", "largest"}


@functools.cache
def code_of(function) -> tuple[str, frozenset[str]]:
    """A hash of the code that a function reaches in our files, and the settings it reads.

    Comments, docstrings and everything that it does not reach leave the hash as it is, so that a
    change of the code makes old results invalid where it may change a number, and nowhere else.
    """
    modules = {"minisd": minisd, "toy_tasks": toy_tasks, __name__: sys.modules[__name__]}
    modules[function.__module__] = sys.modules[function.__module__]
    found: dict[str, str] = {}
    settings, todo = set(), [(function.__module__, function.__name__)]
    while todo:
        module, name = todo.pop()
        value = vars(modules[module]).get(name)
        module = getattr(value, "__module__", module)  # where it is defined, not imported
        skipped = name in NOT_FOLLOWED or name in found or inspect.ismodule(value)
        if skipped or value is None or module not in modules:
            continue
        tree = definitions(modules[module]).get(name)
        found[name] = ast.unparse(tree) if tree else repr(value)
        for node in ast.walk(tree) if tree else ():
            if isinstance(node, ast.Name):
                todo.append((module, node.id))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in modules:
                    todo.append((node.value.id, node.attr))
                elif node.value.id == "config":
                    settings.add(node.attr)
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    return short_hash(sorted(found.items())), frozenset(settings & fields)


@functools.cache
def definitions(module) -> dict[str, ast.AST]:
    """Functions and classes of a module by name, without their docstrings."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def short_hash(content) -> str:
    """16 hexadecimal digits that stand for JSON content."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def machine(config: TrainConfig) -> list:
    """What changes the last bits of sums: version, threads (the order of additions), device."""
    return [torch.__version__, torch.get_num_threads(), pick_device(config.device).type]


def base_path(config: TrainConfig, size: str = "base") -> Path:
    """The file of a base model: its name is a hash of everything that determines the weights, the
    code of the pretraining included, so that a change makes a new model and none is stale."""
    recipe = [dataclasses.asdict(config.toy_world), dataclasses.asdict(base_shape(size))]
    recipe += [config.pretrain_steps, config.seed, machine(config), code_of(pretrain)[0]]
    return Path(config.cache_dir) / f"{size}-{short_hash(recipe)}.pt"


def base_shape(size: str) -> GPTConfig:
    return GPTConfig(vocab_size=len(toy_tasks.VOCABULARY), **SIZES[size])


def base_model(config: TrainConfig, size: str = "base") -> tuple[GPT, float]:
    """The pretrained model, from the cache if possible, and the seconds its pretraining took."""
    path, device = base_path(config, size), pick_device(config.device)
    model = GPT(base_shape(size), torch.Generator().manual_seed(config.seed)).to(device)
    if path.exists():
        try:
            saved = torch.load(path, map_location=device, weights_only=True)
            model.load_state_dict(saved["weights"])
            return model, float(saved["pretrain_s"])
        except UNREADABLE:
            raise ValueError(f"--cache_dir: {str(path)!r} is damaged; delete that file") from None
    path.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    start = time.perf_counter()
    pretrain(model, config.toy_world, config.pretrain_steps, config.seed)
    seconds = time.perf_counter() - start
    save_tensors(path, {"weights": model.state_dict(), "pretrain_s": seconds})
    return model, seconds


def initial_model(config: TrainConfig) -> tuple[GPT, Any, float]:
    """The model that training starts from, its tokenizer (None in the toy), pretraining seconds."""
    if config.init:
        student, tokenizer = minisd.load_hf(config.init, device=loading_device(config))
        pretrain_s = 0.0
    else:
        (student, pretrain_s), tokenizer = on_first(lambda: base_model(config)), None
    student.activation_checkpointing = config.activation_checkpointing
    return spread(config, student), tokenizer, pretrain_s


def precision(config: TrainConfig, device: torch.device):
    """Autocast if --dtype is bfloat16: the weights stay float32.

    In bfloat16 weights, of 8 bits, a step of the optimiser or of the EMA would round to nothing.
    NOTE: autocast keeps rounded weights until it ends, so it must end before the optimiser's step.
    """
    if config.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def write_atomically(path: Path, write) -> None:
    """Calls write(temporary path), then renames it: no reader ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("r+b") as f:
            os.fsync(f.fileno())  # so that a power cut leaves no name without content
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # half a file would only fill a full disk further
        raise


def is_temporary(path: Path) -> bool:
    """Whether it is what a killed `write_atomically` leaves."""
    return path.name.startswith(".") and path.suffix[1:].isdigit()


def save_tensors(path: Path, content: dict) -> None:
    """torch.save, atomically. Raises OSError if the disk is full."""

    def write(temporary: Path) -> None:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # PyTorch's own word for every failure of the file system
            reason = str(error).splitlines()[0]
            raise OSError(
                f"{str(path)!r} cannot be written; is the disk full? ({reason})"
            ) from None

    write_atomically(path, write)


def pick_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError if this machine does not have it."""
    available = ["cpu"]
    available += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if "cuda" in available else "cpu")
    if name.split(":")[0] not in available:
        raise ValueError(f"--device: {name!r}; allowed here: auto, {', '.join(available)}")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: {name!r}; allowed: such as cpu, cuda or cuda:0") from None


# 3. One batch: prompts, completions, rewards, the teacher's prompts -------------------------------


@dataclass
class Batch:
    """Everything that the loss needs; rows are grouped by problem, group_size to each."""

    examples: list[Example] | list[TextExample]
    prompts: Prompts  # what the student sees
    completions: Completions
    texts: list[str]
    grades: list[toy_tasks.Grade]
    rewards: Tensor  # (B,)
    teacher_prompts: Prompts  # privileged context + prompt
    has_context: Tensor  # (B,) bool; rows without are left out of the distillation loss
    equal_groups: float  # share of the groups first drawn in which all rewards were alike

    def take(self, rows: Tensor) -> "Batch":
        """Those of the given row indices."""
        parts = {"equal_groups": self.equal_groups}
        for name in ("examples", "texts", "grades"):
            parts[name] = [getattr(self, name)[i] for i in rows.tolist()]
        for name in ("rewards", "has_context"):
            parts[name] = getattr(self, name)[rows]
        for name in ("prompts", "completions", "teacher_prompts"):
            parts[name] = getattr(self, name).take(rows)
        return Batch(**parts)

    def join(self, other: "Batch", pad_id: int) -> "Batch":
        """The rows of both, one below the other."""
        parts = {"equal_groups": self.equal_groups}
        for name in ("examples", "texts", "grades"):
            parts[name] = getattr(self, name) + getattr(other, name)
        for name in ("rewards", "has_context"):
            parts[name] = torch.cat((getattr(self, name), getattr(other, name)))
        for name in ("prompts", "completions", "teacher_prompts"):
            parts[name] = getattr(self, name).join(getattr(other, name), pad_id)
        return Batch(**parts)


def make_prompts(task: Task, examples: list, contexts: list[str], device: torch.device) -> Prompts:
    rows = [task.prompt_ids(e, c) for e, c in zip(examples, contexts)]
    return Prompts(*minisd.pad_left(rows, task.pad_id, device))


def collect(
    config: TrainConfig,
    task: Task,
    student: GPT,
    teacher: Teacher,
    rng: random.Random,
    generator: torch.Generator,
    *,
    groups: int,
    resample: int = 0,
    show_context: bool = False,
) -> Batch:
    """Draws problems, has completions written, grades them and builds the teacher's prompts.

    resample: how often groups with equal rewards, which teach a policy gradient nothing, are drawn
    anew (DAPO). show_context: the student sees the context as well (to adapt a teacher by reward).
    """
    G, kind = config.group_size, config.context
    examples = [e for _ in range(groups) for e in [task.draw("train", rng)] * G]
    needs_attempt = kind in ("sibling", "feedback")
    contexts = nothing = [""] * len(examples)
    if not needs_attempt:
        contexts = [task.context(e, kind, rng) for e in examples]
    device = next(student.parameters()).device
    hinted = make_prompts(task, examples, contexts, device)
    prompts = hinted if show_context else make_prompts(task, examples, nothing, device)

    split = round(config.student_frac * groups) * G
    parts = []
    if split > 0:
        parts.append(write(config, task, student, prompts, slice(0, split), generator))
    if split < len(examples) and config.off_policy == "teacher":
        parts.append(write(config, task, teacher, hinted, slice(split, None), generator))
    elif split < len(examples):
        rows = [[*task.encode(task.reference(e, rng)), task.end_id] for e in examples[split:]]
        parts.append(Completions.from_rows(rows, task.pad_id, device))
    completions = parts[0] if len(parts) == 1 else parts[0].join(parts[1], task.pad_id)

    texts = [task.decode(row) for row in completions.ids.tolist()]
    grades = [task.grade(text, e) for text, e in zip(texts, examples)]
    if needs_attempt:
        attempts = texts if kind == "feedback" else pick_siblings(texts, grades, G, rng)
        contexts = [
            "" if attempt is None else task.context(e, kind, rng, attempt)
            for e, attempt in zip(examples, attempts)
        ]
        hinted = make_prompts(task, examples, contexts, device)
    has_context = torch.tensor([bool(c) or kind == "none" for c in contexts], device=device)
    rewards = torch.tensor([g.reward for g in grades], device=device)
    equal = minisd.equal_reward_groups(rewards.view(groups, G))  # (P,)
    batch = Batch(
        *(examples, prompts, completions, texts, grades, rewards, hinted, has_context),
        equal_groups=equal.float().mean().item(),
    )
    if resample and equal.any():
        extra = collect(
            *(config, task, student, teacher, rng, generator),
            groups=int(equal.sum()),
            resample=resample - 1,
            show_context=show_context,
        )
        kept = (~equal).repeat_interleave(G).nonzero()[:, 0]
        batch = batch.take(kept).join(extra, task.pad_id)
    return batch


def write(
    config, task, author: GPT | Teacher, prompts: Prompts, rows: slice, generator, temperature=None
) -> Completions:
    """Completions by the author of some rows of the prompts."""
    ids, pad_count = prompts.ids[rows], prompts.pad_count[rows]
    shape, own = (len(ids), config.max_new_tokens), own_rows(len(ids), ids.device)
    uniforms = torch.rand(shape, generator=generator, device=ids.device)
    with precision(config, ids.device), gathered(author):
        written = minisd.sample(
            *(author, ids[own], pad_count[own]),
            max_new_tokens=config.max_new_tokens,
            end_id=task.end_ids,
            pad_id=task.pad_id,
            temperature=temperature or config.temperature,
            uniforms=uniforms[own],
        )
    return from_all(written, len(ids), task.pad_id)


def seeded(name: str, device: torch.device) -> torch.Generator:
    """A generator of its own for every use that has a name of its own."""
    return torch.Generator(device).manual_seed(zlib.crc32(name.encode()))


def pick_siblings(
    texts: list[str], grades: list, group_size: int, rng: random.Random
) -> list[str | None]:
    """For each completion another, successful one of its group, at random; None without one."""
    siblings = []
    for i in range(len(texts)):
        first = i - i % group_size
        group = [j for j in range(first, first + group_size) if j != i and grades[j].reward == 1]
        siblings.append(texts[rng.choice(group)] if group else None)
    return siblings


# 4. The loss of a batch ---------------------------------------------------------------------------


def position_terms(
    config: TrainConfig,
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    ids: Tensor,
    *,
    logged: bool = True,
):
    """What the loss and, if logged, the log need per position, (B, T) each; see `minisd.score`.

    Only terms of the loss have a gradient path: autograd would keep the logits of one that is not
    used, of every chunk, until the backward pass ends.
    """
    detached, distils = student_logits.detach(), config.reward_weight < 1
    on_tokens = config.loss in ("imitation", "sampled_token", "averaged_advantage")
    takes_tokens = on_tokens or config.loss == "sequence_kl"
    policy = config.reward_weight > 0 or config.kl_coef > 0
    by_token = student_logits if policy or takes_tokens else detached
    compared = student_logits if distils and not on_tokens else detached
    terms = {"student_log_probs": minisd.token_log_probs(by_token, ids)}
    if logged:
        terms["student_entropy"] = minisd.entropy(detached)
    if teacher_logits is not None:
        terms["teacher_log_probs"] = minisd.token_log_probs(teacher_logits, ids)
        if logged:
            terms |= minisd.comparison_metrics(student_logits, teacher_logits)
        terms["divergence"] = divergence(config, compared, teacher_logits)
    return terms


def divergence(config: TrainConfig, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The divergence (B, T) that --loss names; for losses on sampled tokens only a reading."""
    match config.loss:
        case "forward_kl":
            return minisd.forward_kl(student_logits, teacher_logits)
        case "jensen_shannon":
            return minisd.jensen_shannon(student_logits, teacher_logits, config.teacher_weight)
        case "clipped_forward_kl":
            return minisd.clipped_forward_kl(student_logits, teacher_logits, config.clip)
        case "top_k_reverse_kl":
            return minisd.top_k_reverse_kl(
                *(student_logits, teacher_logits, config.top_k),
                support=config.top_k_support,
                tail=config.top_k_tail,
            )
    return minisd.reverse_kl(student_logits, teacher_logits)


def distillation_values(config: TrainConfig, terms: dict[str, Tensor], mask: Tensor) -> Tensor:
    """The distillation loss (B, T) before any mean, from the terms of `position_terms`."""
    student = terms["student_log_probs"]
    match config.loss:
        case "imitation":
            return -student
        case "sampled_token":
            return minisd.sampled_token_surrogate(student, terms["teacher_log_probs"])
        case "averaged_advantage":
            return minisd.averaged_advantage_surrogate(student, terms["teacher_log_probs"], mask)
        case "sequence_kl":
            return minisd.sequence_level_surrogate(
                terms["divergence"], student, mask, config.discount
            )
    return terms["divergence"]


def loss_weights(config: TrainConfig, batch: Batch) -> dict[str, Tensor]:
    """What the loss of a row takes from the other rows: weights in the means, advantages.

    Rows of these tensors make micro-batches exact: their losses add up to that of the batch.
    """
    mask = batch.completions.mask
    use = mask & batch.has_context[:, None]
    if config.only_correct:
        use = use & (batch.rewards == 1)[:, None]
    use = use & minisd.token_part(mask, config.token_share, config.token_part)
    mean = partial(
        minisd.token_weights, reduction=config.reduction, max_tokens=config.max_new_tokens
    )
    weights = {"logged": minisd.token_weights(mask, "token_mean")}  # (B, T) each
    weights |= {"distillation": mean(use), "policy": mean(mask)}
    if config.reward_weight > 0:
        rewards = batch.rewards.view(-1, config.group_size)  # (P, G)
        advantages = minisd.group_advantages(rewards, normalise=config.advantage)
        weights["advantages"] = advantages.flatten()  # (B,)
    return weights


def batch_loss(
    config: TrainConfig,
    student: GPT,
    teacher: Teacher,
    reference: GPT | None,
    batch: Batch,
    weights: dict[str, Tensor] | None = None,
    logged: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch with its gradient, and what is logged of it (0-dim, detached).

    weights: for a part of a batch, its rows of `loss_weights` of the whole. logged False: the loss
    alone, without the readings, for which a policy gradient would run a teacher that it never uses.
    """
    completions, w = batch.completions, config.reward_weight
    mask = completions.mask
    weights = loss_weights(config, batch) if weights is None else weights
    score = partial(minisd.score, chunk_tokens=config.chunk_tokens)
    terms = score(
        *(student, batch.prompts, completions),
        partial(position_terms, config, logged=logged),
        teacher=teacher if logged or w < 1 else None,
        teacher_prompts=batch.teacher_prompts,
    )
    loss = torch.zeros((), device=mask.device)
    if w < 1:
        values = distillation_values(config, terms, mask)
        if config.importance_cap:
            values = values * minisd.truncated_importance_weight(
                terms["student_log_probs"], completions.token_log_probs, config.importance_cap
            )
        loss = loss + (1 - w) * minisd.weighted_sum(values, weights["distillation"])
    if w > 0:
        values = minisd.clipped_policy_surrogate(
            *(terms["student_log_probs"], completions.token_log_probs, weights["advantages"]),
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        loss = loss + w * minisd.weighted_sum(values, weights["policy"])
    if config.kl_coef:
        with torch.no_grad():
            initial = score(reference, batch.prompts, completions, reference_terms)
        penalty = minisd.k3_kl(terms["student_log_probs"], initial["reference_log_probs"])
        loss = loss + config.kl_coef * minisd.weighted_sum(penalty, weights["policy"])
    names = ("forward_kl", "reverse_kl", "student_entropy", "teacher_entropy", "top_k_overlap")
    names = names if logged else ()
    means = {name: minisd.weighted_sum(terms[name].detach(), weights["logged"]) for name in names}
    return loss, means


def backward(
    config: TrainConfig,
    student: GPT,
    teacher: Teacher,
    reference: GPT | None,
    batch: Batch,
    weights: dict[str, Tensor] | None = None,
    *,
    logged: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`batch_loss`, detached, its gradient added to the student's, --micro_batch rows at a time."""
    weights, parts = loss_weights(config, batch) if weights is None else weights, []
    device = batch.rewards.device
    own = own_rows(len(batch.texts), device)
    for rows in own.split(config.micro_batch or len(own)):
        part = {name: value[rows] for name, value in weights.items()}
        with precision(config, device):
            loss, means = batch_loss(
                *(config, student, teacher, reference, batch.take(rows)),
                weights=part,
                logged=logged,
            )
        # The mean over the processes, which `spread` makes of gradients, must be their sum.
        (processes() * loss).backward()
        parts.append({"loss": loss.detach()} | means)
    release(teacher, reference)
    total = over_processes({name: sum(part[name] for part in parts) for name in parts[0]})
    return total.pop("loss"), total


def reference_terms(logits: Tensor, _: None, ids: Tensor) -> dict[str, Tensor]:
    return {"reference_log_probs": minisd.token_log_probs(logits, ids)}


# 5. Evaluation ------------------------------------------------------------------------------------

MEASURES = {  # measured quantity: title of its picture, heading of its column
    "accuracy_frac": ("accuracy (fraction)", "accuracy"),
    "markers_per_completion": ("epistemic markers per completion", "markers"),
    "direct_frac": ("share of direct answers (fraction)", "direct"),
    "completion_tokens": ("completion length (tokens)", "tokens"),
    "remark_frac": ("share with the closing remark (fraction)", "remark"),
}
SHOWN = tuple(MEASURES)[:4]  # in tables and pictures


@dataclass
class Evaluation:
    """Means over the completions of one split, and the completions themselves."""

    means: dict[str, float]
    examples: list[Example] | list[TextExample]
    texts: list[str]
    rewards: list[float]


def evaluation_examples(config: TrainConfig, task: Task, split: str) -> tuple[list, random.Random]:
    """The examples of a split, always the same, and the generator that drew them."""
    rng = random.Random(f"evaluation-{split}-{config.seed}")
    return task.evaluation(split, config.eval_problems, rng), rng


def evaluate(
    config: TrainConfig,
    task: Task,
    model: GPT | Teacher,
    split: str,
    *,
    context: str = "none",
    attempts: list[str] | None = None,
) -> Evaluation:
    """One completion for each of `eval_problems` examples, the same ones at every call.

    context, attempts: what is shown before the prompt, to measure a teacher as it teaches.
    """
    examples, rng = evaluation_examples(config, task, split)
    attempts = attempts or [task.reference(e, rng) for e in examples]
    contexts = [task.context(e, context, rng, a) for e, a in zip(examples, attempts)]
    device = next(model.parts()[0][0].parameters()).device
    prompts = make_prompts(task, examples, contexts, device)
    generator = seeded(f"evaluation-{split}-{config.seed}", device)
    completions = write(config, task, model, prompts, slice(None), generator, temperature=1.0)
    texts = [task.decode(row) for row in completions.ids.tolist()]
    grades = [task.grade(text, e) for text, e in zip(texts, examples)]
    columns = {
        "accuracy_frac": [g.reward for g in grades],
        "markers_per_completion": [g.markers for g in grades],
        "direct_frac": [g.direct for g in grades],
        "completion_tokens": completions.mask.sum(1).tolist(),
        "remark_frac": [g.remark for g in grades],
    }
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    return Evaluation(means, examples, texts, columns["accuracy_frac"])


def evaluate_all(config: TrainConfig, task: Task, student: GPT, teacher: Teacher) -> dict:
    """Evaluation of the student on every split, and of the teacher, with its context, on train."""
    results = {split: evaluate(config, task, student, split) for split in task.splits}
    results["teacher"] = evaluate_teacher(config, task, teacher, results["train"].texts)
    return results


def evaluate_teacher(
    config: TrainConfig, task: Task, teacher: Teacher, attempts: list[str]
) -> Evaluation:
    """The teacher with its context on train; the attempts are what feedback is given on."""
    given = attempts if config.context == "feedback" else None
    return evaluate(config, task, teacher, "train", context=config.context, attempts=given)


# 6. Training --------------------------------------------------------------------------------------

COLUMNS = {  # logged quantity: heading and format of its column
    "step": ("step", "{:>5.0f}"),
    "loss": ("loss", "{:>8.4f}"),
    "reward": ("reward", "{:>7.3f}"),
    "forward_kl": ("KL(t||s)", "{:>9.4f}"),
    "reverse_kl": ("KL(s||t)", "{:>9.4f}"),
    "student_entropy": ("H stud", "{:>7.3f}"),
    "teacher_entropy": ("H teach", "{:>8.3f}"),
    "top_k_overlap": ("overlap", "{:>8.3f}"),
    "grad_norm": ("|grad|", "{:>7.3f}"),
    "completion_tokens": ("tokens", "{:>7.1f}"),
    "equal_groups_frac": ("equal", "{:>6.2f}"),
    "tokens_per_s": ("tok/s", "{:>7.0f}"),
    "step_ms": ("ms", "{:>5.0f}"),
}
HEADER = "".join(heading.rjust(len(form.format(0))) for heading, form in COLUMNS.values())
UNITS = "KL and entropy H in nats per token; reward, overlap and equal-reward groups as fractions"


class Log:
    """metrics.jsonl, the lines on the terminal, and warnings that are given once."""

    def __init__(self, folder: Path | None, quiet: bool, rows: list[dict]):
        self.file, self.quiet = folder and folder / "metrics.jsonl", quiet
        self.warned, self.lines = set(), 0
        self.rows = rows  # those of a resumed run up to its checkpoint; the file may have more
        if self.file:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomically(self.file, lambda p: p.write_text(text))

    def write(self, kind: str, row: dict) -> None:
        self.rows.append({"kind": kind, **row})
        if self.file:
            with self.file.open("a") as f:
                f.write(json.dumps(self.rows[-1]) + "\n")

    def step(self, row: dict[str, float]) -> None:
        if row.keys() != COLUMNS.keys():
            raise RuntimeError(f"columns changed: {row.keys() ^ COLUMNS.keys()}")
        self.write("step", row)
        if self.lines % 15 == 0:
            self.say(HEADER)
        self.lines += 1
        self.say("".join(form.format(row[name]) for name, (_, form) in COLUMNS.items()))

    def say(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text)

    def warn(self, text: str) -> None:
        if self.file and text not in self.warned:
            self.warned.add(text)
            tqdm.write(f"warning: {text}", file=sys.stderr)


@dataclass
class TrainState:
    """All that a step changes or depends on: with it, training goes on bit for bit on a CPU."""

    stage: str
    student: GPT
    teacher: Teacher
    reference: GPT | None
    optimizer: torch.optim.Optimizer
    rng: random.Random
    generator: torch.Generator
    step: int = 0  # the last one that is done

    def models(self) -> dict[str, GPT]:
        """Every model with weights of its own."""
        models = {"student": self.student, "teacher": self.teacher.model}
        if self.teacher.kind == "live":
            del models["teacher"]
        return models | ({"reference": self.reference} if self.reference else {})

    def state_dict(self) -> dict:
        """Tensors, numbers and strings only, so that it is read without unpickling objects."""
        return {
            "models": {n: full_state(model.state_dict()) for n, model in self.models().items()},
            "optimizer": full_state(self.optimizer.state_dict()),
            "rng": self.rng.getstate(),
            "generator": self.generator.get_state(),
            "step": self.step,
        }

    def load_state_dict(self, saved: dict) -> None:
        """Takes `saved` apart, so that its memory is free. Raises ValueError if it does not fit."""
        try:
            for name, model in self.models().items():
                load_full_state(model, saved["models"].pop(name))
            load_full_optimizer(self.optimizer, self.student, saved.pop("optimizer"))
            self.rng.setstate(saved["rng"])
            self.generator.set_state(saved["generator"])
            self.step = int(saved["step"])
        except (RuntimeError, KeyError, TypeError, ValueError):
            raise ValueError("--resume: the checkpoint does not fit this version") from None


def post_train(
    config: TrainConfig,
    task: Task,
    student: GPT,
    teacher: Teacher,
    log: Log | None = None,
    *,
    on_evaluation=None,
    on_step=None,
    saved: dict | None = None,
    show_context: bool = False,
    stage: str = "post-training",
) -> None:
    """Trains the student in place up to step config.steps; `log` None: silently.

    on_step(TrainState) is called after every step; saved: a state_dict of one, to go on from there.
    Raises NonFiniteError, and leaves the weights as they were, if loss or gradient is not finite.
    """
    device = next(student.parameters()).device
    rng = random.Random(f"{stage}-{config.seed}")
    generator = seeded(f"{stage}-{config.seed}", device)
    reference = copied(config, student).requires_grad_(False) if config.kl_coef else None
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    state = TrainState(stage, student, teacher, reference, optimizer, rng, generator)
    if saved:
        state.load_state_dict(saved)
    for step in progress(range(state.step + 1, config.steps + 1), stage):
        start, logged = time.perf_counter(), bool(log) and (step % LOG_EVERY == 0 or step == 1)
        # 1-4. Draw problems, roll out, grade, build the teacher's prompts.
        batch = collect(
            *(config, task, student, teacher, rng, generator),
            groups=config.batch_size // config.group_size,
            resample=config.resample,
            show_context=show_context,
        )
        for _ in range(config.updates_per_batch):
            # 5. Loss. 6. Clip and step.
            loss, norm, metrics = update(config, state, batch, logged)
        # 7. Update the teacher.
        teacher.update(step)
        # 8. Log.
        if logged:
            seconds, tokens = time.perf_counter() - start, int(batch.completions.mask.sum())
            row = {name: value.item() for name, value in metrics.items()}
            row |= {"step": step, "loss": loss.item(), "grad_norm": norm.item()}
            row |= {"reward": batch.rewards.mean().item(), "equal_groups_frac": batch.equal_groups}
            row |= {"completion_tokens": tokens / len(batch.texts)}
            row |= {"tokens_per_s": tokens / seconds, "step_ms": 1000 * seconds}
            log.step({name: row[name] for name in COLUMNS})
            warn_of_flat_signals(config, batch, row, log)
        # 9. Evaluate.
        if on_evaluation and (step % config.eval_every == 0 or step == config.steps):
            on_evaluation(step)
        # 10. Save.
        state.step = step
        if on_step:
            on_step(state)


LOG_EVERY = 5  # steps


def update(
    config: TrainConfig, state: TrainState, batch: Batch, logged: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One step of the optimiser: the loss, the norm of its gradient, and what is logged.

    Raises NonFiniteError, and leaves the weights as they were, if loss or norm is not finite.
    """
    try:
        models = (state.student, state.teacher, state.reference)
        loss, metrics = backward(config, *models, batch, logged=logged)
        norm = clipped_norm(config, state.student, loss)
    except NonFiniteError as error:
        rows = guilty_rows(config, state, batch)
        raise NonFiniteError(f"{state.stage}, step {state.step + 1}: {error}; {rows}") from None
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return loss, norm, metrics


def clipped_norm(config: TrainConfig, student: GPT, loss: Tensor) -> Tensor:
    """The norm of the gradient, which is clipped. Raises NonFiniteError, also for the loss."""
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), config.grad_clip)
    if not (loss + norm).isfinite():  # one synchronisation with the device, not two
        what, value = ("gradient norm", norm) if loss.isfinite() else ("loss", loss)
        raise NonFiniteError(f"{what} {value.item()}")
    return norm


def guilty_rows(config: TrainConfig, state: TrainState, batch: Batch) -> str:
    """Which rows of the batch have no finite loss or gradient of their own, in words."""
    if processes() > 1:  # those whose own rows are finite would not take part, and wait for ever
        return "to see in which rows, go on in one process"
    weights, guilty = loss_weights(config, batch), []
    for i, row in enumerate(torch.arange(len(batch.texts), device=batch.rewards.device).split(1)):
        state.optimizer.zero_grad(set_to_none=True)
        part = {name: value[row] for name, value in weights.items()}
        models = (state.student, state.teacher, state.reference)
        try:
            loss, _ = backward(config, *models, batch.take(row), part)
            clipped_norm(config, state.student, loss)
        except NonFiniteError:
            guilty.append(i)
    if not guilty:
        return "in no single row of the batch, only in their sum"
    more = f" and {len(guilty) - 3} more" if len(guilty) > 3 else ""
    first = brief(batch.examples[guilty[0]].prompt, 40)
    return f"in rows {', '.join(map(str, guilty[:3]))}{more} of the batch, the first {first!r}"


def warn_of_flat_signals(config: TrainConfig, batch: Batch, row: dict, log: Log) -> None:
    """Says once, in words, that a part of the learning is silently off."""
    equal = minisd.equal_reward_groups(batch.rewards.view(-1, config.group_size))
    if config.reward_weight > 0 and equal.all():
        log.warn("all rewards are equal within every group: the policy gradient is zero")
    if config.reward_weight < 1 and not batch.has_context.any():
        log.warn("no completion of a batch has a privileged context: nothing to distil")
    if row["grad_norm"] == 0:
        log.warn("the gradient is zero: nothing is learned")
    if config.teacher in ("ema", "trust_region") and config.teacher_update_rate == 0:
        log.warn(f"--teacher_update_rate 0: the {config.teacher} teacher never moves")
    if config.teacher == "snapshot" and config.teacher_every > config.steps:
        log.warn(f"--teacher_every {config.teacher_every}: no snapshot is taken in so few steps")


def make_teacher(
    config: TrainConfig, task: Task, student: GPT, shape: dict | None = None
) -> Teacher:
    """The teacher of a run; an external one is a base model, another run's student, or adapted.

    shape: that of the model in a checkpoint, from which the weights are about to be read.
    """
    external = None
    if shape and config.teacher == "external":
        external = spread(config, GPT(GPTConfig(**shape)).to(loading_device(config)))
    elif config.teacher == "external" and config.external_teacher in EXTERNAL_BASES:
        external = spread(config, on_first(lambda: base_model(*external_base(config)))[0])
    elif config.teacher == "external" and config.external_teacher != "adapted":
        external = spread(config, load_student(config, Path(config.external_teacher), student))
    elif config.teacher == "external":
        external = copied(config, student)
        settings = ADAPTING | {"steps": config.adapt_steps, "teacher": "live"}
        adapting = dataclasses.replace(config, **settings)
        live = Teacher("live", external)  # without a second copy: rewards alone teach here
        post_train(adapting, task, external, live, show_context=True, stage="adapting the teacher")
    return Teacher(
        *(config.teacher, student),
        update_rate=config.teacher_update_rate,
        every=config.teacher_every,
        external=external,
        copied=partial(copied, config),
    )


def external_base(config: TrainConfig) -> tuple[TrainConfig, str]:
    """Configuration and size of the base model that --external_teacher names, one for all seeds."""
    size, change = EXTERNAL_BASES[config.external_teacher]
    world = ",".join(filter(None, (config.world, change)))
    return dataclasses.replace(config, world=world, seed=EXTERNAL_SEED), size


def bases_of(config: TrainConfig) -> list[tuple[TrainConfig, str]]:
    """Configurations and sizes of the base models that a run in the toy starts from."""
    external = config.teacher == "external" and config.external_teacher in EXTERNAL_BASES
    return [(config, "base"), *([external_base(config)] if external else [])]


def load_student(config: TrainConfig, folder: Path, student: GPT) -> GPT:
    """The trained model of a run's folder; with --init, any checkpoint of the same vocabulary."""
    device, flag = loading_device(config), f"--external_teacher: {str(folder)!r}"
    if config.init:
        model, _ = minisd.load_hf(str(folder), device=device)
    else:
        try:
            saved = torch.load(folder / "student.pt", map_location=device, weights_only=True)
            model = GPT(GPTConfig(**saved["shape"])).to(device)
            model.load_state_dict(saved["weights"])
        except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
            raise ValueError(f"{flag}; allowed: {EXTERNAL_TEACHERS}") from None
    if model.config.vocab_size != student.config.vocab_size:
        raise ValueError(
            f"{flag} has another vocabulary; allowed: {student.config.vocab_size} tokens"
        )
    return model


def warm_start(config: TrainConfig, task: Task, student: GPT) -> None:
    """Supervised training on correct samples of the external base model that will be the teacher,
    else of the initial model with the context."""
    settings = SUPERVISED | {"steps": config.warm_start_steps, "context": config.context}
    if config.teacher == "external" and config.external_teacher in EXTERNAL_BASES:
        settings |= {"teacher": "external"}
    settings |= dict.fromkeys(("reward_weight", "importance_cap", "kl_coef", "resample"), 0)
    supervised = dataclasses.replace(config, **settings, warm_start_steps=0)
    author = make_teacher(supervised, task, student)
    post_train(supervised, task, student, author, stage="warm start")


def start_up_checks(config: TrainConfig, task: Task, student: GPT) -> list[tuple[str, bool, str]]:
    """(what, passed, reading) of checks that take a moment and catch most broken set-ups."""
    rng, device = random.Random(0), next(student.parameters()).device
    tokens = min(config.max_new_tokens, PROBE_TOKENS)
    probe = dataclasses.replace(config, max_new_tokens=tokens)
    teacher = Teacher("live", student)
    batch = collect(
        *(probe, task, student, teacher, rng, torch.Generator(device).manual_seed(0)), groups=4
    )
    with torch.no_grad(), precision(config, device):
        terms = minisd.score(
            *(student, batch.prompts, batch.completions, partial(position_terms, config)),
            teacher=teacher,
            teacher_prompts=batch.prompts,
            chunk_tokens=config.chunk_tokens,
        )
    release(student)
    own = terms["student_log_probs"] - batch.completions.token_log_probs
    kl = terms["reverse_kl"].abs().max().item()
    ratios = own.exp()[batch.completions.mask].sub(1).abs()
    # In bfloat16 sampling rounds otherwise than scoring, since it goes token by token.
    exact = config.dtype == "float32"
    ratio, limit = (ratios.max().item(), 1e-3) if exact else (ratios.mean().item(), 0.1)
    graded = [task.grade(task.reference(e, rng), e).reward for e in batch.examples]
    prompts = zip(batch.prompts.ids.tolist(), batch.prompts.pad_count.tolist())
    seen = [row[padding:] for row, padding in prompts]
    leaks = sum(ids != task.prompt_ids(e) for ids, e in zip(seen, batch.examples))
    checks = [
        ("KL of the student to itself is 0", kl < 1e-4, f"{kl:.1e} nats"),
        (
            "every reference answer scores 1",
            min(graded) == 1,
            f"{sum(graded):.0f} of {len(graded)}",
        ),
        ("no privileged token in a student prompt", leaks == 0, f"{leaks} of {len(seen)} prompts"),
    ]
    if config.student_frac == 1:
        checks.append(("first importance ratio is 1", ratio < limit, f"off by {ratio:.1e}"))
    if config.init:  # a second, untrained model of that size would fill the memory for nothing
        return checks
    fresh = GPT(student.config, torch.Generator().manual_seed(0)).to(device)
    ids = batch.prompts.ids
    loss = torch.nn.functional.cross_entropy(fresh(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    log_v = math.log(student.config.vocab_size)
    passed, reading = abs(loss - log_v) < 0.1 * log_v, f"{loss:.2f} of {log_v:.2f} nats"
    return [("loss of an untrained model is log V", passed, reading), *checks]


PROBE_TOKENS = 64  # of a completion in the start-up checks: enough to see a shift by one


# 7. One run: set up, train, write everything down -------------------------------------------------


def run(config: TrainConfig, quiet: bool = False, resume: bool = False) -> dict:
    """Trains by one method and writes the run's folder; returns its summary.

    A folder that already holds the results of the same settings is left alone and read instead.
    Raises ValueError if the folder is anything else than empty or a run of the same settings, if
    that run is unfinished and `resume` false, or if another process is at work in it.
    """
    folder = config.folder
    if finished := on_first(lambda: finished_run(folder, config, resume)):
        return finished
    with contextlib.ExitStack() as held:
        on_first(lambda: held.enter_context(alone_in(folder)))
        if (folder / "summary.json").exists():  # written by another process since
            return read_summary(folder)
        return train(config, quiet)


def train(config: TrainConfig, quiet: bool) -> dict:
    """The run itself: from its last checkpoint if the folder has one, else from the start."""
    folder, start = config.folder, time.perf_counter()
    if config.threads:
        torch.set_num_threads(config.threads)
    make_deterministic(config.deterministic)
    task = None if config.data else make_task(config)  # its errors come before the pretraining
    if not config.init:
        on_first(lambda: claim_folder(folder, config))
    student, tokenizer, pretrain_s = initial_model(config)
    task = task or make_task(config, tokenizer, student.config)
    if config.init:
        check_fit(config, task, student.config.context_window)
        on_first(lambda: claim_folder(folder, config))
    saved = last_checkpoint(config)
    log = Log(folder if is_first() else None, quiet, saved["rows"] if saved else [])
    evaluations: dict[int, dict[str, Evaluation]] = {}
    if saved:
        teacher = make_teacher(config, task, student, saved["teacher_shape"])
        before, evaluations = unpack_evaluations(config, task, saved)
        start -= saved["wall_s"]
        warn_of_changes(folder, config, log)
        log.say(f"going on after step {saved['training']['step']}")
    else:
        for what, passed, reading in start_up_checks(config, task, student):
            log.say(f"{'ok  ' if passed else 'FAIL'} {what} ({reading})")
            if not passed:
                raise ValueError(f"start-up check failed: {what} ({reading})")
        before = evaluate_all(config, task, student, Teacher("live", student))  # before anything
        if config.warm_start_steps:
            warm_start(config, task, student)
        teacher = make_teacher(config, task, student)

    def on_evaluation(step: int) -> None:
        results = evaluations[step] = evaluate_all(config, task, student, teacher)
        log.write("evaluation", {"step": step} | {k: e.means for k, e in results.items()})
        for example, text in failures(results["fresh"], task):
            log.say(f"    wrong: {brief(example.prompt + text)}   (expected {example.answer})")

    def on_step(state: TrainState) -> None:
        regular = config.save_every and state.step % config.save_every == 0
        stop = largest(received[0] if received else 0)
        if regular or stop:
            content = {
                **{"settings": run_settings(config), "training": state.state_dict()},
                **{"teacher_shape": dataclasses.asdict(teacher.model.config), "rows": log.rows},
                "before": plain(before),
                "evaluations": {i: plain(evaluations[i]) for i in (0, max(evaluations))},
                "train_s": time.perf_counter() - train_start,
                "wall_s": time.perf_counter() - start,
            }
            on_first(lambda: save_checkpoint(folder, state.step, content))
        if stop:
            raise Interrupted(stop, f" after step {state.step}, which is saved")

    if not saved:
        on_evaluation(0)
    train_start = time.perf_counter() - (saved["train_s"] if saved else 0)
    with deferred_signals() as received:
        post_train(
            *(config, task, student, teacher, log),
            on_evaluation=on_evaluation,
            on_step=on_step,
            saved=saved["training"] if saved else None,
        )
    train_s = time.perf_counter() - train_start
    trained = whole(student)
    on_first(lambda: save(config, trained, tokenizer))
    after = evaluations[max(evaluations)]
    summary = {
        **{"method": config.method, "seed": config.seed, "steps": config.steps},
        **{"pretrain_s": pretrain_s, "train_s": train_s},
        "before": {split: before[split].means for split in task.splits},
        "after": {split: after[split].means for split in task.splits},
        "teacher_accuracy_frac": {
            "unadapted": before["teacher"].means["accuracy_frac"],
            "before": evaluations[0]["teacher"].means["accuracy_frac"],
            "after": after["teacher"].means["accuracy_frac"],
        },
        "samples": samples(before, after),
    }
    log.say("drawing the curves")
    on_first(lambda: draw_curves(folder / "curves.png", config, log.rows, summary))
    summary["wall_s"] = time.perf_counter() - start
    on_first(lambda: write_json(folder / "summary.json", summary))
    return summary


def save(config: TrainConfig, student: GPT, tokenizer: Any) -> None:
    """The trained weights: a checkpoint for other tools, or student.pt in the toy."""
    if config.init:
        student.to(getattr(torch, config.dtype))
        minisd.save_hf(student, tokenizer, config.folder / "checkpoint")
        return
    content = {"weights": student.state_dict(), "shape": dataclasses.asdict(student.config)}
    save_tensors(config.folder / "student.pt", content)


def make_task(config: TrainConfig, tokenizer: Any = None, shape: GPTConfig | None = None) -> Task:
    """What is trained and evaluated on: --data with the checkpoint's tokenizer, or the toy."""
    if config.data:
        return TextTask(
            toy_tasks.read_jsonl(config.data),
            tokenizer,
            reward=config.reward,
            pool_size=config.train_problems,
            end_ids=minisd.hf_end_ids(shape, tokenizer) if shape else (),
        )
    return ToyTask(
        config.toy_world,
        pool_size=config.train_problems,
        operators=config.train_operators,
        operations=config.train_operations,
        rules=config.rule_numbers,
        seed=config.seed,
    )


def check_fit(config: TrainConfig, task: TextTask, context_window: int) -> None:
    """Raises ValueError if an example lacks what --context shows, or is too long with it."""
    rng = random.Random(0)
    attempt_tokens = config.max_new_tokens if config.context == "sibling" else 0
    for example in (e for pool in task.pools.values() for e in pool):
        context = task.context(example, config.context, rng, attempt=" ")
        prompt = max(len(task.prompt_ids(example, c)) for c in ("", context))
        tokens = prompt + attempt_tokens + config.max_new_tokens
        if tokens > context_window:
            raise ValueError(
                f"--max_new_tokens: {config.max_new_tokens} makes {tokens} tokens with the prompt "
                f"{example.prompt[:40]!r}; allowed: {context_window}, the model's context window"
            )


def run_settings(config: TrainConfig) -> dict:
    """What two runs must have in common to be the same run."""
    settings = dataclasses.asdict(config)
    return {k: v for k, v in settings.items() if k not in ("out_dir", "save_every")}


def with_younger_options(found: dict) -> dict:
    """Settings that were written earlier; an option that did not exist then had its default."""
    return {f.name: f.default for f in dataclasses.fields(TrainConfig)} | found


def finished_run(folder: Path, config: TrainConfig, resume: bool = False) -> dict | None:
    """The summary of this very run, if it has finished in the folder. Changes nothing.

    Raises ValueError if the path is a file, or holds something else than a run of these settings,
    or such a run that is unfinished, unless it is to be resumed.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out_dir: {str(folder)!r} is a file; allowed: a folder, or a new name")
    settings = run_settings(config)
    if folder.is_dir() and not all(map(is_temporary, folder.iterdir())):
        try:
            found = dict(json.loads((folder / "config.json").read_text())["settings"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"--out_dir: {str(folder)!r} holds other files; allowed: an empty or new folder"
            ) from None
        found = with_younger_options(found)
        differing = [k for k in settings if found[k] != settings[k]]
        if differing:
            name = differing[0]
            what = "a" if (folder / "summary.json").exists() else "an unfinished"
            raise ValueError(
                f"--out_dir: {str(folder)!r} holds {what} run with --{name} {found.get(name)!r} "
                f"instead of {settings[name]!r}; allowed: the same settings or another folder"
            )
        if (folder / "summary.json").exists():
            return read_summary(folder)
        with alone_in(folder):  # raises if that run is at work at this moment
            pass
        if not resume:
            raise ValueError(
                f"--out_dir: {str(folder)!r} holds this run, unfinished; to go on: "
                f"{resume_command(folder)}; to start over, delete that folder"
            )
    return None


def read_summary(folder: Path) -> dict:
    """The results of a finished run. Raises ValueError if the file is damaged."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        before_after_table(summary)  # it looks at all that others will
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"--out_dir: {str(path)!r} is damaged; allowed: another folder") from None
    return summary


def claim_folder(folder: Path, config: TrainConfig) -> None:
    """Removes what a killed process was writing; without checkpoints, writes config.json."""
    for path in (*folder.iterdir(), *(folder / "checkpoints").glob("*")):
        if is_temporary(path):
            path.unlink()
    if not (folder / "checkpoints").exists():
        content = {"settings": dataclasses.asdict(config), "record": record(config)}
        write_json(folder / "config.json", content)


def record(config: TrainConfig) -> dict:
    """What a reader needs to repeat a run: code version, packages and machine."""
    folder, commit = Path(__file__).parent, ""
    with contextlib.suppress(OSError):  # without git it is unknown
        asked = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, cwd=folder).stdout.strip()
    device = pick_device(config.device)
    return {
        "git_commit": commit or "unknown",
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": processes(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def warn_of_changes(folder: Path, config: TrainConfig, log: Log) -> None:
    """Says what is not as it was when the run began, since then its numbers will not be either."""
    then, now = json.loads((folder / "config.json").read_text())["record"], record(config)
    changed = [name for name in now if then.get(name) != now[name] and name != "git_commit"]
    if changed:
        log.warn(f"not as when this run began, so not bit for bit: {', '.join(changed)}")


def make_deterministic(on: bool) -> None:
    """Only operations that give the same bits every time, or none of this."""
    if on != torch.are_deterministic_algorithms_enabled():  # the call imports a compiler
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    if on:
        torch.backends.cudnn.benchmark = False
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS is first used


@contextlib.contextmanager
def alone_in(folder: Path):
    """Locks the folder, which is made if need be. Raises ValueError if another process has.

    The lock is the system's and lies on the folder itself: it ends with the process, however that
    ends, and leaves no file. A folder in which nothing was written is removed again.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out_dir: {str(folder)!r}: {error.strerror}") from None
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(
            f"--out_dir: another process is at work in {str(folder)!r}; allowed: another folder, "
            "or to wait for it"
        ) from None
    except OSError:
        pass  # some network file systems lock no folders; there two runs are not noticed
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()  # fails unless it is empty
        os.close(handle)


def save_checkpoint(folder: Path, step: int, content: dict) -> None:
    """Writes <folder>/checkpoints/step-<step>.pt, and keeps the one before, but no older one."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    save_tensors(folder / "checkpoints" / f"step-{step:08d}.pt", content)
    for old in checkpoint_files(folder)[2:]:
        old.unlink()


def checkpoint_files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"), reverse=True)


def last_checkpoint(config: TrainConfig) -> dict | None:
    """The newest whole checkpoint of the run's folder; None if there is none at all.

    A damaged or foreign one is named and set aside. Raises ValueError if no other one is whole.
    The first process chooses, so that none goes on from another one.
    """
    read = {}

    def choose() -> Path | None:
        refused = []
        for path in checkpoint_files(config.folder):
            try:
                read[path] = read_checkpoint(path, config)
            except ValueError as error:
                refused.append((path, error))
                continue
            for other, error in refused:
                other.rename(other.with_suffix(".refused"))
                print(f"warning: {error}; the one before it is used: {path.name}", file=sys.stderr)
            return path
        if refused:
            raise ValueError(f"--resume: {refused[0][1]}, and no other checkpoint is whole")
        return None

    path = on_first(choose)
    return path and (read.get(path) or read_checkpoint(path, config))


def read_checkpoint(path: Path, config: TrainConfig) -> dict:
    """What `save_checkpoint` wrote. Raises ValueError if it is damaged or of another run."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # the checksums, which torch.load does not look at
                raise EOFError
        # Of several processes, those of one machine share the file's pages in memory.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=processes() > 1)
        found, settings = with_younger_options(saved["settings"]), run_settings(config)
        foreign = any(found[name] != settings[name] for name in settings)
        _ = saved["training"]["step"]
    except UNREADABLE:
        raise ValueError(f"{str(path)!r} is damaged, or no checkpoint") from None
    if foreign:
        raise ValueError(f"{str(path)!r} is a checkpoint of another run")
    return saved


UNREADABLE = (  # what zipfile, torch and a missing key raise at a broken file
    *(OSError, EOFError, KeyError, TypeError, RuntimeError, ValueError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, NotImplementedError),
)


def plain(results: dict[str, Evaluation]) -> dict:
    """Evaluations as dicts of numbers and strings, without their examples; see the next."""
    return {
        k: {"means": e.means, "texts": e.texts, "rewards": e.rewards} for k, e in results.items()
    }


def unpack_evaluations(config: TrainConfig, task: Task, saved: dict) -> tuple[dict, dict]:
    """Those before everything, and those by step, of a checkpoint; their examples drawn again."""
    splits = {split: evaluation_examples(config, task, split)[0] for split in task.splits}
    splits["teacher"] = splits["train"]

    def unpack(results: dict) -> dict[str, Evaluation]:
        return {split: Evaluation(examples=splits[split], **e) for split, e in results.items()}

    return unpack(saved["before"]), {i: unpack(r) for i, r in saved["evaluations"].items()}


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM; args: its number and, in words, what had been reached."""

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.args[0]).name}{''.join(self.args[1:])}"


@contextlib.contextmanager
def handled_signals(handler):
    """SIGINT and SIGTERM go to handler(number, frame) meanwhile."""
    if threading.current_thread() is not threading.main_thread():  # only that one may choose
        yield
        return
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_at_once(number: int, frame) -> None:
    raise Interrupted(number)


@contextlib.contextmanager
def deferred_signals():
    """Yields a list that receives the first signal's number; a second one stops at once.

    Not so in several processes: torchrun passes on what a scheduler may have sent to all already.
    """
    received = []

    def receive(number: int, frame) -> None:
        if received and processes() == 1:
            raise Interrupted(number)
        received.append(number)

    with handled_signals(receive):
        yield received


def code_version() -> str:
    """A hash of the three files, to tell whether results are older than the code."""
    files = (__file__, minisd.__file__, toy_tasks.__file__)
    sources = [Path(name).read_bytes() for name in files]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


def write_json(path: Path, content) -> None:
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=1) + "\n"))


def failures(evaluation: Evaluation, task: Task) -> list[tuple[Example, str]]:
    """Three completions that are wrong."""
    pairs = zip(evaluation.examples, evaluation.texts)
    return [(e, text) for e, text in pairs if task.grade(text, e).reward < 1][:3]


def samples(before: dict, after: dict) -> list[dict[str, str | bool]]:
    """The same three fresh prompts, of rising length, answered before and after."""
    examples = before["fresh"].examples
    lengths = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))
    chosen = [lengths[int(f * (len(lengths) - 1))] for f in (0.3, 0.6, 0.9)]
    runs = (("before", before), ("after", after))
    return [
        {"prompt": examples[i].prompt, "answer": str(examples[i].answer)}
        | {"before": before["fresh"].texts[i], "after": after["fresh"].texts[i]}
        | {f"{w}_right": e["fresh"].rewards[i] == 1 for w, e in runs}
        for i in chosen
    ]


# 8. What a person sees: tables and pictures -------------------------------------------------------


def before_after_table(summary: dict) -> str:
    """The table at the end of a run."""
    lines = [" " * 15 + "".join(MEASURES[name][1].rjust(16) for name in SHOWN)]
    for split, means in summary["before"].items():
        cells = (f"{means[name]:6.2f} -> {summary['after'][split][name]:5.2f}" for name in SHOWN)
        lines.append(f"{split:15}" + "".join(cell.rjust(16) for cell in cells))
    lines.append("accuracy, direct: fractions; markers, tokens: per completion; before -> after")
    return "\n".join(lines)


def in_words(summary: dict) -> str:
    """What the table says, for somebody who sees it for the first time."""
    fresh = {when: summary[when]["fresh"] for when in ("before", "after")}
    change = {name: fresh["after"][name] - fresh["before"][name] for name in fresh["before"]}
    surer = change["markers_per_completion"] < -0.1 and change["direct_frac"] > 0.1
    surer = surer and change["completion_tokens"] < -1
    gained, lost = change["accuracy_frac"] > 0.05, change["accuracy_frac"] < -0.05
    manner = "hesitates less, writes shorter and " if surer else ""
    result = (
        "is more often right" if gained else "is less often right" if lost else "is as often right"
    )
    return (
        f"On fresh problems the model now {manner}{result} "
        f"({fresh['before']['accuracy_frac']:.2f} -> {fresh['after']['accuracy_frac']:.2f})."
    )


def sample_lines(summary: dict) -> str:
    """The prompts answered before and after, with a mark for right and wrong."""
    lines = []
    for s in summary["samples"]:
        lines.append(f"{brief(s['prompt'])} (expected {s['answer']})")
        for when in ("before", "after"):
            verdict = "right" if s[f"{when}_right"] else "WRONG"
            lines.append(f"  {when:6} {verdict}  {brief(s[when])}")
    return "\n".join(lines)


def brief(text: str, length: int = 120) -> str:
    """A text in one line, without its middle if it is long, and without control characters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"


def draw_curves(path: Path, config: TrainConfig, rows: list[dict], summary: dict) -> None:
    """curves.png: what happened over the steps, and three prompts before and after."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    evaluations = [r for r in rows if r["kind"] == "evaluation"]
    steps = [r for r in rows if r["kind"] == "step"]
    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(f"{config.method}, seed {config.seed}: {METHODS[config.method].source}")
    grid = figure.add_gridspec(3, 3, height_ratios=(1, 1, 0.75))
    for i, name in enumerate(SHOWN):
        axes = figure.add_subplot(grid[i // 3, i % 3])
        for split in (*summary["before"], "teacher"):
            label = "teacher with context, train" if split == "teacher" else split
            style = ":" if split == "teacher" else "-"
            values = [e[split][name] for e in evaluations]
            axes.plot([e["step"] for e in evaluations], values, style, marker=".", label=label)
        axes.set(title=MEASURES[name][0], ylim=(0, 1.02 if name.endswith("_frac") else None))
    figure.axes[0].legend(fontsize=8, framealpha=0.6)
    pairs = {
        "divergence on the student's completions (nats per token)": ("forward_kl", "reverse_kl"),
        "entropy (nats per token)": ("student_entropy", "teacher_entropy"),
    }
    words = {"forward_kl": "KL(teacher || student)", "reverse_kl": "KL(student || teacher)"}
    for i, (title, names) in enumerate(pairs.items(), start=4):
        axes = figure.add_subplot(grid[i // 3, i % 3], title=title)
        for name in names:
            label = words.get(name, name.replace("_", " "))
            axes.plot([r["step"] for r in steps], [r[name] for r in steps], label=label)
        axes.set_ylim(0, None)
        axes.legend(fontsize=8)
    for axes in figure.axes:
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    text = figure.add_subplot(grid[2, :])
    text.axis("off")
    # A dollar sign is money, not mathematics.
    options = {"va": "top", "family": "monospace", "fontsize": 9, "parse_math": False}
    text.text(0, 1, sample_lines(summary), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font lacks some of what a model may write
        write_atomically(path, lambda p: figure.savefig(p, dpi=110, format="png"))


# 9. Several methods and seeds ---------------------------------------------------------------------

# 97.5 % quantiles of Student's t for 1..30 degrees of freedom; beyond, the normal one.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def mean_and_interval(values: list[float]) -> dict:
    """Mean and 95 % interval (Student's t) of independent values; that of one value is None."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    quantile = T_QUANTILES[n - 2] if n - 2 < len(T_QUANTILES) else 1.96
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def compare(methods: list[str], flags: dict, seeds: list[int], folder: Path, workers: int) -> dict:
    """Runs every method with every seed and writes compare.json and compare.png.

    Every run has one thread, whatever the number of workers, so that the numbers do not depend on
    it. Base models are pretrained first, one per seed and one per external teacher; `base` is each
    seed's model before training.
    Raises ValueError before anything is run if the folder holds another comparison.
    """
    trained = [m for m in methods if m != "base"]
    asked = {"seeds": seeds, "flags": flags, "compared": methods}
    if found := finished_comparison(folder, asked):
        return found
    configs = {
        (method, seed): method_config(
            flags
            | {"method": method, "seed": seed, "threads": 1}
            | {"out_dir": str(folder / f"{method}-{seed}")}
        )
        for seed in seeds
        for method in trained
    }
    for config in configs.values():
        # Refuses foreign folders before hours are spent; unfinished runs are gone on with.
        finished_run(config.folder, config, resume=True)
    needed = {
        s: {base_path(*b): b for m in trained for b in bases_of(configs[m, s])} for s in seeds
    }
    bases = {path: base for of_seed in needed.values() for path, base in of_seed.items()}
    with worker_pool(workers) as pool:
        # A seed's runs are queued when its base models are there: no core waits for the last.
        pretrained = {path: pool.submit(pretrain_only, base) for path, base in bases.items()}
        runs = {}
        for seed in progress(seeds, "base models"):
            for path in needed[seed]:
                pretrained[path].result()
            for m in trained:
                runs[m, seed] = pool.submit(run, configs[m, seed], quiet=True, resume=True)
        summaries = {key: result_of(runs[key], *key) for key in progress(configs, "runs")}
    table = {}
    for method in methods:
        when = "before" if method == "base" else "after"
        done = [summaries[trained[0] if method == "base" else method, seed] for seed in seeds]
        table[method] = {
            split: {name: over_seeds(done, when, split, name) for name in MEASURES}
            for split in done[0]["before"]
        }
    result = asked | {"methods": table}
    draw_comparison(folder / "compare.png", result)
    write_json(folder / "compare.json", result)
    return result


def finished_comparison(folder: Path, asked: dict) -> dict | None:
    """The result of this very comparison, if the folder has it. Raises ValueError for another."""
    path = folder / "compare.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        differing = [name for name in asked if found[name] != asked[name]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--out_dir: {str(path)!r} is no comparison; allowed: another") from None
    if differing:
        raise ValueError(
            f"--out_dir: {str(folder)!r} holds a comparison of {found['compared']} over seeds "
            f"{found['seeds']} with flags {found['flags']}; allowed: the same or another folder"
        )
    return found


@contextlib.contextmanager
def worker_pool(workers: int):
    """Processes with one thread each. When this one is stopped, they finish a step and stop too."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=start_worker)
    try:
        with handled_signals(stop_at_once):
            yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            process.join(10)  # seconds for what it is at
            process.terminate()
        if isinstance(error, Interrupted):
            raise Interrupted(error.args[0], "; the same command goes on") from None
        raise
    pool.shutdown()


def result_of(future, method: str, seed: int) -> dict:
    """What a run returned. Raises ValueError that says which run failed."""
    try:
        return future.result()
    except ValueError as error:
        raise ValueError(f"{method}, seed {seed}: {error}") from None


def over_seeds(summaries: list[dict], when: str, split: str, name: str) -> dict:
    """Mean and interval of a measure, and of its change since before training, seed by seed."""
    values = [s[when][split][name] for s in summaries]
    changes = [v - s["before"][split][name] for v, s in zip(values, summaries)]
    return mean_and_interval(values) | {"change": mean_and_interval(changes)}


def start_worker() -> None:
    """In worker processes: one thread, and no bars, which would be drawn over the common one."""
    torch.set_num_threads(1)
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)


def pretrain_only(base: tuple[TrainConfig, str]) -> None:
    """A base model into the cache; the weights themselves need not travel between processes."""
    base_model(*base)


def comparison_table(result: dict) -> str:
    """Mean and 95 % interval of every method and split."""
    lines = [" " * 28 + "".join(MEASURES[name][1].rjust(22) for name in SHOWN)]
    for method, splits in result["methods"].items():
        for split, means in splits.items():
            cells = []
            for name in SHOWN:
                m = means[name]
                spread = "" if m["low"] is None else f" [{m['low']:.2f}, {m['high']:.2f}]"
                cells.append(f"{m['mean']:.2f}{spread}".rjust(22))
            lines.append(f"{method:14}{split:14}" + "".join(cells))
    lines.append(f"mean and 95 % interval over {len(result['seeds'])} seeds")
    return "\n".join(lines)


def draw_comparison(path: Path, result: dict) -> None:
    """compare.png: one panel per measure; methods side by side on every split, intervals drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    figure.suptitle(f"mean and 95 % interval over seeds {', '.join(map(str, result['seeds']))}")
    methods, splits = list(result["methods"]), list(next(iter(result["methods"].values())))
    width = 0.8 / len(methods)
    for axes, name in zip(figure.subplots(2, 2).flat, SHOWN):
        for i, method in enumerate(methods):
            values = [result["methods"][method][split][name] for split in splits]
            means = [v["mean"] for v in values]
            half = [0 if v["low"] is None else v["mean"] - v["low"] for v in values]
            x = [j + (i - (len(methods) - 1) / 2) * width for j in range(len(splits))]
            axes.bar(x, means, width * 0.92, yerr=half, capsize=3, label=method)
        axes.set_xticks(range(len(splits)), [f"{s} problems" for s in splits])
        axes.set_title(MEASURES[name][0])
        axes.grid(axis="y", alpha=0.3)
        axes.set_ylim(0, 1.02 if name.endswith("_frac") else None)
    figure.axes[0].legend(ncols=2)
    write_atomically(path, lambda p: figure.savefig(p, dpi=110, format="png"))


# 10. Microscope: one completion, token by token ---------------------------------------------------


@dataclass(frozen=True)
class Inspection:
    """A completion under the microscope; lists have an entry per token, the end token included."""

    prompt: str
    context: str  # what the teacher sees before the prompt
    completion: str
    right: bool
    wrong: int | None  # index of the first token of the first wrong value
    tokens: list[str]
    values: dict[str, list]  # those of `inspection_terms`


def inspection_terms(
    config: TrainConfig, student_logits: Tensor, teacher_logits: Tensor, ids: Tensor
) -> dict[str, Tensor]:
    """`position_terms` and, each (B, T), the advantage of the token: log q - log p, in nats.

    Of both: the probability of the token, and of the unreliable author's remark, and the likeliest
    token (id) with its probability.
    """
    terms = position_terms(config, student_logits, teacher_logits, ids)
    terms["advantage"] = terms["teacher_log_probs"] - terms["student_log_probs"]
    for who, logits in (("student", student_logits), ("teacher", teacher_logits)):
        probs = minisd.log_softmax(logits).exp()
        terms[f"{who}_prob"] = terms[f"{who}_log_probs"].exp()
        terms[f"{who}_remark"] = probs[..., toy_tasks.TOKEN_ID[toy_tasks.REMARK]]
        terms[f"{who}_top_prob"], terms[f"{who}_top"] = probs.max(-1)
    return terms


@torch.no_grad()
def inspect_completion(
    config: TrainConfig, student: GPT, teacher: Teacher, text: str, completion: str = ""
) -> Inspection:
    """Student and teacher on one completion of the problem `text`.

    It begins as given, and the student goes on from there unless that ends with an answer. The
    context feedback is about this very completion; sibling shows one of a reliable author.
    Raises ValueError for a text that is no problem.
    """
    problem, task = toy_tasks.Problem.parse(text), make_task(config)
    name, device = f"inspection-{config.seed}", next(student.parameters()).device
    rng = random.Random(name)
    example = Example(problem, rng.choice(task.rules) if task.rules else 0)
    ids = [*task.encode(completion), task.end_id]
    if toy_tasks.final_answer(completion) is None:
        beginning = minisd.pad_left([task.prompt_ids(example) + ids[:-1]], task.pad_id, device)
        rest = write(config, task, student, Prompts(*beginning), slice(1), seeded(name, device))
        ids[-1:] = rest.ids[0].tolist()
    completion = task.decode(ids)
    attempt = completion if config.context == "feedback" else task.reference(example, rng)
    context = task.context(example, config.context, rng, attempt)
    terms = minisd.score(
        *(student, make_prompts(task, [example], [""], device)),
        Completions.from_rows([ids], task.pad_id, device),
        partial(inspection_terms, config),
        teacher=teacher,
        teacher_prompts=make_prompts(task, [example], [context], device),
    )
    if example.rule:  # one more step, and the answer that counts is the one after it
        problem = toy_tasks.Problem((*problem.digits, example.rule), f"{problem.operators}+")
    words = {"tokens": ids} | {n: terms.pop(n)[0].tolist() for n in ("student_top", "teacher_top")}
    words = {n: [toy_tasks.VOCABULARY[i].strip() for i in row] for n, row in words.items()}
    return Inspection(
        *(example.prompt, context, completion),
        right=task.grade(completion, example).reward == 1,
        wrong=first_wrong_value(problem, completion, task.encode),
        tokens=words.pop("tokens"),
        values={n: value[0].tolist() for n, value in terms.items()} | words,
    )


def first_wrong_value(problem: toy_tasks.Problem, completion: str, encode) -> int | None:
    """Token index of the first wrong step or, behind right steps, of a wrong answer; or None."""
    step, answer = (
        toy_tasks.first_wrong_step(problem, completion),
        toy_tasks.final_answer(completion),
    )
    if step is not None or answer in (None, problem.values[-1]):
        return step
    return len(encode(completion[: completion.rindex(toy_tasks.ANSWER)])) + 1


def inspection_table(x: Inspection) -> str:
    """One row per token, with a rule above the first wrong value."""
    columns = ("student_prob", "teacher_prob", "advantage", "forward_kl", "reverse_kl")
    headings = ("p student", "p teacher", "advantage", "KL(t||s)", "KL(s||t)")
    units = ("fraction", "fraction", "nats", "nats", "nats")
    head, under = ("".join(word.rjust(10) for word in row) for row in (headings, units))
    lines = [f"  t token   {head}   student expects  teacher expects"]
    lines.append(f"{'':12}{under}   {'p, token':17}p, token")
    for t, token in enumerate(x.tokens):
        if t == x.wrong:
            lines.append(" first wrong step: the next value ".center(len(lines[0]), "-"))
        cells = "".join(f"{x.values[name][t]:z10.3f}" for name in columns) + "   "
        for who in ("student", "teacher"):
            top = f"{x.values[f'{who}_top_prob'][t]:.2f} {x.values[f'{who}_top'][t]}"
            cells += top.ljust(17)
        lines.append(f"{t:3} {token:8}{cells}".rstrip())
    return "\n".join(lines)


def inspection_in_words(x: Inspection) -> str:
    """What to look at, in three numbered lines."""
    v = x.values
    t = max(range(len(x.tokens)), key=lambda i: abs(v["advantage"][i]))
    effect = "likelier" if v["advantage"][t] > 0 else "rarer"
    lines = [
        f"1. Largest advantage: {v['advantage'][t]:+.1f} nats at t = {t}; distillation makes "
        f"'{x.tokens[t]}' {effect} there."
    ]
    if x.wrong is None:
        lines.append("2. No value is wrong; --completion shows what follows a mistake of yours.")
    else:
        parts = (v["forward_kl"][: x.wrong], v["forward_kl"][x.wrong + 1 :])
        means = [sum(part) / max(1, len(part)) for part in parts]
        lines.append(
            f"2. First wrong step: t = {x.wrong}. Mean KL(t||s) is {means[0]:.2f} nats per token "
            f"before it, {means[1]:.2f} behind it."
        )
    remark = [f"{max(v[f'{who}_remark']):.2f}" for who in ("student", "teacher")]
    lines.append(
        "3. Probability of 'demo', the unreliable author's remark: student up to "
        f"{remark[0]}, teacher up to {remark[1]}."
    )
    return "\n".join(lines)


def draw_inspection(path: Path, x: Inspection) -> None:
    """inspect.png: probabilities and divergences token by token, the first wrong step marked."""
    from matplotlib.figure import Figure

    T, v = len(x.tokens), x.values
    figure = Figure(figsize=(max(10.5, 2 + 0.42 * T), 8.5), layout="constrained")
    figure.suptitle(
        f"{x.prompt}{x.completion}   ({'right' if x.right else 'WRONG'})\n"
        f"the student sees: {x.prompt}     the teacher sees: {x.context}{x.prompt}"
    )
    upper, lower = figure.subplots(2, 1)
    bars = {"student": "student_prob", "teacher": "teacher_prob"}
    kls = {"KL(teacher || student)": "forward_kl", "KL(student || teacher)": "reverse_kl"}
    for axes, first, names in ((upper, 0, bars), (lower, 2, kls)):
        for i, (label, name) in enumerate(names.items()):
            places = [t + 0.4 * (i - 0.5) for t in range(T)]
            axes.bar(places, v[name], 0.38, label=label, color=f"C{first + i}")
        if x.wrong is not None:
            axes.axvline(x.wrong - 0.5, color="black", linestyle="--", label="first wrong step")
        axes.set_xticks(range(T), x.tokens, family="monospace")
        axes.set_xlim(-0.6, T - 0.4)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        axes.grid(axis="y", alpha=0.3)
    for i, who in enumerate(bars):
        for t, word in enumerate(v[f"{who}_top"]):
            if word != x.tokens[t]:
                options = {"ha": "center", "family": "monospace", "color": f"C{i}"}
                turn = 90 * (len(word) > 1)
                upper.text(t + 0.4 * (i - 0.5), 1.04, word, rotation=turn, **options)
    upper.set_title("words above the bars: what was expected instead", loc="right", fontsize=10)
    upper.set(ylabel="probability of the token (fraction)", ylim=(0, 1.3))
    upper.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    lower.set(ylabel="divergence (nats)", xlabel="token of the completion")
    figure.supxlabel(inspection_in_words(x), ha="left", x=0.02, fontsize=10)
    write_atomically(path, lambda p: figure.savefig(p, dpi=110, format="png"))


def main_inspect(text: str, checkpoint: str, completion: str, flags: dict) -> None:
    """One completion under the microscope: table, words and picture.

    Without --checkpoint the student is the base model. The teacher has the student's weights, so
    that the context is all the difference, unless --teacher external names others.
    """
    if "init" in flags or "data" in flags:
        raise ValueError(f"--inspect: {text!r}; allowed: only without --init and --data")
    # The separator and the words end with a space, which is easily left out.
    completion = re.sub(r"(;|wait|answer)$", r"\1 ", completion.strip())
    for flag, parse, value in (
        ("inspect", toy_tasks.Problem.parse, text),
        ("completion", toy_tasks.encode, completion),
    ):
        try:
            parse(value)
        except ValueError as error:
            raise ValueError(f"--{flag}: {error}") from None
    config = method_config(flags)
    folder = Path(config.out_dir or "out/inspect")
    if folder.is_file():
        raise ValueError(f"--out_dir: {str(folder)!r} is a file; allowed: a folder, or a new name")
    if config.threads:
        torch.set_num_threads(config.threads)
    pick_device(config.device)
    if checkpoint:
        untrained = GPT(GPTConfig(vocab_size=len(toy_tasks.VOCABULARY)))
        try:
            student = load_student(config, Path(checkpoint), untrained)
        except ValueError:
            allowed = "the folder of a run in the toy, with student.pt"
            raise ValueError(f"--checkpoint: {checkpoint!r}; allowed: {allowed}") from None
    else:
        student, _ = base_model(config)
    teacher = make_teacher(config, make_task(config), student)
    x = inspect_completion(config, student, teacher, text, completion)
    weights = config.external_teacher if config.teacher == "external" else "the same weights"
    print(f"student ({checkpoint or 'base model'}) sees: {x.prompt}")
    print(f"teacher ({weights}) sees: {x.context}{x.prompt}")
    print(f"completion ({'right' if x.right else 'WRONG'}): {x.completion}\n")
    print(f"{inspection_table(x)}\n\n{inspection_in_words(x)}\n")
    folder.mkdir(parents=True, exist_ok=True)
    draw_inspection(folder / "inspect.png", x)
    print(f"written: {folder / 'inspect.png'}")


# 11. Several processes ----------------------------------------------------------------------------
#
# Not needed to follow a step: in one process every function here gives back what it was given.
# Under torchrun all processes draw the same problems and random numbers and hold the same Batch;
# each writes (`write`) and scores (`backward`) its own rows. Weights in the means and advantages
# come from the whole batch, so that gradients need only be added up, whatever the reduction.


def processes() -> int:
    """How many share each batch; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return processes() == 1 or distributed.get_rank() == 0


@contextlib.contextmanager
def process_group(config: TrainConfig):
    """Joins the processes that torchrun has started, one GPU to each; all but the first are silent.

    Raises ValueError for settings that do not fit them.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    config.require(count > 1 or not config.shard, "shard", "only with several processes (torchrun)")
    if count == 1:
        yield
        return
    whole_rows = config.batch_size % count == 0
    config.require(whole_rows, "batch_size", f"a multiple of {count}, the number of processes")
    device = pick_device(config.device)
    known = str(device) in ("cpu", "cuda")
    config.require(known, "device", "auto, cpu or cuda, without a number, with torchrun")
    if device.type == "cuda":
        local, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        config.require(local < cards, "device", f"cpu, or at most {cards} processes, one to a GPU")
        torch.cuda.set_device(local)
    distributed.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as silence:
        if not is_first():
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        yield
    distributed.destroy_process_group()


def on_first(function: Callable[[], Any]) -> Any:
    """What the function returns, or raises, in the first process, in all of them; called there."""
    if processes() == 1:
        return function()
    outcome = [None]
    if is_first():
        try:
            outcome = [function()]
        except (ValueError, OSError) as error:
            outcome = [error]
    distributed.broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def own_rows(count: int, device: torch.device) -> Tensor:
    """Which of `count` rows are this process's: equally many for each, even if some come twice."""
    rank = distributed.get_rank() if processes() > 1 else 0
    each = math.ceil(count / processes())
    return torch.arange(rank * each, (rank + 1) * each, device=device) % count


def from_all(written: Completions, count: int, pad_id: int) -> Completions:
    """The `count` rows of a batch, of which every process has written its `own_rows`."""
    if processes() == 1:
        return written
    device, parts = written.ids.device, [None] * processes()
    distributed.all_gather_object(parts, Completions(*(x.cpu() for x in vars(written).values())))
    joined = reduce(lambda left, right: left.join(right, pad_id), parts)
    return Completions(*(x[:count].to(device) for x in vars(joined).values()))


def over_processes(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """0-dim tensors, each summed over the processes."""
    if processes() == 1:
        return values
    sums = torch.stack(list(values.values()))
    distributed.all_reduce(sums)
    return dict(zip(values, sums))


def largest(number: int) -> int:
    """The largest of the processes' numbers: a signal reaches them at different steps."""
    if processes() == 1:
        return number
    shared = torch.tensor(number)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return int(shared)


def loading_device(config: TrainConfig) -> torch.device:
    """Where weights are read to: one of several cards may be too small for all of them."""
    return pick_device(config.device if processes() == 1 else "cpu")


@cache
def process_mesh(device_type: str, shard: bool):
    """The processes as fully_shard wants them: copies of the weights x parts of one copy."""
    shape = (1, processes()) if shard else (processes(), 1)
    return distributed.init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def spread(config: TrainConfig, model: GPT) -> GPT:
    """The model over the processes: one copy in each, or with --shard a part in each.

    fully_shard does both: it gathers weights where they are needed, block by block, and makes the
    mean of the gradients over the processes. Its hooks stand at `hidden`, the way into the model.
    """
    if processes() == 1:
        return model
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = MixedPrecisionPolicy()
    if config.shard and config.dtype == "bfloat16":  # what travels and is held takes half as much
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    mesh = process_mesh(pick_device(config.device).type, config.shard)
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "hidden")
    return model


def copied(config: TrainConfig, model: GPT) -> GPT:
    """A second model with the same weights, as spread as the first."""
    if processes() == 1:
        return copy.deepcopy(model)
    twin = spread(config, minisd.empty_gpt(model.config, dtype=model.norm.weight.dtype))
    twin.load_state_dict(model.state_dict())
    twin.activation_checkpointing = model.activation_checkpointing
    return twin


@contextlib.contextmanager
def gathered(author: GPT | Teacher):
    """Inside, every process has all weights of the author.

    Else every token would wait for weights, and all processes would have to write equally long.
    """
    models = [model for model, _ in author.parts()] if processes() > 1 else []
    for model in models:
        for part in (*model.blocks, model):
            part.unshard()
        for block in model.blocks:
            block.set_reshard_after_forward(False)
    yield
    for model in models:
        for block in model.blocks:
            block.set_reshard_after_forward(True)
            block.reshard()
    release(author)


def release(*authors: GPT | Teacher | None) -> None:
    """Drops embedding and head, which stay gathered behind `hidden` until a backward pass ends."""
    for author in authors if processes() > 1 else ():
        for model, _ in author.parts() if author else ():
            model.reshard()


def full_state(state: Any) -> Any:
    """A state dict of a model or an optimiser as one process would have it, on the CPU.

    All processes must call it; in all but the first one, None stands for each divided tensor.
    """
    if isinstance(state, dict):
        return {name: full_state(value) for name, value in state.items()}
    if not hasattr(state, "full_tensor"):
        return state
    tensor = state.full_tensor()
    return tensor.cpu() if is_first() else None


def load_full_state(model: GPT, state: dict) -> None:
    """The way back from `full_state`; every process must have what the first one was given."""
    own = model.state_dict()
    model.load_state_dict({name: divided(value, own[name]) for name, value in state.items()})


def load_full_optimizer(optimizer: torch.optim.Optimizer, model: GPT, state: dict) -> None:
    """The same for the optimiser of the model's parameters."""
    parameters = list(model.parameters())
    parts = {
        i: {name: divided(value, parameters[i]) for name, value in values.items()}
        for i, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": parts})


def divided(value: Tensor, like: Tensor) -> Tensor:
    """The value divided among the processes as `like` is; numbers beside it stay as they are."""
    if not hasattr(like, "placements") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    where = (like.device_mesh, like.placements)
    return distribute_tensor(value.to(like.device), *where, src_data_rank=None)


def whole(model: GPT) -> GPT | None:
    """The model with all weights, on the CPU, in the first process; None in the others."""
    if processes() == 1:
        return model
    state = full_state(model.state_dict())
    if not is_first():
        return None
    alone = minisd.empty_gpt(model.config, dtype=model.norm.weight.dtype)
    alone.load_state_dict(state)
    return alone


# 12. Command line ---------------------------------------------------------------------------------


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line and exits with 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def make_parser() -> argparse.ArgumentParser:
    """One flag per field of TrainConfig, and the few that choose what to do."""
    parser = OneLineParser(
        prog="train_gpt.py",
        description=__doc__.split("\n\n")[0],
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--compare", nargs="+", metavar="METHOD", help="methods, and base, to compare"
    )
    parser.add_argument(
        "--claim", nargs="+", metavar="CLAIM", help="published claims to test, or all"
    )
    parser.add_argument(
        "--seeds", type=int, help="number of seeds of --compare and --claim (default: 3 and 5)"
    )
    parser.add_argument(
        "--workers", type=int, help="processes of --compare and --claim (default: all cores)"
    )
    parser.add_argument(
        "--inspect", metavar="PROBLEM", help="a problem, such as 3*7+4-8, token by token"
    )
    parser.add_argument(
        "--checkpoint", help="run's folder: the student of --inspect (default: base)"
    )
    parser.add_argument("--completion", help="what --inspect shows; a beginning is continued")
    parser.add_argument("--list_methods", action="store_true", help="print the method table")
    parser.add_argument("--resume", metavar="DIR", help="go on with the unfinished run in DIR")
    for f in dataclasses.fields(TrainConfig):
        loaded = CHECKPOINT_SETTINGS.get(f.name)
        loaded = "" if loaded is None else f", with --init {loaded!r}"
        text = f"{f.metadata['help']} (default: {f.default!r}{loaded})"
        if f.type is bool:
            parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, help=text)
        else:
            # A choice is checked here by hand, so that flag and row give the same message.
            parser.add_argument(f"--{f.name}", type=f.type, help=text.replace("%", "%%"))
    return parser


def method_config(flags: dict) -> TrainConfig:
    """The settings of the method's row with explicit flags over them. Raises ValueError."""
    method = flags.get("method", TrainConfig.method)
    row = METHODS[method].settings if method in METHODS else {}
    if flags.get("init"):
        row = CHECKPOINT_SETTINGS | row
        if (row | flags).get("reward_weight") == 1:
            row = row | WITHOUT_TEACHER
    return TrainConfig(**(row | flags))


def method_table() -> str:
    """The method table in Markdown, as it stands in the README."""
    headings = ("method", "who samples", "teacher", "it sees", "loss", "credit", "source")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name, method in METHODS.items():
        cells = (f"`{name}`", *describe(method_config({"method": name})), method.source)
        lines.append(f"| {' | '.join(cells)} |".replace("||", "\\|\\|"))
    return "\n".join(lines)


def describe(c: TrainConfig) -> tuple[str, str, str, str, str]:
    """Who samples, teacher, context, loss and credit of a configuration, in words."""
    samplers = {1.0: "student", 0.0: c.off_policy}
    mixed = f"student {c.student_frac:g}, {c.off_policy} {1 - c.student_frac:g}"
    teacher = {
        "ema": f"EMA, rate {c.teacher_update_rate:g}",
        "trust_region": f"trust region, rate {c.teacher_update_rate:g}",
        "snapshot": f"snapshot every {c.teacher_every} steps",
        "external": {"larger": "larger model", "adapted": "adapted by reward"}.get(
            c.external_teacher, c.external_teacher
        ),
    }.get(c.teacher, c.teacher)
    losses, credits = [], []
    if c.reward_weight < 1:
        share = f"{1 - c.reward_weight:g} " if c.reward_weight else ""
        words = LOSSES[c.loss].format(
            **{"w": f"{c.teacher_weight:g}", "v": f"{1 - c.teacher_weight:g}", "clip": c.clip},
            **{"k": c.top_k, "support": c.top_k_support, "tail": c.top_k_tail},
        )
        after = f", after {c.warm_start_steps} steps of `sft`" if c.warm_start_steps else ""
        losses.append(share + words + (", correct ones only" if c.only_correct else "") + after)
        sequence = {"sequence_kl": f"sequence level, discount {c.discount:g}"}
        credits.append(
            (sequence | {"averaged_advantage": "per completion"}).get(c.loss, "token level")
        )
    if c.reward_weight > 0:
        share = f"{c.reward_weight:g} " if c.reward_weight < 1 else ""
        advantage = "(r - mean)/std" if c.advantage == "std" else "r - mean"
        ratio = f"clip(ratio, {1 - c.clip_low:g}, {1 + c.clip_high:g})"
        losses.append(f"{share}-min(ratio A, {ratio} A), A = {advantage}")
        losses += [f"{c.kl_coef:g} k3(student, initial)"] * (c.kl_coef > 0)
        losses += [f"equal groups drawn anew up to {c.resample} times"] * (c.resample > 0)
        credits.append("per completion")
    seen = (teacher, c.context) if c.reward_weight < 1 else ("-", "-")
    credit = f"{', '.join(credits)}; {c.reduction.replace('_', ' ')}"
    return samplers.get(c.student_frac, mixed), *seen, "; ".join(losses), credit


def main(arguments: list[str] | None = None) -> None:
    flags = vars(make_parser().parse_args(arguments))
    is_speaker = os.environ.get("RANK", "0") == "0"
    try:
        if broken := [name for name, value in flags.items() if value == []]:
            raise ValueError(f"--{broken[0]}: '--'; allowed: a value")  # argparse lets it through
        if "resume" in flags:
            folder = Path(flags.pop("resume"))
            for name in flags:
                raise ValueError(f"--{name}: not with --resume, whose settings are in the folder")
            config = config_of_folder(folder)
            with process_group(config):
                return main_run(config, resume=True)
        modes = {name: flags.pop(name, None) for name in ("compare", "claim", "inspect")}
        chosen = [name for name, value in modes.items() if value is not None]
        if len(chosen) > 1:
            raise ValueError(f"--{chosen[0]}: with --{chosen[1]}; allowed: one of them")
        if chosen and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"--{chosen[0]}: not with torchrun; allowed: without it")
        for name in ("checkpoint", "completion"):
            if name in flags and modes["inspect"] is None:
                raise ValueError(f"--{name}: {flags[name]!r}; allowed: only with --inspect")
        several = chosen and chosen != ["inspect"]
        for name in ("method", "threads") if several else ("seeds", "workers"):
            if name in flags:
                where = "without" if several else "with"
                raise ValueError(
                    f"--{name}: {flags[name]!r}; allowed: only {where} --compare or --claim"
                )
        if flags.pop("list_methods", False):
            print(method_table())
        elif modes["claim"]:
            from results.claims import main_claims  # which itself imports this file

            main_claims(modes["claim"], flags)
        elif modes["compare"]:
            main_compare(modes["compare"], flags)
        elif modes["inspect"] is not None:
            checkpoint, completion = flags.pop("checkpoint", ""), flags.pop("completion", "")
            main_inspect(modes["inspect"], checkpoint, completion, flags)
        else:
            config = method_config(flags)
            with process_group(config):
                main_run(config)
    except Exception as error:
        expected = isinstance(error, ValueError | OSError)
        if not is_speaker or (not expected and int(os.environ.get("WORLD_SIZE", 1)) > 1):
            # Of a lost connection the cause is said elsewhere: by the first process, or by the one
            # that failed. Seconds in which it does, and torchrun ends this one.
            time.sleep(5)
        if not expected:
            raise
        print(f"train_gpt.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:  # Interrupted among them
        if is_speaker:
            print(f"train_gpt.py: {str(stop) or 'stopped by SIGINT'}", file=sys.stderr)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))


def config_of_folder(folder: Path) -> TrainConfig:
    """The settings of the run in a folder. Raises ValueError if there is none."""
    try:
        settings = dict(json.loads((folder / "config.json").read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"--resume: {str(folder)!r} has no config.json of a run; allowed: a run's folder"
        ) from None
    types = {
        f.name: (f.type, int) if f.type is float else f.type
        for f in dataclasses.fields(TrainConfig)
    }
    try:
        if not all(isinstance(value, types[name]) for name, value in settings.items()):
            raise TypeError
        return TrainConfig(**settings | {"out_dir": str(folder)})
    except (TypeError, KeyError):
        raise ValueError(
            f"--resume: {str(folder)!r} has settings of another version; allowed: to start over"
        ) from None


def run_or_say_how_to_go_on(config: TrainConfig, resume: bool) -> dict:
    """`run`; what stops it says what is left and which command goes on from there."""
    folder = config.folder
    go_on = f"to go on: {resume_command(folder)}"
    try:
        with handled_signals(stop_at_once):
            return run(config, resume=resume)
    except NonFiniteError as error:
        last = next((str(path) for path in checkpoint_files(folder)), "none")
        advice = "try a lower --learning_rate in another --out_dir"
        raise ValueError(f"{error}; weights untouched; last checkpoint: {last}; {advice}") from None
    except (OSError, Interrupted) as stop:
        if not (folder / "config.json").exists():
            raise
        if isinstance(stop, OSError):
            raise OSError(f"{stop}; what was saved is whole; {go_on}") from None
        raise Interrupted(*stop.args, f"; {go_on}") from None


def resume_command(folder: Path) -> str:
    start = "python" if processes() == 1 else f"torchrun --nproc_per_node {processes()}"
    return f"{start} train_gpt.py --resume {folder}"


def main_run(config: TrainConfig, resume: bool = False) -> None:
    """One run, with everything that a person sees of it."""
    pick_device(config.device)
    known = on_first(lambda: finished_run(config.folder, config, resume)) is not None
    if not known:
        settings = (f"{name}={value!r}" for name, value in dataclasses.asdict(config).items())
        print(textwrap.fill(" ".join(settings), 100, break_long_words=False))
        print(UNITS)
    summary = run_or_say_how_to_go_on(config, resume)
    if known and is_first():
        print(
            f"{config.folder} already holds this run: its results are shown; to start over, delete "
            "that folder or name another --out_dir"
        )
        stored = json.loads((config.folder / "config.json").read_text())["record"]
        if stored.get("code") != code_version():
            print("NOTE: the code has changed since; these are the old results")
    print(f"\n{before_after_table(summary)}\n{in_words(summary)}\n\n{sample_lines(summary)}\n")
    weights = "checkpoint" if config.init else "student.pt"
    names = ("config.json", "metrics.jsonl", "curves.png", weights, "summary.json")
    print("written: " + ", ".join(str(config.folder / name) for name in names))
    print(
        f"seconds: pretraining {summary['pretrain_s']:.1f} (cached afterwards), "
        f"training {summary['train_s']:.1f}, this run {summary['wall_s']:.1f}"
    )


def check_several(what: str, flags: dict, seeds: int, workers: int) -> None:
    """Raises ValueError for what several runs cannot have."""
    if "init" in flags or "data" in flags:
        raise ValueError(f"--{what}: not with --init or --data; allowed: the toy")
    for name, value in (("seeds", seeds), ("workers", workers)):
        if not 1 <= value <= 1000:
            raise ValueError(f"--{name}: {value}; allowed: 1 or more, at most 1000")
    folder = Path(flags.get("out_dir", "") or ".")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out_dir: {str(folder)!r} is a file; allowed: a folder, or a new name")


def main_compare(methods: list[str], flags: dict) -> None:
    """Several methods and seeds in one table and picture."""
    seeds, workers = flags.pop("seeds", 3), flags.pop("workers", os.cpu_count() or 1)
    methods = list(dict.fromkeys(methods))
    for method in methods:
        if method not in (*METHODS, "base"):
            raise ValueError(f"--compare: {method!r}; allowed: base, {', '.join(METHODS)}")
    if set(methods) == {"base"}:
        raise ValueError("--compare: 'base' alone; allowed: at least one method beside it")
    check_several("compare", flags, seeds, workers)
    folder = Path(flags.pop("out_dir", "") or "out/compare")
    first = flags.pop("seed", 0)
    known = (folder / "compare.json").exists()
    result = compare(methods, flags, list(range(first, first + seeds)), folder, workers)
    if known:
        print(f"{folder} already holds this comparison; to start over, name another --out_dir")
    print(f"\n{comparison_table(result)}\n")
    print(f"written: {folder / 'compare.json'}, {folder / 'compare.png'}, and a folder per run")


if __name__ == "__main__":
    main()
