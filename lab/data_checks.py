"""What may be wrong with problems that each alone are right: copies, contradictions, gaps.

Problems have a prompt, an answer and `where` they stand: file and line.
"""

import re
import string
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

SHOWN = 5  # warnings of a kind that are told one by one


def plain(text: str) -> str:
    """A text without differences that no reader sees: NFKC, capitals, spaces, invisible characters.

    A space between two digits stays, as one: `1 2` is not `12`.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    seen = "".join(c for c in folded if unicodedata.category(c) != "Cf")
    return re.sub(r"(?<!\d)\s+|\s+(?!\d|\s)", "", re.sub(r"\s+", " ", seen))


def split_key(prompt: str) -> str:
    """What decides between training and the fresh problems: the same for copies of a problem."""
    return plain(prompt).replace(" ", "")  # `1 000` and `1000` as well


def plain_answer(answer: str) -> Decimal | str:
    """The same for answers that are one number, or one text to a reader."""
    text = plain(answer).removesuffix(".")
    number = re.sub("[$,]", "", text).replace("\N{MINUS SIGN}", "-")
    return Decimal(number) if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", number) else text


class Pairs(dict):
    """A JSON object that remembers which of its keys stood in it twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.twice = [name for name in self if names.count(name) > 1]


def warn(lines: list[str]) -> None:
    """The first few on stderr, and how many more there are."""
    more = [f"and {len(lines) - SHOWN} more lines like this"] if len(lines) > SHOWN else []
    for line in [*lines[:SHOWN], *more]:
        print(f"warning: {' '.join(line.splitlines())}", file=sys.stderr)


def warn_of_doubles(records: Iterable[tuple[str, Any]]) -> None:
    """Of keys that a line has twice. records: where a line stands, and what was decoded there."""
    warn([
        f"{where}: the key {name[:40]!r} stands there twice; the last one counts"
        for where, record in records for name in getattr(record, "twice", ())
    ])


def warn_of_conflicts(examples: Iterable[Any]) -> None:
    """Of problems that stand there again with another answer: no completion can suit both."""
    first, lines = {}, []
    for example in examples:
        other = first.setdefault(plain(example.prompt), example)
        if plain_answer(other.answer) != plain_answer(example.answer):
            line = other.where.rpartition(" ")[2]
            lines.append(
                f"{example.where}: the prompt of line {line}, {example.prompt[:40]!r}, with the "
                f"answer {example.answer[:40]!r} instead of {other.answer[:40]!r}")
    warn(lines)


# A calculation with its result, such as 48/2 = $24.
STEP = re.compile(r"(?<![\d.,$%()])[\d.,$%()]*\d[%)]*"
                  r"(?:[-+*/x\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}][$(]*[\d.,]+[%)]*)+="
                  r"\$?\d+(?:[.,]\d+)*")
# Words in a row, a share of all: of 400 solutions of GSM8K none repeats 25, or .31 of itself.
FEWEST, MOST, SHARE = 8, 40, 0.4


def squeezed(text: str) -> str:
    """Without spaces and capitals, which tokenizers may change."""
    return "".join(text.split()).casefold()


def part_told(prompt: str, answer: str, told: str) -> str:
    """Which part of what only the teacher should see stands in a problem, in words; empty: none.

    told: what a context says. Givens that a solution repeats are no part of it.
    """
    said = r"(?:\b(?:answer|solution|hint)\b\W{0,3}(?:\bis\b)?|####|\\boxed)\W{0,3}"
    value = rf"{re.escape(answer)}(?![\w%])(?![.,]\d)"
    if re.search(said + value, prompt, re.IGNORECASE):
        return "the answer"
    here = squeezed(prompt)
    if any(re.search(rf"(?<![\d.]){re.escape(step)}(?!\d|[.,]\d)", here)
           for step in STEP.findall(squeezed(told)) if step in here):
        return "a step"
    words, given = (re.findall(r"\d+|[^\W\d_]+|[^\w\s]", x.casefold()) for x in (told, prompt))
    long = min(max(FEWEST, int(SHARE * len(words))), MOST)
    runs = {tuple(given[i : i + long]) for i in range(len(given) - long + 1)}
    found = any(tuple(words[i : i + long]) in runs for i in range(len(words) - long + 1))
    return f"{long} words in a row" if found else ""


@dataclass(frozen=True)
class Shown:
    """What a context shows of the data: fields, and whether they are those of another problem."""

    fields: frozenset[str]
    of_other: bool

    @classmethod
    def of(cls, row: Any, known: Iterable[str]) -> "Shown":
        names = {name for _, name, _, _ in string.Formatter().parse(row.template)}
        return cls(frozenset(names & {*known}), row.of_other)


def gaps(shown: Shown, train: list[Any], examples: list[Any]) -> list[str]:
    """What in the data keeps a context from being shown, in words, one for each line."""
    if shown.of_other and len({e.answer for e in train}) < 2:
        words = f"all {len(train)} training problems have the answer {train[0].answer[:40]!r}"
        return [f"{words}, and another one is to be shown"]
    return [
        f"{e.where or repr(e.prompt[:40])} has no {name}"
        for e in (train if shown.of_other else examples)
        for name in sorted(shown.fields) if not getattr(e, name)
    ]


def check_contexts(
    kinds: list[str], rows: dict[str, Any], pools: dict[str, list[Any]], known: Iterable[str]
) -> None:
    """Raises ValueError, naming flag, line and what is allowed, for a context that has gaps.

    kinds: the student's first. rows: all there are. known: the fields of a problem.
    """
    train, examples = pools["train"], [e for pool in pools.values() for e in pool]
    for kind in kinds:
        flag = "--student_context" if kind == kinds[0] else "--context"
        if kind not in rows:
            raise ValueError(f"{flag}: {kind!r}; allowed: {', '.join(rows)}")
        if found := gaps(Shown.of(rows[kind], known), train, examples):
            fit = (k for k in rows if not gaps(Shown.of(rows[k], known), train, examples))
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            words = f"allowed with these data: {', '.join(fit)}"
            raise ValueError(f"{flag}: {kind!r}; {found[0]}{more}; {words}")
