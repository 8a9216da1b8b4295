"""What a checkpoint writes and knows, on problems in words: the numbers of `python -m lab.real`.

python -m lab.real_measures --student out/real/sdpo-0/checkpoint --start out/real/warm-0/checkpoint
                            --data lab/data/word_problems.jsonl --out numbers.json

`start` is the model before training; with the solution it is the teacher of most methods.
Everything is greedy, so that no number hangs on a draw.
"""

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor

import minisd
from lab import hf
from lab.flags import OneLineParser, run_main
from lab.measures.prefixes import PREFIX_FRACS
from lab.storage import write_json
from lab.text_tasks import TextExample, TextTask, read_jsonl
from minisd import GPT, METHODS, Batch, Completions, Prompts, Sizes

# Whoever writes one of these is not sure: the one list of this comparison. The ten words that
# papers count stand in lab/text_tasks.py, and are counted in every run.
DOUBT = ("wait", "hmm", "let me check")
PREFIX_PROBLEMS = 24  # fresh problems whose completions are gone on with
KL_ROWS = 8  # completions scored at a time


def doubts(text: str) -> bool:
    """Whether a text has a word of DOUBT, in upper or lower case."""
    return any(word in text.lower() for word in DOUBT)


def prompt_ids(task: TextTask, examples: list[TextExample], kind: str) -> list[list[int]]:
    """Token ids of the prompts, with a context or ("none") without."""
    rng = random.Random(0)  # contexts of other problems draw one
    return [task.prompt_ids(e, task.context(e, kind, rng)) for e in examples]


def written(
    task: TextTask, model: GPT, examples: list[TextExample], kind: str, sizes: Sizes,
    prefixes: list[list[int]] | None = None,
) -> list[list[int]]:
    """Token ids of greedy completions, behind prefixes where they are given; these included."""
    prefixes = prefixes or [[] for _ in examples]
    device = next(model.parameters()).device
    ids = [p + prefix for p, prefix in zip(prompt_ids(task, examples, kind), prefixes)]
    with sizes.autocast(device):
        made = minisd.sample(
            [(1.0, model, Prompts.of(ids, task.pad_id, device))], temperature=0.0,
            max_new_tokens=sizes.max_new_tokens, end_ids=task.end_ids, pad_id=task.pad_id)
    return [p + row[mask].tolist() for p, row, mask in zip(prefixes, made.ids, made.mask)]


def accuracy(task: TextTask, examples: list[TextExample], ids: list[list[int]]) -> float:
    """Share of completions (token ids) that earn their reward."""
    return sum(task.reward(task.decode(row), e) for row, e in zip(ids, examples)) / len(examples)


def behaviour(
    task: TextTask, examples: list[TextExample], ids: list[list[int]]
) -> dict[str, float]:
    """Means over completions: accuracy, doubt and cut as shares, length in tokens."""
    measures = [task.measures(task.decode(row), e) for row, e in zip(ids, examples)]
    means = {name: sum(m[name] for m in measures) / len(ids) for name in measures[0]}
    means["doubt_frac"] = sum(doubts(task.decode(row)) for row in ids) / len(ids)
    return means | {"completion_tokens": sum(map(len, ids)) / len(ids)}


@torch.no_grad()
def hint_kl(
    task: TextTask, student: GPT, teacher: GPT, examples: list[TextExample],
    ids: list[list[int]], sizes: Sizes,
) -> float:
    """KL(student || teacher with the solution), nats per token of the student's completions."""
    device, total, tokens = next(student.parameters()).device, 0.0, 0
    for i in range(0, len(ids), KL_ROWS):
        rows = slice(i, i + KL_ROWS)
        shown = {kind: Prompts.of(prompt_ids(task, examples[rows], kind), task.pad_id, device)
                 for kind in ("none", "solution")}
        completions = Completions.of(ids[rows], task.pad_id, device)
        batch = Batch([], shown, completions, torch.zeros(len(ids[rows])), sizes, 0.0)
        with sizes.autocast(device):
            terms = [(1.0, teacher, shown["solution"])]
            values: Tensor = minisd.score(METHODS["sdpo"], student, terms, batch)["divergence"]
        total, tokens = total + values.sum().item(), tokens + int(completions.mask.sum())
    return total / tokens


def accuracy_by_prefix(
    task: TextTask, model: GPT, examples: list[TextExample], kind: str, ids: list[list[int]],
    sizes: Sizes,
) -> list[float]:
    """How often a model is right that goes on from PREFIX_FRACS of completions (token ids)."""
    rows = [[row[: int(frac * len(row))] for row in ids] for frac in PREFIX_FRACS]
    return [accuracy(task, examples, written(task, model, examples, kind, sizes, prefixes))
            for prefixes in rows]


def measure(task: TextTask, student: GPT, start: GPT, count: int, sizes: Sizes) -> dict:
    """All numbers of one checkpoint, on the first `count` training and fresh problems."""
    rng, result = random.Random(0), {}
    for split in ("train", "fresh"):
        examples = task.evaluation(split, min(count, len(task.pools[split])), rng)
        ids = written(task, student, examples, "none", sizes)
        result[split] = behaviour(task, examples, ids)
    result["kl_own_hint"] = hint_kl(task, student, student, examples, ids, sizes)
    result["kl_start_hint"] = hint_kl(task, student, start, examples, ids, sizes)
    some = slice(PREFIX_PROBLEMS)
    for name, kind in (("teacher", "solution"), ("unhinted", "none")):
        result[f"{name}_by_prefix"] = accuracy_by_prefix(
            task, start, examples[some], kind, ids[some], sizes)
    result["examples"] = [task.decode(row) for row in ids[:3]]
    return result


def main(arguments: list[str]) -> None:
    parser = OneLineParser(
        prog="python -m lab.real_measures", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("student", "start", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--count", type=int, default=72, help="problems of a split (default: 72)")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="default: 64")
    given = parser.parse_args(arguments)
    for name in ("count", "max_new_tokens"):
        if not 1 <= getattr(given, name) <= 10_000:
            raise ValueError(f"--{name}: {getattr(given, name)}; allowed: 1 to 10000")
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    student, tokenizer = hf.load(given.student)
    start = student if given.student == given.start else hf.load(given.start)[0]
    task = TextTask(read_jsonl(given.data), tokenizer, end_ids=hf.end_ids(student, tokenizer))
    sizes = Sizes(max_new_tokens=given.max_new_tokens, chunk_tokens=1024, dtype=given.dtype)
    write_json(Path(given.out), measure(task, student, start, given.count, sizes))


if __name__ == "__main__":
    run_main("python -m lab.real_measures", main)
