"""What the toy found, on real weights: a published model, warmed up, then trained by each method.

python -m lab.smollm2 && python -m lab.real --workers 2    # seven rows, three seeds: 90 minutes
python -m lab.real sdpo grpo --seeds 1 --steps 10  # these alone; other flags go to all runs

`base` is SmolLM2-135M after supervised steps on worked answers in two manners, at once and step by
step with a word of doubt: untuned it hardly ever ends an answer. Every method starts from it, so
that intervals are over seeds of the training alone. Every run is a command of its own, printed as
one can paste it; finished ones are never repeated. Writes real.json, real.md and real.png to
--out_dir.
"""

import argparse
import contextlib
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab import hf
from lab.flags import OneLineParser, run_main
from lab.measures.prefixes import PREFIX_FRACS
from lab.report import save_figure
from lab.runs import Flags, Start, in_parallel, joined, own_and_passed, paste_ready
from lab.statistics import mean_and_interval
from lab.storage import write_atomically, write_json
from minisd import METHODS

# The last two: the best fixes of lab/results/arena.md that train_gpt.py can run, by the mean score
# of both worlds, with a policy gradient and without.
ROWS = {name: {"--method": name}
        for name in ("sft", "opsd", "sdpo", "grpo", "sdpo_grpo", "dr_grpo")}
ROWS["bregman_clip"] = {"--method": "opsd", "--divergence": "bregman_clipped_forward_kl"}
SHARED = {"--max_new_tokens": "64", "--threads": "1", "--save_every": "0",
          "--dtype": hf.fast_dtype()}
# It leads to .38 on fresh problems; aimed at is .3 to .7, where things can rise and fall.
WARM = {"--method": "seq_kd", "--off_policy": "data", "--steps": "60", "--learning_rate": "1e-4",
        "--batch_size": "16", "--group_size": "1", "--micro_batch": "16", "--eval_every": "15",
        "--eval_problems": "32", "--seed": "9"}
# The measures look at more problems than the runs' own evaluations do.
TRAINED = {"--steps": "30", "--batch_size": "8", "--group_size": "4", "--micro_batch": "8",
           "--eval_every": "30", "--eval_problems": "8"}
REFUSED = dict.fromkeys(("--method", "--seed", "--resume"), "methods are words, --seeds a number")
Numbers = dict[str, list[dict]]  # by row: of each seed what lab.real_measures has written; of base
# the same for every seed


@dataclass(frozen=True)
class Finding:
    """A sentence about the toy, and the number that is above 0 wherever it is true.

    predicted: "holds", "opposite" or "cannot tell", written down before the first run.
    """

    sentence: str
    effect: Callable[[dict[str, dict]], float]  # of the rows of one seed
    predicted: str
    why: str


def fallen(row: str, split: str, name: str) -> Callable[[dict[str, dict]], float]:
    """How far a measure is below that of base."""
    return lambda rows: rows["base"][split][name] - rows[row][split][name]


FINDINGS = [
    Finding("Self-distillation (sdpo) takes the words of doubt away.",
            fallen("sdpo", "fresh", "doubt_frac"), "cannot tell",
            "half of the solutions shown have such words, and the teacher copies them"),
    Finding("It costs accuracy on fresh problems.",
            fallen("sdpo", "fresh", "accuracy_frac"), "cannot tell",
            "the manner of the solutions is the student's own"),
    Finding("It makes completions shorter.",
            fallen("sdpo", "fresh", "completion_tokens"), "cannot tell", "the same reason"),
    Finding("It gains on its training problems.",
            lambda rows: -fallen("sdpo", "train", "accuracy_frac")(rows), "cannot tell",
            "288 problems are met twice at most in 30 steps"),
    Finding("GRPO is ahead of sdpo on fresh problems.",
            lambda rows: (rows["grpo"]["fresh"]["accuracy_frac"]
                          - rows["sdpo"]["fresh"]["accuracy_frac"]), "holds",
            "it can choose the better of two manners"),
    Finding("GRPO keeps more doubt than sdpo.",
            lambda rows: (rows["grpo"]["fresh"]["doubt_frac"]
                          - rows["sdpo"]["fresh"]["doubt_frac"]), "holds",
            "steps with a check are right more often than answers at once"),
    Finding("Imitating the hinted model's right samples (sft) costs accuracy on fresh problems.",
            fallen("sft", "fresh", "accuracy_frac"), "cannot tell", "as for sdpo"),
    Finding("The hinted teacher is worse the further it goes on from the student's own prefix.",
            lambda rows: (rows["sdpo"]["teacher_by_prefix"][0]
                          - rows["sdpo"]["teacher_by_prefix"][-1]), "holds",
            "a wrong number stands there already"),
    Finding("Advantages without std (dr_grpo) are ahead of grpo on fresh problems.",
            lambda rows: (rows["dr_grpo"]["fresh"]["accuracy_frac"]
                          - rows["grpo"]["fresh"]["accuracy_frac"]), "cannot tell",
            "in the arena neither is ahead in both worlds, and three seeds spread more"),
    Finding("The Bregman clip is ahead of opsd on fresh problems.",
            lambda rows: (rows["bregman_clip"]["fresh"]["accuracy_frac"]
                          - rows["opsd"]["fresh"]["accuracy_frac"]), "cannot tell",
            "at .12 nats a token the clip acts on few tokens"),
]


def main(argv: list[str]) -> None:
    settings, given = settings_of(argv)
    folder, seeds = Path(settings.out_dir), range(settings.seeds)
    warm = warm_command(settings, given)
    # Seed by seed: whatever is cut off, the rows have equally many.
    jobs = [("base", None), *((row, seed) for seed in seeds for row in settings.methods)]
    trained = [row_command(settings, given, row, seed) for row, seed in jobs[1:]]
    print("\n".join(map(paste_ready, (warm, *trained))), flush=True)
    if not settings.measured_only:
        in_parallel([lambda start: start(warm)], 1, "base")
        in_parallel([functools.partial(measured, settings, given, *job) for job in jobs],
                    settings.workers)
    numbers = read_numbers(folder, settings.methods, list(seeds))
    write_json(folder / "real.json", numbers)
    text = page(numbers)
    write_atomically(folder / "real.md", lambda path: path.write_text(text))
    draw(folder / "real.png", numbers)
    print(f"{text}\nwritten: {folder / 'real.md'}, {folder / 'real.json'}, {folder / 'real.png'}")


def settings_of(argv: list[str]) -> tuple[argparse.Namespace, Flags]:
    """The settings of this command, and the flags for all runs. Raises ValueError."""
    parser = OneLineParser(
        prog="python -m lab.real", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=[],
                        help=f"methods, or bregman_clip; default: {' '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--count", type=int, default=72, help="problems of a split (default: 72)")
    parser.add_argument("--measured_only", action="store_true", default=False,
                        help="starts nothing: table and picture of what is there")
    settings, given = own_and_passed(
        parser, argv, limits={"seeds": (1, 1000), "count": (1, 10_000)}, refused=REFUSED,
        out_dir="out/real", switches=("measured_only",))
    settings.methods = list(dict.fromkeys(settings.methods or ROWS))
    for name in settings.methods:
        if name not in METHODS and name not in ROWS:
            raise ValueError(f"method: {name!r}; allowed: {', '.join({**METHODS, **ROWS})}")
    settings.init = given.pop("--init", "out/smollm2-135m")
    settings.data = given.pop("--data", "lab/data/word_problems.jsonl")
    if not Path(settings.init).is_dir():
        words = "allowed: a checkpoint's folder, such as python -m lab.smollm2 makes"
        raise ValueError(f"--init: {settings.init!r} is not there; {words}")
    if not Path(settings.data).is_file():
        raise ValueError(f"--data: {settings.data!r} is not there; allowed: a JSONL file")
    return settings, given


# Commands -----------------------------------------------------------------------------------------


def run_folder(settings: argparse.Namespace, row: str, seed: int | None) -> Path:
    return Path(settings.out_dir) / name_of(row, seed)


def name_of(row: str, seed: int | None) -> str:
    return row if row == "base" else f"{row}-{seed}"


def warm_command(settings: argparse.Namespace, given: Flags) -> list[str]:
    """The run that makes the base; of the flags for all runs it has those of SHARED."""
    own = {name: value for name, value in given.items() if name in SHARED}
    return command_of(settings, "base", None, settings.init, WARM | SHARED | own)


def row_command(settings: argparse.Namespace, given: Flags, row: str, seed: int) -> list[str]:
    start = str(run_folder(settings, "base", None) / "checkpoint")
    flags = ROWS.get(row, {"--method": row}) | {"--seed": str(seed)} | SHARED | TRAINED | given
    return command_of(settings, row, seed, start, flags)


def command_of(
    settings: argparse.Namespace, row: str, seed: int | None, init: str, flags: Flags
) -> list[str]:
    flags = flags | {"--init": init, "--data": settings.data}
    return ["train_gpt.py", *joined(flags), "--out_dir", str(run_folder(settings, row, seed))]


def numbers_path(folder: Path, row: str, seed: int | None) -> Path:
    return folder / "measures" / f"{name_of(row, seed)}.json"


def measured(
    settings: argparse.Namespace, given: Flags, row: str, seed: int | None, start: Start
) -> None:
    """Trains a row from the base, unless it is that, and measures what came out."""
    if row != "base":
        start(row_command(settings, given, row, seed))
    out = numbers_path(Path(settings.out_dir), row, seed)
    if out.exists():
        return
    flags = SHARED | given
    checkpoints = {name: str(run_folder(settings, of, seed) / "checkpoint")
                   for name, of in (("--student", row), ("--start", "base"))}
    start(["-m", "lab.real_measures", *joined(checkpoints), "--data", settings.data,
           "--dtype", flags["--dtype"], "--max_new_tokens", flags["--max_new_tokens"],
           "--count", str(settings.count), "--out", str(out)])


def read_numbers(folder: Path, rows: list[str], seeds: list[int]) -> Numbers:
    """What is there of each row, whatever was cut off. Raises ValueError if base is missing."""
    numbers = {}
    for row in ("base", *rows):
        paths = {seed: numbers_path(folder, row, seed) for seed in seeds}
        found = [json.loads(path.read_text()) | {"seed": seed}
                 for seed, path in paths.items() if path.exists()]
        if found:
            numbers[row] = found
    if "base" not in numbers:
        words = "has no base that was measured; allowed: run it first"
        raise ValueError(f"--out_dir: {str(folder)!r} {words}")
    return numbers


# What came out ------------------------------------------------------------------------------------

COLUMNS = {  # heading: number of a seed's row
    "fresh": lambda x: x["fresh"]["accuracy_frac"],
    "train": lambda x: x["train"]["accuracy_frac"],
    "doubt": lambda x: x["fresh"]["doubt_frac"],
    "tokens": lambda x: x["fresh"]["completion_tokens"],
    "cut": lambda x: x["fresh"]["cut_frac"],
    "KL to own hint": lambda x: x["kl_own_hint"],
    "KL to hinted base": lambda x: x["kl_start_hint"],
}


def shown(summary: dict, digits: int = 2) -> str:
    """Mean and interval in words."""
    spread = "" if summary["low"] is None else " [{low:.{d}f}, {high:.{d}f}]"
    return ("{mean:.{d}f}" + spread).format(**summary, d=digits)


def verdict(effect: dict) -> str:
    """holds or opposite, if the interval of the effect leaves out 0; else cannot tell."""
    if effect["low"] is None or effect["low"] <= 0 <= effect["high"]:
        return "cannot tell"
    return "holds" if effect["low"] > 0 else "opposite"


def judged(numbers: Numbers) -> list[tuple[Finding, dict, str]]:
    """The findings whose rows are there, their effect over the seeds of these, and the verdict."""
    found = []
    for finding in FINDINGS:
        effects = []
        for base in numbers["base"]:
            rows = {row: x for row, of in numbers.items() for x in of if x["seed"] == base["seed"]}
            with contextlib.suppress(KeyError):  # a row that this seed lacks
                effects.append(finding.effect(rows))
        if effects:
            effect = mean_and_interval(effects)
            found.append((finding, effect, verdict(effect)))
    return found


def by_prefix(numbers: Numbers, row: str) -> dict[str, list[dict]]:
    """Accuracy of the base behind a row's prefixes, with the solution and without, by length."""
    kinds = {"solution in view": "teacher_by_prefix", "no hint": "unhinted_by_prefix"}
    found = numbers[row][:1] if row == "base" else numbers[row]
    return {label: [mean_and_interval(list(c)) for c in zip(*(x[key] for x in found))]
            for label, key in kinds.items()}


def page(numbers: Numbers) -> str:
    """real.md: the table, the findings, the teacher by position."""
    lines = ["# The toy's findings on real weights", "",
             "SmolLM2-135M after a warm start (`base`), then 30 steps of each method; problems in",
             "words, greedy; means over seeds with 95 % intervals. `python -m lab.real`.", "",
             f"| | seeds | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row, found in numbers.items():
        found = found[:1] if row == "base" else found
        cells = [shown(mean_and_interval([f(x) for x in found]), 1 if name == "tokens" else 2)
                 for name, f in COLUMNS.items()]
        lines.append(f"| {row} | {len(found)} | {' | '.join(cells)} |")
    lines += ["", "fresh, train: accuracy on problems never trained on, and on training problems.",
              "doubt: share of completions with `wait`, `hmm` or `let me check`. cut: share that",
              "reached the limit. KL(student || teacher) per token, in nats: the teacher is the",
              "row's own model with the solution in view, or the base with it.", "",
              "![accuracy, doubt, and the teacher by position](real.png)", "",
              "## What holds", "",
              "| finding in the toy | predicted | found | effect | seeds |", "|---" * 5 + "|"]
    for finding, effect, found in judged(numbers):
        lines.append(f"| {finding.sentence} | {finding.predicted}: {finding.why} "
                     f"| **{found}** | {shown(effect)} | {effect['n']} |")
    lines += ["", "## Right after a prefix of the student's", "",
              "The base goes on from the first tokens of completions of fresh problems, which each",
              "row's student has written:", "",
              f"| | {' | '.join(f'{frac:.0%}' for frac in PREFIX_FRACS)} |",
              "|---" * (len(PREFIX_FRACS) + 1) + "|"]
    for row in numbers:
        for label, summaries in by_prefix(numbers, row).items():
            lines.append(f"| {row}, {label} | {' | '.join(map(shown, summaries))} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, numbers: Numbers) -> None:
    """real.png: accuracy and doubt by row, a dot for each seed; the teacher by position."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    figure.suptitle("A published model, before and after each method; a dot for each seed")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    for axes, columns in ((left, ("fresh", "train")), (middle, ("doubt",))):
        width = 0.8 / len(columns)
        for i, name in enumerate(columns):
            for j, found in enumerate(numbers.values()):
                values = [COLUMNS[name](x) for x in found]
                x = j + (i - (len(columns) - 1) / 2) * width
                axes.bar(x, sum(values) / len(values), width * 0.92, color=f"C{i}", alpha=0.6,
                         label=f"{name} problems" if j == 0 else None)
                axes.plot([x] * len(values), values, "o", color="black", markersize=3)
        axes.set_xticks(range(len(numbers)), list(numbers), rotation=35, ha="right")
        axes.set_ylim(0, 1.04)
    left.set_title("right answers")
    left.legend()
    middle.set_title("completions with a word of doubt")
    for label, summaries in by_prefix(numbers, "base").items():
        right.plot(PREFIX_FRACS, [s["mean"] for s in summaries], "o-", label=label)
    right.set_title("base, going on from its own first tokens")
    right.set_xlabel("share of the completion that stands already")
    right.set_ylabel("right answers")
    right.set_ylim(0, 1)
    right.legend()
    save_figure(path, figure)


if __name__ == "__main__":
    run_main("python -m lab.real", main)
