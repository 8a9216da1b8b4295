"""Problems in words for a small published model: three levels, worked in two manners.

python -m lab.word_problems                              # lab/data/word_problems.jsonl, as it is
python -m lab.word_problems --seed 1 --count 90 --out_dir out/problems

Level 1 adds or subtracts numbers of one digit, level 2 one of two digits and one of one, level 3
takes two steps. Half of the solutions say the answer at once; the others go step by step and look
again behind a word of doubt. Which half a problem is in says nothing about it.
"""

import argparse
import json
import random
from collections.abc import Callable

from lab.flags import OneLineParser, out_folder, run_main
from lab.storage import write_atomically

COUNT = 360  # a third of each level
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Ines", "Jon", "Kim", "Lea")
THINGS = ("apples", "books", "coins", "cards", "eggs", "keys", "pears", "roses", "shells", "stamps")
MORE = ("finds {} more", "gets {} more from a friend", "buys {} more")
LESS = ("gives away {}", "loses {}", "sells {}")
DOUBTS = ("Wait, let me check: {}.", "Hmm, let me check: {}.", "Let me check that: {}.")
LEVELS: dict[int, Callable[[random.Random], tuple[int, ...]]] = {  # the start, then each change
    1: lambda rng: start_and_changes(rng, (2, 9), (1, 9), 1),
    2: lambda rng: start_and_changes(rng, (11, 89), (2, 9), 1),
    3: lambda rng: start_and_changes(rng, (5, 40), (2, 9), 2),
}


def start_and_changes(
    rng: random.Random, start: tuple[int, int], change: tuple[int, int], count: int
) -> tuple[int, ...]:
    """A first number and signed changes that never lead below 1."""
    numbers = [rng.randint(*start)]
    for _ in range(count):
        size = rng.randint(*change)
        down = rng.random() < 0.5 and sum(numbers) - size >= 1
        numbers.append(-size if down else size)
    return tuple(numbers)


def problem(rng: random.Random, level: int) -> dict:
    """One line of the file: prompt, answer, solution, level."""
    first, *changes = LEVELS[level](rng)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    told = [rng.choice(MORE if c > 0 else LESS).format(abs(c)) for c in changes]
    events = ", then ".join(told)
    prompt = f"{name} has {first} {thing} and {events}. How many {thing} does {name} have now?"
    doubt = None if rng.random() < 0.5 else rng.choice(DOUBTS)
    solution, answer = worked(name, thing, first, changes, doubt), str(first + sum(changes))
    return {"prompt": prompt, "answer": answer, "solution": solution, "level": level}


def worked(name: str, thing: str, first: int, changes: list[int], doubt: str | None) -> str:
    """The answer at once or, with words of doubt, step by step and looked at again."""
    steps, value = [], first
    for c in changes:
        steps.append(f"{value} {'+' if c > 0 else '-'} {abs(c)} = {value + c}")
        value += c
    if doubt is None:
        return f"{name} has {value} {thing}."
    checked = f"{value} {'-' if changes[-1] > 0 else '+'} {abs(changes[-1])} = "
    checked += str(value - changes[-1])
    begun = f"{name} starts with {first} {thing}."
    return f"{begun} {'. '.join(steps)}. {doubt.format(checked)} So {name} has {value} {thing}."


def problems(seed: int, count: int) -> list[dict]:
    """`count` problems, no prompt twice, the levels in turn."""
    rng, found = random.Random(f"word problems-{seed}"), {}
    while len(found) < count:
        made = problem(rng, 1 + len(found) % len(LEVELS))
        found.setdefault(made["prompt"], made)
    return list(found.values())


def main(arguments: list[str]) -> None:
    parser = OneLineParser(
        prog="python -m lab.word_problems", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--count", type=int, default=COUNT, help=f"default: {COUNT}")
    parser.add_argument("--out_dir", default="lab/data", help="default: lab/data")
    given = parser.parse_args(arguments)
    if not 1 <= given.count <= 10_000:
        raise ValueError(f"--count: {given.count}; allowed: 1 to 10000")
    path = out_folder(given.out_dir) / "word_problems.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in problems(given.seed, given.count))
    write_atomically(path, lambda p: p.write_text(text))
    print(f"written: {path}, {given.count} problems")


if __name__ == "__main__":
    run_main("python -m lab.word_problems", main)
