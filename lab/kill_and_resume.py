"""Kills runs with SIGKILL, resumes them and compares the end with that of uninterrupted runs.

python -m lab.kill_and_resume              # 20 kills, minutes; exit code 1 if one differs
python -m lab.kill_and_resume --seed 1     # other moments

A run is killed at a random moment of its pretraining, of saving, of evaluating, of drawing, or of
the whole: a thread in the process waits until the phase begins for the n-th time, then a random
part of the seconds that the phase took in the uninterrupted run, and sends the signal.
"""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lab import base, evaluation, report, storage
from lab.flags import OneLineParser, run_main

ROOT = Path(__file__).parent.parent
PHASES: dict[str, tuple[Any, str]] = {  # the function that it is; "anywhere" is the whole command
    "pretraining": (base, "pretrain"),
    "saving": (storage, "save_tensors"),  # checkpoints, base and student
    "evaluating": (evaluation, "evaluate_all"),
    "drawing": (report, "draw_curves"),
    "anywhere": (runpy, "run_path"),
}
FLAGS = (
    "--world operators=+,max_operations=2 --pretrain_steps 40 --steps 12 --save_every 2 "
    "--eval_every 3 --batch_size 8 --group_size 4 --eval_problems 8 --max_new_tokens 12 "
    "--learning_rate 0.01 --threads 1"
)
RUNS = (
    "--method sdpo --teacher_update_rate 0.3",
    "--method grpo --updates_per_batch 2",
    "--method sft_then_sdpo --warm_start_steps 3 --teacher trust_region --teacher_update_rate 0.3",
    "--method rlvr_teacher --adapt_steps 3 --train_problems 0",
)
# Keys of metrics.jsonl and summary.json that no two runs have in common.
TIMES = {"tokens_per_s", "step_ms", *storage.SPENT}


def outcome(folder: Path) -> dict:
    """All that a run leaves, seconds aside: weights, metrics, summary, names of the files."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    weights = torch.load(folder / "student.pt", weights_only=True)["weights"]
    return {
        "weights": {name: tensor.tolist() for name, tensor in weights.items()},
        "metrics": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "summary": {k: v for k, v in summary.items() if k not in TIMES},
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
    }


def child(arguments: list[str], phase: str = "", call: int = 0, delay_s: float = 0.0) -> None:
    """The command in this process, which kills itself delay_s after the phase's n-th beginning.

    Without a phase: writes the seconds of every call of every phase to standard output at the end.
    """
    seconds: dict[str, list[float]] = {name: [] for name in PHASES}

    def kill() -> None:
        time.sleep(delay_s)
        os.kill(os.getpid(), signal.SIGKILL)

    def watched(name: str, function: Callable) -> Callable:
        def call_and_measure(*args, **kwargs):
            if name == phase and len(seconds[name]) == call:
                threading.Thread(target=kill, daemon=True).start()
            start, i = time.perf_counter(), len(seconds[name])
            seconds[name].append(0.0)
            result = function(*args, **kwargs)
            seconds[name][i] = time.perf_counter() - start
            return result

        return call_and_measure

    for name, (module, function) in PHASES.items():
        setattr(module, function, watched(name, getattr(module, function)))
    sys.argv = ["train_gpt.py", *arguments]
    runpy.run_path(str(ROOT / "train_gpt.py"), run_name="__main__")
    print(json.dumps(seconds))


def start(arguments: list[str], *kill_at) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "lab.kill_and_resume"]
    words += ["--child", json.dumps([arguments, *kill_at])]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT)


def trial(i: int, rng: random.Random, references: list, folder: Path) -> str:
    """What was done and how the result differs; begins with `same` if it does not."""
    flags, reference, seconds, cache = references[i % len(RUNS)]
    phase = list(PHASES)[i // len(RUNS) % len(PHASES)]
    call = rng.randrange(len(seconds[phase]))
    delay_s = rng.uniform(0, seconds[phase][call])
    base_folder = folder / "base"
    if phase != "pretraining":
        shutil.copytree(cache, base_folder)
        if phase == "saving":  # the first calls of the uninterrupted run saved base models
            call = rng.randrange(len(seconds[phase]) - len(list(cache.glob("*.pt"))))
    out = str(folder / "run")
    arguments = [*flags, "--out_dir", out, "--cache_dir", str(base_folder)]
    while (killed := start(arguments, phase, call, delay_s)).returncode == 0:
        shutil.rmtree(folder / "run")  # it had ended before the signal: again, and sooner
        if phase == "pretraining":
            shutil.rmtree(base_folder)
        delay_s /= 2
    where = f"{phase}, call {call + 1}, {1000 * delay_s:.0f} ms"
    if killed.returncode != -signal.SIGKILL:
        return f"FAILED before the kill in {where}: {killed.stderr[-300:]}"
    begun = (folder / "run" / "config.json").exists()
    again = start(["--resume", out] if begun else arguments)
    if again.returncode:
        return f"FAILED to resume after {where}: {again.stderr[-300:]}"
    after = [line for line in again.stdout.splitlines() if line.startswith("going on")]
    found = outcome(folder / "run")
    differing = [name for name in reference if found[name] != reference[name]]
    how = after[0] if after else "started over" if begun else "nothing had been written"
    return f"{'DIFFERENT ' + ', '.join(differing) if differing else 'same'}: {where}; {how}"


def main(argv: list[str]) -> None:
    parser = OneLineParser(prog="python -m lab.kill_and_resume", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--trials", type=int, default=20, help="kills (default: 20)")
    parser.add_argument("--child", type=json.loads, default=None, help="for its own use")
    options = parser.parse_args(argv)
    if options.child:
        return child(*options.child)
    rng, passed = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as name:
        scratch, references = Path(name), []
        for i, run in enumerate(RUNS):
            flags, folder = f"{FLAGS} {run}".split(), scratch / f"reference-{i}"
            where = ["--out_dir", str(folder / "run"), "--cache_dir", str(folder / "base")]
            done = start([*flags, *where])
            if done.returncode:
                raise ValueError(f"uninterrupted run failed: {done.stderr[-500:]}")
            seconds = json.loads(done.stdout.splitlines()[-1])
            references.append((flags, outcome(folder / "run"), seconds, folder / "base"))
        for i in range(options.trials):
            result = trial(i, rng, references, scratch / f"trial-{i}")
            passed += result.startswith("same")
            print(f"{i + 1:2} {RUNS[i % len(RUNS)].split()[1]:14} {result}", flush=True)
    print(f"{passed} of {options.trials}")
    sys.exit(passed != options.trials)


if __name__ == "__main__":
    run_main("python -m lab.kill_and_resume", main)
