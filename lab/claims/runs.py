"""The runs of arms: each is a command of its own, is kept under its name, and is never repeated.

1 commands   2 the numbers of a run   3 the queue
"""

import ast
import dataclasses
import functools
import hashlib
import json
import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lab.claims.arms import SHARED, Arm, Measure, MeasuredRun
from lab.claims.claim import Claim
from lab.claims.universes import Universe
from lab.measures import __main__ as measures
from lab.runs import ROOT, Failed, Flags, Start, in_parallel, joined, paste_ready, split_flags
from toy_tasks import Toy

# 1. Commands --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One command: what stands behind `python`, and the file that is there when it is done."""

    words: tuple[str, ...]
    result: Path

    @property
    def text(self) -> str:
        """The command as one can paste it."""
        return paste_ready(list(self.words))


def flags_of(arm: Arm) -> str:
    return arm if isinstance(arm, str) else arm.flags


def training_flags(arm: str, given: Flags) -> Flags:
    """The flags of an arm that trains; those given for all arms beat its own."""
    return split_flags([*shlex.split(SHARED), *shlex.split(arm), *joined(given)])[1]


def measure_flags(flags: str, given: Flags) -> Flags:
    """The flags of a measurement: of those given for all arms, the ones that it takes."""
    known = {"--cache_dir", *(f"--{field.name}" for field in dataclasses.fields(Toy))}
    taken = {name: value for name, value in given.items() if name in known}
    return split_flags([*shlex.split(flags), *joined(taken)])[1]


def runs_of(arm: Arm, given: Flags, universe: Universe, out_dir: Path) -> list[Run]:
    """The commands of an arm, in order: a training run, a measurement, or the one of the other.

    A folder is named by a hash of the command and of the code, so that runs of different code
    never meet in one. NOTE: paths, which change no number, are not in the hash.
    """
    if isinstance(arm, Measure):
        flags = universe.measured(measure_flags(arm.flags, given))
        result = out_dir / "runs" / f"{folder_name(arm.name, flags)}.json"
        words = ("-m", "lab.measures", arm.name, *joined(flags), "--out", str(result))
        return [Run(words, result)]
    flags = universe.trained(training_flags(flags_of(arm), given))
    flags = {"--method": flags["--method"], **flags}  # first, as one reads it
    folder = out_dir / "runs" / folder_name(flags["--method"], flags)
    words = ("train_gpt.py", *joined(flags), "--out_dir", str(folder))
    runs = [Run(words, folder / "summary.json")]
    if isinstance(arm, MeasuredRun):
        result = folder / f"{arm.name}.json"
        words = ("-m", "lab.measures", arm.name, "--run", str(folder), "--out", str(result))
        runs.append(Run(words, result))
    return runs


def arms_in(claim: Claim, universe: Universe) -> dict[str, Arm]:
    """What a claim runs in a universe: its arms, its base models, and in the first the rest."""
    return claim.arms | bases_of(claim) | (claim.once if universe.number == 0 else {})


def bases_of(claim: Claim) -> dict[str, Measure]:
    """The careful measure of every base model that the effect's arms start from."""
    if "careful" not in measures.NAMES:
        return {}
    worlds = []
    for name in claim.arms_of(claim.effect.value):
        flags = split_flags(shlex.split(flags_of(claim.all_arms[name])))[1]
        kept = {k: v for k, v in flags.items() if k in ("--world", "--pretrain_steps")}
        worlds.append(shlex.join(joined(kept)))
    names = (f"base {n}" if n > 1 else "base" for n in range(1, len(worlds) + 1))
    return {name: Measure("careful", world) for name, world in zip(names, dict.fromkeys(worlds))}


def varying(claim: Claim, given: Flags) -> list[str]:
    """The settings of the universes that enter the runs of a claim's arms."""
    trained = [training_flags(flags_of(a), given) for a in claim.arms.values()
               if not isinstance(a, Measure)]
    steps = ["steps"] if any("--steps" not in flags for flags in trained) else []
    return [*(["learning_rate"] if trained else []), *steps, "base"]


def folder_name(name: str, flags: Flags) -> str:
    content = {k: v for k, v in flags.items() if k not in ("--cache_dir", "--out_dir")}
    recipe = json.dumps([name, sorted(content.items()), code_hash()])
    return f"{name}-{flags['--seed']}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


# What the numbers of a run depend on; comments and layout do not count.
CODE = ("minisd.py", "toy_tasks.py", "train_gpt.py", "lab/base.py", "lab/evaluation.py",
        "lab/extra_losses.py", "lab/measures/*.py")


@functools.cache
def code_hash(patterns: tuple[str, ...] = CODE) -> str:
    """A hash of the code that trains and measures, and of the version of PyTorch."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    code = [ast.unparse(ast.parse(path.read_text())) for path in paths]
    return hashlib.sha256(json.dumps([torch.__version__, *code]).encode()).hexdigest()[:16]


# 2. The numbers of a run --------------------------------------------------------------------------

SHORT = {"markers_per_completion": "markers", "completion_tokens": "tokens"}


def short_name(name: str) -> str:
    """A measure's name in claims: accuracy for accuracy_frac."""
    return SHORT.get(name, name.removesuffix("_frac"))


def numbers_of(folder: Path) -> dict:
    """What a training run has measured, by name: before.fresh.accuracy, mean reward, ..."""
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    before, after = dict(summary["before"]), dict(summary["after"])
    before["teacher"], after["teacher"] = evaluations[0]["teacher"], evaluations[-1]["teacher"]
    numbers = {
        f"{when}.{split}.{short_name(name)}": value
        for when, splits in (("before", before), ("after", after))
        for split, means in splits.items()
        for name, value in means.items()
    }
    accuracy = summary["teacher_accuracy_frac"]["before"]
    numbers["initial teacher accuracy"] = accuracy
    numbers["initial gap"] = accuracy - numbers["before.train.accuracy"]
    numbers["curve.evaluated"] = [row["step"] for row in evaluations]
    for split in evaluations[0].keys() - {"kind", "step"}:
        for name in evaluations[0][split]:
            curve = [row[split][name] for row in evaluations]
            numbers[f"curve.{split}.{short_name(name)}"] = curve
    for name in steps[0].keys() - {"kind"}:
        numbers[f"curve.{name}"] = [row[name] for row in steps]
    config = json.loads((folder / "config.json").read_text())
    batch_size = config["settings"]["run"]["batch_size"]
    numbers["curve.generations"] = [row["step"] * batch_size for row in steps]
    rewards = numbers["curve.reward"]
    numbers["mean reward"] = float(np.mean(rewards))
    # Those of the whole run if a batch never gets there: a lower bound.
    reached = [n for n, r in zip(numbers["curve.generations"], rewards) if r >= 0.9]
    numbers["generations to 0.9"] = (reached or numbers["curve.generations"][-1:])[0]
    numbers["seconds"] = summary["train_s"]
    numbers["pretrain seconds"] = summary["pretrain_s"]
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


@dataclass(frozen=True)
class Job:
    """Runs that share a folder, one after the other.

    cost: how long they take compared with others. begins: base models that they are the first to
    need, and so pretrain.
    """

    runs: tuple[Run, ...]
    cost: float
    begins: frozenset


def models_of(run: Run) -> set[tuple]:
    """What names the base models that a run starts from, as far as its command tells."""
    flags = split_flags(list(run.words))[1]
    if "--run" in flags:
        return set()
    world = (flags.get("--world"), flags.get("--pretrain_steps"))
    found = {("base", flags.get("--seed"), *world)}
    external = flags.get("--external_teacher")
    if external in ("larger", "other_style"):
        found.add((external, *world))
    return found


def expected_seconds(runs: list[Run], models: int) -> float:
    """Roughly what runs take that pretrain so many base models; only ratios count."""
    seconds = 0.0
    for run in runs:
        flags = split_flags(list(run.words))[1]
        steps = sum(float(flags.get(f"--{k}steps") or 0) for k in ("", "adapt_", "warm_start_"))
        seconds += 2 + steps / 15 if run.words[0] == "train_gpt.py" else 8
        seconds += models * float(flags.get("--pretrain_steps") or Toy.pretrain_steps) / 70
        models = 0
    return seconds


def queue_of(claims: list[list[list[Run]]]) -> list[Job]:
    """The jobs of claims, each a list of arms, in the order in which they start.

    Claim by claim. In each, first one job for every base model that is new, which pretrains it:
    the others would wait for that file, so they follow in the order in which their models began.
    """
    together: dict[Path, list[Run]] = {}  # arms that share a training run
    for arms in claims:
        for runs in arms:
            todo = together.setdefault(runs[0].result, [])
            todo += [run for run in runs if run not in todo]
    queue, begun = [], {}
    for arms in claims:
        first, rest = [], []
        for result in dict.fromkeys(runs[0].result for runs in arms):
            runs = together.pop(result, [])
            if all(map(is_done, runs)):
                continue
            models = set().union(*map(models_of, runs))
            new = frozenset(models - begun.keys())
            for model in models:
                begun.setdefault(model, len(begun))
            job = Job(tuple(runs), expected_seconds(runs, len(new)), new)
            latest = max((begun[model] for model in models), default=-1)
            (first if new else rest).append((latest, job))
        rest.sort(key=lambda pair: pair[0])
        queue += [job for _, job in first + rest]
    return queue


def run_all(
    claims: dict[str, list[list[Run]]], workers: int, finished: Callable[[str, float | None], None]
) -> None:
    """Runs every command that is not done, `workers` at a time.

    finished(name, seconds that are left, if known): called once for each claim, one call at a
    time, as soon as its runs are done. Raises ValueError, with what it said, if a command fails;
    the others that have begun stop.
    """
    queue, lock, start = queue_of(list(claims.values())), threading.Lock(), time.perf_counter()
    left = {job.runs[0].result: job.cost for job in queue}
    waits = {name: {r[0].result for r in arms} & left.keys() for name, arms in claims.items()}
    total = sum(left.values())

    def tell(result: Path | None) -> None:
        with lock:
            left.pop(result, None)
            rest, spent = sum(left.values()), time.perf_counter() - start
            seconds = spent * rest / (total - rest) if rest < total else None
            for name in list(waits):
                waits[name].discard(result)
                if not waits[name]:
                    del waits[name]
                    finished(name, seconds)

    def job_of(job: Job) -> Callable[[Start], None]:
        def work(begin: Start) -> None:
            run_one(job.runs, begin)
            tell(job.runs[0].result)

        return work

    tell(None)
    if queue:
        in_parallel([job_of(job) for job in queue], workers)


def run_one(runs: tuple[Run, ...], start: Start) -> None:
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
