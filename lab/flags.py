"""Command lines from dataclasses: a flag for each field, a group for each class."""

import argparse
import dataclasses
import inspect
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line and exits with 2; takes no shortened flags."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)

    def parse_args(self, args=None, namespace=None):
        for word in args or ():
            if word.startswith("--") and word.endswith("=--"):  # argparse makes an empty list of it
                self.error(f"{word}: allowed: a value")
        return super().parse_args(args, namespace)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


ALLOWED = {
    bool: "true or false", int: "a whole number below 2^63", float: "a finite number",
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


def comments_of(kind: type) -> dict[str, str]:
    """The comment behind each field of a dataclass: the help of its flag."""
    found = {}
    for line in inspect.getsource(kind).splitlines():
        if match := re.match(r"\s+(\w+): \w+ = .*?  # (.+)", line):
            found[match[1]] = match[2]
    return found


def add_group(
    parser: argparse.ArgumentParser, kind: type, title: str, *,
    skip: tuple[str, ...] = (), defaults: dict[str, Any] | None = None, otherwise: str = "",
) -> None:
    """Flags of the fields of a dataclass in a group of their own.

    defaults: other default values in certain cases, which `otherwise` names, for the help alone.
    """
    group, help_of = parser.add_argument_group(title), comments_of(kind)
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        words = f"{help_of.get(field.name, '')} (default: {field.default!r}"
        if field.name in (defaults or {}):
            words += f"; {otherwise} {defaults[field.name]!r}"
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


def require_numbers(settings: Any, least: dict[str, float]) -> None:
    """Raises ValueError, naming the flag, for a number below its least, 0 if none is given."""
    for name, value in vars(settings).items():
        if isinstance(value, (int, float)):
            low, high = least.get(name, 0), 2**31 - 1
            words = f"{low} to {high}" if isinstance(value, int) else f"{low} or more"
            settings.require(low <= value <= high or isinstance(value, bool), name, words)


OLD_FLAGS = {  # of the first edition: what does it now
    "--compare": "python -m lab.compare METHOD ...",
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


def run_main(prog: str, function: Callable[[list[str]], None]) -> None:
    """Calls function(arguments); what is wrong with them is one line on stderr and exit code 2."""
    speaks = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun the first
    try:
        function(sys.argv[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        if speaks:
            print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        if speaks:
            print(f"{prog}: {str(stop) or 'stopped by SIGINT'}", file=sys.stderr)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
