"""Command lines from dataclasses: a flag for each field, a group for each class."""

import argparse
import dataclasses
import functools
import importlib
import inspect
import math
import os
import random
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import minisd
import toy_tasks
from minisd import Method, Task
from toy_tasks import Toy


def out_folder(name: str | Path) -> Path:
    """The folder that --out_dir names, there or not. Raises ValueError for what can be none."""
    words, path = "allowed: a folder, or a new name", Path(name)
    try:
        is_other = path.exists() and not path.is_dir()
    except OSError as error:  # a name that is too long
        raise ValueError(f"--out_dir: {str(name)!r}: {error.strerror}; {words}") from None
    if is_other:
        raise ValueError(f"--out_dir: {str(name)!r} is a file; {words}")
    return path


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line and exits with 2; takes no shortened flags."""

    def __init__(self, *words: str, **options):
        super().__init__(*words, allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)

    def parse_args(self, args=None, namespace=None):
        for word in args or ():
            if word.startswith("--") and word.endswith("=--"):  # argparse makes an empty list of it
                self.error(f"{word}: allowed: a value")
        return super().parse_args(args, namespace)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


TINY = 1e-12  # smaller numbers are taken for slips: float32 would make 0 or infinity of many
ALLOWED = {
    bool: "true or false", int: "a whole number in digits, below 2^63", float: "a finite number",
    str: "a text", tuple: "a list",
}


def parse_value(name: str, text: str, kind: type) -> Any:
    """Text as a bool, int, float or str. Raises ValueError that begins with `--name`."""
    words = {"true": True, "false": False, "1": True, "0": False}
    try:
        if kind is bool:
            return words[text.lower()]
        value = kind(text)
        finite = not isinstance(value, float) or math.isfinite(value)
        if finite and (kind is not int or abs(value) < 2**63):
            return value
    except (KeyError, ValueError):
        pass
    raise ValueError(f"--{name}: {text!r}; allowed: {ALLOWED[kind]}")


@functools.cache  # the source is parsed anew at every look
def comments_of(kind: type) -> dict[str, str]:
    """The comment behind each field of a dataclass: the help of its flag."""
    found = {}
    for line in inspect.getsource(kind).splitlines():
        if match := re.match(r"\s+(\w+): \w+ = .*?  # (.+)", line):
            found[match[1]] = match[2]
    return found


def add_group(
    parser: argparse.ArgumentParser, kind: type, title: str, *,
    skip: tuple[str, ...] = ("source", "target"), with_init: dict[str, Any] | None = None,
) -> None:
    """Flags of the fields of a dataclass in a group of their own.

    with_init: other default values with --init, for the help alone.
    """
    group, help_of = parser.add_argument_group(title), comments_of(kind)
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        words = f"{help_of.get(field.name, '')} (default: {field.default!r}"
        if field.name in (with_init or {}):
            words += f"; with --init {with_init[field.name]!r}"
        words = f"{words})".replace("%", "%%")
        if field.type is bool:
            group.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, help=words)
        else:
            group.add_argument(f"--{field.name}", metavar="", help=words)


def settings_of(kind: type, flags: dict[str, Any], row: dict[str, Any] | None = None) -> Any:
    """The dataclass with those of the row's settings and, over them, of the flags that are its.

    Raises ValueError for a value of another type, as an edited file may have it.
    """
    values, given = {}, (row or {}) | flags
    for field in dataclasses.fields(kind):
        if field.name in given:
            value = given[field.name]
            if isinstance(value, str):
                value = parse_value(field.name, value, field.type)
            suits = {float: (int, float), tuple: (list, tuple)}.get(field.type, field.type)
            if not isinstance(value, suits):
                raise ValueError(f"--{field.name}: {value!r}; allowed: {ALLOWED[field.type]}")
            values[field.name] = value
    return kind(**values)


def check_numbers(settings: Any, lowest: dict[str, int]) -> None:
    """Raises ValueError, naming the flag, for a number that is absurd, or below its lowest: 1.

    A float that has 0 there may be 0; others are above it.
    """
    for field in dataclasses.fields(settings):
        value, low = getattr(settings, field.name), lowest.get(field.name, 1)
        if field.type is int:
            most = 1024 if field.name == "threads" else 2**31 - 1
            Method.require(settings, low <= value <= most, field.name, f"{low} to {most}")
        if field.type is float:
            fits = TINY <= value < 2**31 or value == 0 == low
            words = f"{'above 0,' if low else '0, or'} {TINY} to 2^31 - 1"
            Method.require(settings, fits, field.name, words)


def check_groups(run: Any, method: Method, rewarded: bool) -> None:
    """Raises ValueError, naming the flag, for groups that cannot be what the method needs.

    rewarded: whether completions of a problem are compared by their rewards.
    """
    whole, unbiased = run.batch_size % run.group_size == 0, ("token", "imitation")
    run.require(whole, "group_size", f"a divisor of batch_size {run.batch_size}")
    if rewarded:
        run.require(run.group_size >= 2, "group_size", "2 or more with rewards")
    if method.reward_weight < 1 and method.credit not in unbiased:
        run.require(run.temperature == 1, "temperature", f"1 with --credit {method.credit}")


def check_loss(method: Method, vocabulary: int) -> None:
    """Raises ValueError, naming the flag, for numbers with which a method could not be trained."""
    method.require(method.learning_rate > 0, "learning_rate", "above 0")
    for name, value in vars(method).items():
        if isinstance(value, (int, float)):
            method.require(0 <= value < 2**31, name, f"0 to {2**31 - 1}")
            method.require(value == 0 or value >= TINY, name, f"0, or {TINY} and more")
    method.require(method.teacher_every > 0, "teacher_every", "1 or more")
    method.require(method.adapt_steps > 0, "adapt_steps", "1 or more")
    method.require(0 < method.token_share <= 1, "token_share", "above 0, to 1")
    for name in ("clip_low", "clip_high"):
        method.require(getattr(method, name) <= 1, name, "0 to 1")
    logits = torch.zeros(1, 1, vocabulary)
    try:  # a divergence checks its own numbers
        minisd.DIVERGENCES[method.divergence](logits, logits, method)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def check_context(toy: Toy, method_contexts: set[str], distils: bool) -> None:
    """Raises ValueError for a context that is unknown, or teaches (`distils`) without the rules."""
    if toy_tasks.TASKS[toy.task] is not toy_tasks.arithmetic:
        return  # it knows its own contexts
    rules = toy_tasks.parse_rules(toy.rules)
    for kind in sorted(method_contexts - {"none"} or {"none"}):
        if kind not in toy_tasks.CONTEXTS:
            raise ValueError(f"--context: {kind!r}; allowed: {', '.join(toy_tasks.CONTEXTS)}")
        row = toy_tasks.CONTEXTS[kind]
        if row.draws_rule and not rules:
            allowed = f"numbers such as 3 or 2,7 with --context {kind}"
            raise ValueError(f"--rules: {toy.rules!r}; allowed: {allowed}")
        if rules and distils and not row.draws_rule:  # it tells the answer without the rule
            raise ValueError(f"--context: {kind!r}; allowed: rule, with --rules and a teacher")
        if rules and row.attempt == "own":
            raise ValueError(f"--context: {kind!r}; allowed: no verdicts with --rules")


def check_contexts(method: Method, task: Task) -> None:
    """Raises ValueError, naming the flag, for a context that the task or the method cannot show."""
    example, made = task.draw("train", random.Random(0)), set(method.contexts) & {*task.attempts}
    for kind in method.contexts:
        try:
            if kind != "none" and kind not in made:
                task.context(example, kind, random.Random(0))
        except KeyError:
            raise ValueError(f"--context: {kind!r}; allowed: one that the task knows") from None
    # They need completions of the student's own, before anybody else writes.
    others = method.student_frac < 1 and method.off_policy == "teacher"
    others = others or method.student_context in made or method.warm_start_steps > 0
    external = any(weights == "external" for _, weights, _ in method.terms)
    if made and (others or (external and method.external_teacher == "adapted")):
        words = "one that does not need the student's own completions"
        raise ValueError(f"--context: {min(made)!r}; allowed: {words}")


OLD_FLAGS = {  # of the first edition: what does it now
    "--compare": "python -m lab.compare METHOD ...",
    "--seeds": "python -m lab.compare METHOD ... --seeds N",
    "--claim": "python -m lab.claims NAME ...",
    "--inspect": "python -m lab.microscope PROBLEM",
    "--list_methods": "python train_gpt.py --method list",
    "--loss": "--divergence NAME and --credit NAME",
    "--only_correct": "--token_weights correct_only",
    "--token_part": "--token_weights first, last or spread, with --token_share",
}


def refuse_old_flags(arguments: list[str]) -> None:
    """Raises ValueError, naming what does it now, for a flag of the first edition."""
    for argument in arguments:
        if now := OLD_FLAGS.get(argument.partition("=")[0]):
            raise ValueError(f"{argument}: a flag of the first edition; now: {now}")


def shell_word(text: str) -> str:
    """A path as one word of a shell, in characters that this terminal can show, in one line."""
    text = f"./{text}" if text.startswith("-") else text  # it would be taken for a flag
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "utf-8")
        if text.isprintable():
            return shlex.quote(text)
    except UnicodeEncodeError:
        pass
    plain = {**{i: chr(i) for i in range(32, 127)}, ord("'"): "\\'", ord("\\"): "\\\\"}
    return "$'" + "".join(plain.get(byte, f"\\{byte:03o}") for byte in os.fsencode(text)) + "'"


def require_packages(*modules: str, file: str = "requirements.txt") -> None:
    """Raises ValueError for a module that cannot be imported: now, and not when it is needed."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            package, words = name.partition(".")[0], f"allowed: pip install -r {file}"
            raise ValueError(f"{package}: not importable ({error}); {words}") from None


def run_main(prog: str, function: Callable[[list[str]], None]) -> None:
    """Calls function(arguments); what is wrong with them is one line on stderr and exit code 2.

    Of the processes of torchrun the first speaks. When it ends, torchrun ends the others, which
    therefore wait, and speak if they alone have failed.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal lacks becomes its number
            stream.reconfigure(errors="backslashreplace")
    try:
        return function(sys.argv[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        said, code = f"error: {' '.join(str(error).splitlines())}", 2
    except (MemoryError, RuntimeError) as error:  # PyTorch has no class of its own on a CPU
        if not (isinstance(error, MemoryError) or "memory" in str(error)):
            raise
        allowed = "a smaller --batch_size, --max_new_tokens, --eval_problems or --micro_batch"
        said, code = f"error: out of memory; allowed: {allowed}", 2
    except KeyboardInterrupt as stop:
        said = str(stop) or "stopped by SIGINT"
        code = 128 + (stop.args[0] if stop.args else signal.SIGINT)
    if os.environ.get("RANK", "0") != "0":
        time.sleep(3)
    print(f"{prog}: {said}", file=sys.stderr)
    sys.exit(code)
