"""The runs of arms: each is a command of its own, is kept under its name, and is never repeated.

1 commands   2 the numbers of a run   3 the queue
"""

import ast
import dataclasses
import functools
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import toy_tasks
from lab.claims.arms import SHARED, Arm, Measure, MeasuredRun
from lab.runs import ROOT, Failed, Flags, Start, in_parallel, joined, paste_ready, split_flags

# 1. Commands --------------------------------------------------------------------------------------

def training_flags(arm: str, given: Flags) -> Flags:
    """The flags of an arm that trains; those given for all arms beat its own."""
    flags = split_flags([*shlex.split(SHARED), *shlex.split(arm), *joined(given)])[1]
    return {"--method": flags["--method"], **flags}  # first, as one reads it


def measure_flags(flags: str, given: Flags) -> Flags:
    """The flags of a measurement: of those given for all arms, the ones that it takes."""
    fields = (f.name for f in dataclasses.fields(toy_tasks.Toy))
    known = {"--cache_dir", *(f"--{name}" for name in fields)}
    taken = {name: value for name, value in given.items() if name in known}
    return split_flags([*shlex.split(flags), *joined(taken)])[1]


@dataclass(frozen=True)
class Run:
    """One command: what stands behind `python`, and the file that is there when it is done."""

    words: tuple[str, ...]
    result: Path

    @property
    def text(self) -> str:
        """The command as one can paste it."""
        return paste_ready(list(self.words))


def runs_of(arm: Arm, given: Flags, seed: int, out_dir: Path) -> list[Run]:
    """The commands of an arm, in order: a training run, a measurement, or the one of the other.

    A folder is named by a hash of the command and of the code, so that runs of different code
    never meet in one. NOTE: paths, which change no number, are not in the hash.
    """
    if isinstance(arm, Measure):
        flags = measure_flags(arm.flags, given) | {"--seed": str(seed)}
        result = out_dir / "runs" / f"{folder_name(arm.name, flags)}.json"
        words = ("-m", "lab.measures", arm.name, *joined(flags), "--out", str(result))
        return [Run(words, result)]
    text = arm.flags if isinstance(arm, MeasuredRun) else arm
    flags = training_flags(text, given) | {"--seed": str(seed)}
    folder = out_dir / "runs" / folder_name(flags["--method"], flags)
    words = ("train_gpt.py", *joined(flags), "--out_dir", str(folder))
    runs = [Run(words, folder / "summary.json")]
    if isinstance(arm, MeasuredRun):
        result = folder / f"{arm.name}.json"
        words = ("-m", "lab.measures", arm.name, "--run", str(folder), "--out", str(result))
        runs.append(Run(words, result))
    return runs


def folder_name(name: str, flags: Flags) -> str:
    content = {k: v for k, v in flags.items() if k not in ("--cache_dir", "--out_dir")}
    recipe = json.dumps([name, sorted(content.items()), code_hash()])
    return f"{name}-{flags['--seed']}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


# What the numbers of a run depend on; comments and layout do not count.
CODE = ("minisd.py", "toy_tasks.py", "train_gpt.py", "lab/base.py", "lab/evaluation.py",
        "lab/extra_losses.py", "lab/fixes.py", "lab/measures/*.py")


@functools.cache
def code_hash() -> str:
    """A hash of the code that trains and measures, and of the version of PyTorch."""
    paths = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
    code = [ast.unparse(ast.parse(path.read_text())) for path in paths]
    return hashlib.sha256(json.dumps([torch.__version__, *code]).encode()).hexdigest()[:16]


# 2. The numbers of a run --------------------------------------------------------------------------

NAMES = {  # in summaries and evaluations -> in claims
    "accuracy_frac": "accuracy",
    "markers_per_completion": "markers",
    "direct_frac": "direct",
    "completion_tokens": "tokens",
    "remark_frac": "remark",
}


def numbers_of(folder: Path) -> dict:
    """What a training run has measured, by name: before.fresh.accuracy, mean reward, ..."""
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    before, after = dict(summary["before"]), dict(summary["after"])
    before["teacher"], after["teacher"] = evaluations[0]["teacher"], evaluations[-1]["teacher"]
    numbers = {
        f"{when}.{split}.{NAMES[name]}": value
        for when, splits in (("before", before), ("after", after))
        for split, measures in splits.items()
        for name, value in measures.items()
        if name in NAMES
    }
    accuracy = summary["teacher_accuracy_frac"]["before"]
    numbers["initial teacher accuracy"] = accuracy
    numbers["initial gap"] = accuracy - numbers["before.train.accuracy"]
    config = json.loads((folder / "config.json").read_text())
    batch_size = config["settings"]["run"]["batch_size"]
    numbers["curve.generations"] = [row["step"] * batch_size for row in steps]
    for name in ("reward", "completion_tokens", "reverse_kl"):
        numbers[f"curve.{name}"] = [row[name] for row in steps]
    rewards = numbers["curve.reward"]
    numbers["mean reward"] = float(np.mean(rewards))
    # Those of the whole run if a batch never gets there: a lower bound.
    reached = [n for n, r in zip(numbers["curve.generations"], rewards) if r >= 0.9]
    numbers["generations to 0.9"] = (reached or numbers["curve.generations"][-1:])[0]
    numbers["seconds"] = summary["train_s"]
    return numbers


def arm_numbers(runs: list[Run]) -> dict:
    """All numbers of an arm whose runs are done."""
    numbers = {}
    for run in runs:
        if failure(run).exists():  # a result as well: its statements are not measured
            return {"failed": failure(run).read_text()}
        trained = run.result.name == "summary.json"
        found = numbers_of(run.result.parent) if trained else json.loads(run.result.read_text())
        seconds = numbers.get("seconds", 0) + found.get("seconds", 0)
        numbers |= found | {"seconds": seconds}
    return numbers


# 3. The queue -------------------------------------------------------------------------------------


# What the core says when a loss, a gradient or a logit is not finite.
NOT_FINITE = ("not finite", "gradient norm", "logits: nan")


def failure(run: Run) -> Path:
    """The file that stands for a run whose loss was not finite."""
    return run.result.with_suffix(".failed")


def is_done(run: Run) -> bool:
    return run.result.exists() or failure(run).exists()


def bases_of(run: Run) -> set[tuple]:
    """What names the base models that a run starts from, as far as its command tells."""
    flags = split_flags(list(run.words))[1]
    if "--run" in flags:
        return set()
    world = (flags.get("--world"), flags.get("--pretrain_steps"))
    bases = {("base", flags.get("--seed"), *world)}
    external = flags.get("--external_teacher")
    if external in ("larger", "other_style"):
        bases.add((external, *world))
    return bases


def queue_of(arms: list[list[Run]]) -> list[list[Run]]:
    """Arms in the order in which they start.

    First one for each base model, which it pretrains; the others wait for that file if they come
    too early, so they follow in the order in which their base models began.
    """
    first, rest, begun = [], [], {}
    for runs in arms:
        bases = set().union(*map(bases_of, runs))
        (rest if bases <= begun.keys() else first).append((runs, bases))
        for base in bases:
            begun.setdefault(base, len(begun))
    rest.sort(key=lambda pair: max((begun[base] for base in pair[1]), default=-1))
    return [runs for runs, _ in first + rest]


def run_all(arms: list[list[Run]], workers: int) -> None:
    """Runs every command that is not done, `workers` at a time.

    Raises ValueError, with what it said, if one of them fails; the others that have begun stop.
    """
    together: dict[Path, list[Run]] = {}  # arms that share a training run, one after the other
    for runs in arms:
        todo = together.setdefault(runs[0].result, [])
        todo += [run for run in runs if run not in todo]
    queue = queue_of([runs for runs in together.values() if not all(map(is_done, runs))])
    if not queue:
        return
    in_parallel([functools.partial(run_one, runs) for runs in queue], workers)


def run_one(runs: list[Run], start: Start) -> None:
    """The commands of one folder, in order; of a failed run nothing more is measured."""
    for run in runs:
        if failure(run).exists():
            return
        if run.result.exists():
            continue
        run.result.parent.mkdir(parents=True, exist_ok=True)
        try:
            start(list(run.words))
        except Failed as error:
            if not any(words in error.said for words in NOT_FINITE):
                raise
            failure(run).write_text(f"{error.said}\n")
