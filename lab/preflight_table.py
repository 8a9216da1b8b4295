"""Does the forecast hold on real weights? Settings are predicted, then trained, then compared.

python -m lab.preflight_table --init out/smollm2-135m --predict   # before any run: preflight.json
python -m lab.preflight_table --init out/smollm2-135m             # then the runs, preflight.md

A setting is a context, a data set, a method and a warm start. Warm starts imitate the references of
lab/data/word_problems.jsonl, in which half of the solutions say the answer at once and half work
and check; in the data sets `sure` and `careful` all do the one or the other. What is written is
never made again, and finished runs are not repeated.
"""

import argparse
import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lab import forecast, preflight_law, runs
from lab.base import progress
from lab.evaluation import evaluate
from lab.flags import OneLineParser, out_folder, run_main
from lab.forecast import HINTED, LAWS, NOW, token_classes
from lab.measures.formulas import mean_and_error
from lab.preflight_law import LAW, MOVED, NUMBERS, OPERATORS, record_of, verdict
from lab.preflight_subject import Subject, parse, subject_of
from lab.report import save_figure
from lab.storage import read_summary, write_atomically, write_json
from lab.timing import table
from lab.word_problems import DOUBTS, worked

# 1. Settings --------------------------------------------------------------------------------------
DATA = Path(__file__).parent / "data" / "word_problems.jsonl"
FOLDER = "out/preflight-table"
FRESH = 77  # fresh problems of that file
SHARED = (
    "--dtype bfloat16 --batch_size 16 --group_size 1 --max_new_tokens 96 --micro_batch 8 "
    f"--eval_problems {FRESH} --save_every 0 --threads 1 --learning_rate 1e-4").split()


@dataclass(frozen=True)
class Setting:
    """A run that is predicted before it begins."""

    context: str
    data: str  # mixed, sure or careful
    method: str = "sdpo"
    warm: int = 24  # steps of the warm start; 0: the checkpoint as it is
    steps: int = 16

    @property
    def name(self) -> str:
        return f"{self.context}-{self.data}-{self.method}-{self.warm}"


SETTINGS = (
    Setting("solution", "sure"), Setting("solution", "careful"), Setting("solution", "mixed"),
    Setting("answer", "mixed"), Setting("other_problem", "careful"),
    Setting("solution", "sure", "opsd"), Setting("solution", "sure", warm=12),
    Setting("wrong", "mixed"),
)
CLASSES = {  # patterns of tokens that share a class; the first row was chosen
    "chosen": (NUMBERS, OPERATORS), "numbers alone": (NUMBERS,),
    "one class of words": (NUMBERS, OPERATORS, r"(?s).*"),
}
CHOSEN = "corrected, chosen classes"
ALL_CLASSES = 2  # settings
VARIANTS = {  # name: (law, classes)
    CHOSEN: (LAW, "chosen"), "corrected, numbers alone": (LAW, "numbers alone"),
    "corrected, one class of words": (LAW, "one class of words"),
}


def write_data(folder: Path) -> dict[str, Path]:
    """Files of the same problems, all of whose solutions are of one manner, and the mixed one."""
    rows, files = [json.loads(line) for line in DATA.read_text().splitlines()], {"mixed": DATA}
    for name, doubts in (("sure", (None,)), ("careful", DOUBTS)):
        lines = [json.dumps(row | {"solution": rewritten(row["prompt"], doubts[i % len(doubts)])})
                 for i, row in enumerate(rows)]
        files[name] = folder / f"{name}.jsonl"
        write_atomically(files[name], lambda path, lines=lines: path.write_text("\n".join(lines)))
    return files


def rewritten(prompt: str, doubt: str | None) -> str:
    """The solution of a problem of `lab.word_problems` in another manner."""
    name, first, thing = re.match(r"(\w+) has (\d+) (\w+) and ", prompt).groups()
    events = re.findall(r"(finds|gets|buys|gives away|loses|sells) (\d+)", prompt)
    signs = {"finds": 1, "gets": 1, "buys": 1}
    changes = [signs.get(verb, -1) * int(size) for verb, size in events]
    return worked(name, thing, int(first), changes, doubt)


@dataclass
class Place:
    """Where everything is."""

    init: str
    folder: Path
    data: dict[str, Path]

    def start(self, setting: Setting) -> str:
        """The checkpoint that a setting begins with."""
        warm = self.folder / f"warm-{setting.warm}" / "checkpoint"
        return str(warm) if setting.warm else self.init

    def warm_up(self, steps: int) -> list[str]:
        words = ["--method", "seq_kd", "--off_policy", "data", "--init", self.init, "--data",
                 str(DATA), "--steps", str(steps), "--eval_every", str(steps), *SHARED]
        return ["train_gpt.py", *words, "--out_dir", str(self.folder / f"warm-{steps}")]

    def command(self, s: Setting) -> list[str]:
        words = ["--method", s.method, "--context", s.context, "--init", self.start(s), "--data",
                 str(self.data[s.data]), "--steps", str(s.steps), "--eval_every", str(s.steps)]
        return ["train_gpt.py", *words, *SHARED, "--out_dir", str(self.folder / s.name)]


def once(words: list[str]) -> None:
    """A run, which is made if there is none."""
    if not (Path(words[-1]) / "summary.json").exists():
        runs.run_command(words)


# 2. Predictions -----------------------------------------------------------------------------------


def looked_at(checkpoint: str, data: Path, *more: str) -> Subject:
    """A checkpoint with its task, at the sizes of the runs."""
    words = ["--init", checkpoint, "--data", str(data), "--dtype", "bfloat16", "--threads", "1",
             "--micro_batch", "8", "--max_new_tokens", "96", *more]
    return subject_of(*parse(words, "python -m lab.preflight_table", ""))


def predicted(place: Place, s: Setting) -> dict:
    """What the law says of fresh problems, from samples before the first step.

    Other classes of tokens are tried on the settings of ALL_CLASSES alone, since they take time.
    """
    variants = VARIANTS if s in SETTINGS[:ALL_CLASSES] else {CHOSEN: VARIANTS[CHOSEN]}
    subject = looked_at(place.start(s), place.data[s.data], "--method", s.method, "--context",
                        s.context)
    for name, (law, classes) in variants.items():
        forecast.LAWS[name] = with_classes(law, token_classes(subject.words, CLASSES[classes]))
    look = subject.look(s.context, tuple(variants))
    values = forecast.samples_of(look, "fresh", FRESH, seed=0)
    means = {name: value.mean().item() for name, value in values.items()}
    change, error = mean_and_error(values[f"{CHOSEN}_accuracy_frac"] - values[NOW])
    half = 2 * math.hypot(error, preflight_law.track_record(False)["error_frac"])
    return dataclasses.asdict(s) | {
        "now_fresh": means[NOW], "hinted_fresh": means[HINTED],
        "predicted_fresh": means[f"{CHOSEN}_accuracy_frac"], "half_width_frac": half,
        "verdict": verdict(change, half),
        "now_markers": means["student_markers_per_completion"],
        "hinted_markers": means["teacher_markers_per_completion"],
        "predicted_markers": means[f"{CHOSEN}_markers_per_completion"],
        "variants": {name: means[f"{name}_accuracy_frac"] for name in variants}}


def with_classes(law: str, classes: Tensor) -> Callable:
    """A law with classes of its own, whatever the others have."""
    return lambda student, teacher, _, law=LAWS[law]: law(student, teacher, classes)


# 3. Measurements ----------------------------------------------------------------------------------
TRIES = 4  # completions of each fresh problem
MEASURED = {"before_fresh", "after_fresh", "greedy_before_fresh", "greedy_after_fresh",
            "change_se_frac"}


@functools.cache
def right_frac(checkpoint: str) -> Tensor:
    """How often a checkpoint is right on each fresh problem of DATA, (FRESH,), on one chance."""
    x = looked_at(checkpoint, DATA)
    found = evaluate(x.task, x.student, "fresh", count=TRIES * FRESH, seed=0, sizes=x.sizes(1, 1))
    return torch.tensor(found.rewards).view(TRIES, FRESH).mean(0)


def measured(place: Place, s: Setting) -> dict:
    """Accuracy on fresh problems before and after a run, which is made if there is none."""
    command = place.command(s)
    once(command)
    before = right_frac(place.start(s))
    after = right_frac(str(Path(command[-1]) / "checkpoint"))
    greedy, found = read_summary(Path(command[-1])), {}
    for when, x in (("before", before), ("after", after)):
        found[f"{when}_fresh"] = x.mean().item()
        found[f"greedy_{when}_fresh"] = greedy[when]["fresh"]["accuracy_frac"]
    return found | {"change_se_frac": mean_and_error(after - before)[1]}


# 4. Table and picture -----------------------------------------------------------------------------
HEAD = """# Preflight on real weights

{count} settings of SmolLM2-135M-Instruct on lab/data/word_problems.jsonl, each predicted before the
first of them was trained (`python -m lab.preflight_table --init out/smollm2-135m`).

A warm start is so many steps of imitation of references, half of which say the answer at once and
half work and check. The data set `mixed` is that file; in `sure` and `careful` the same problems
have solutions of the one and of the other kind. All is about {fresh} fresh problems: `now`, `with
the hint` and the law have one sample of each before the run, `measured` has {tries} samples of each
at temperature 1, before the run and after it, on the same chance. Intervals are two standard
errors; that of a prediction holds the law's own error in the toy. `greedy` is what the run itself
reports, from its likeliest tokens, before and after.

"""
RIVALS = {"nothing will change": "now_fresh", "accuracy with the hint": "hinted_fresh"}
COLUMNS = ("context", "data", "method", "warm start", "now", "with the hint", "predicted",
           "verdict", "measured", "measured change", "greedy")


def report(points: list[dict]) -> str:
    """preflight.md: predicted against measured, whatever came out."""
    rows = []
    for p in points:
        change, after, last = p["predicted_fresh"] - p["now_fresh"], p.get("after_fresh"), []
        if after is not None:
            last = [f"{p['before_fresh']:.2f} -> {after:.2f}",
                    f"{after - p['before_fresh']:+.2f} +- {2 * p['change_se_frac']:.2f}",
                    f"{p['greedy_before_fresh']:.2f} -> {p['greedy_after_fresh']:.2f}"]
        rows.append((p["context"], p["data"], p["method"], p["warm"], f"{p['now_fresh']:.2f}",
                     f"{p['hinted_fresh']:.2f}",
                     f"{p['predicted_fresh']:.2f} ({change:+.2f} +- {p['half_width_frac']:.2f})",
                     p["verdict"], *(last or ("not run yet", "", ""))))
    head = HEAD.format(count=len(points), fresh=FRESH, tries=TRIES)
    lines = [head + table(COLUMNS, rows), ""]
    done = [p for p in points if p.get("after_fresh") is not None]
    if not done:
        return "\n".join([*lines, "None of the runs has been made yet.", "",
                          *classes_words(points), ""])
    records = []
    for name, key in ({"law, corrected": "predicted_fresh"} | RIVALS).items():
        x = record_of([(p[key] - p["now_fresh"], p["after_fresh"] - p["before_fresh"])
                       for p in done])
        records.append((name, f"{x['error_frac']:.3f}", f"{x['signs_frac']:.0%} of {x['moved']}"))
    names = ("forecast of the change", "root mean square error", "right sign")
    told = [p for p in done if p["verdict"].startswith("likely")]
    lines += [f"{len(done)} of {len(points)} have been run. A measured change above {MOVED} has a "
              "sign.", "", table(names, records), "", verdict_words(told), ""]
    return "\n".join([*lines, *classes_words(points), ""])


def classes_words(points: list[dict]) -> list[str]:
    """How much hangs on the classes of tokens, where several were tried."""
    lines = ["What hangs on the classes of tokens, by what the corrected law then predicts:", ""]
    for p in points:
        if len(p["variants"]) > 1:
            cells = (f"{name.removeprefix('corrected, ')} {x:.2f}"
                     for name, x in p["variants"].items())
            lines.append(f"- {p['context']}, {p['data']}, {p['method']}: {', '.join(cells)}")
    return lines


def verdict_words(told: list[dict]) -> str:
    if not told:
        return "All verdicts were `cannot tell`: nothing was promised."
    held = [(p["after_fresh"] > p["before_fresh"]) == ("help" in p["verdict"]) for p in told]
    return f"Verdicts other than `cannot tell`: {len(told)}, of which {sum(held)} came true."


def draw(path: Path, points: list[dict]) -> None:
    """preflight.png: the change of accuracy on fresh problems as predicted and as measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.5 * len(points)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=1)
    for i, p in enumerate(reversed(points)):
        predicted, measured = (p["predicted_fresh"] - p["now_fresh"],
                               p["after_fresh"] - p["before_fresh"])
        for y, x, half, colour, name in (
            (i + 0.12, predicted, p["half_width_frac"], "C1", "predicted before the run"),
            (i - 0.12, measured, 2 * p["change_se_frac"], "C0", "measured"),
        ):
            label = {"label": name} if i == 0 else {}
            axes.errorbar(x, y, xerr=half, fmt="o", color=colour, capsize=3, **label)
    names = [f"{p['context']}, {p['data']} data, {p['method']}, {p['warm']} warm steps"
             for p in reversed(points)]
    axes.set_yticks(range(len(points)), names)
    figure.suptitle("SmolLM2-135M: accuracy on fresh problems after self-distillation, less before")
    axes.set_xlabel("change (fraction of problems), with two standard errors")
    axes.legend(loc="best")
    save_figure(path, figure)


# 5. Command line ----------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    given = settings_of(arguments)
    folder = Path(given.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    place, path = Place(given.init, folder, write_data(folder)), folder / "preflight.json"
    points = known_points(path)
    for s in progress(SETTINGS, "predictions"):
        if s.name not in points:
            if s.warm:
                once(place.warm_up(s.warm))
            points[s.name] = predicted(place, s)
            save(path, points)
            print(f"predicted: {s.name} {points[s.name]['predicted_fresh']:.2f}", flush=True)
    if given.predict:
        return print(f"written: {path}, {len(points)} predictions")
    for s in progress(SETTINGS, "runs"):
        if "after_fresh" in points[s.name]:
            continue
        found = measured(place, s)
        points[s.name] |= found
        save(path, points)
        print(f"measured: {s.name} {found['before_fresh']:.2f} -> {found['after_fresh']:.2f}",
              flush=True)
    print(f"{report(list(points.values()))}\nwritten: {path}, preflight.md, preflight.png")


def settings_of(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m lab.preflight_table", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", default="out/smollm2-135m", help="default: out/smollm2-135m")
    parser.add_argument("--out_dir", default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument(
        "--predict", action="store_true", default=False, help="stop before the runs")
    given = parser.parse_args(arguments)
    if not (Path(given.init) / "config.json").is_file():
        words = "allowed: a checkpoint's folder, as `python -m lab.smollm2` makes it"
        raise ValueError(f"--init: {given.init!r}; {words}")
    out_folder(given.out_dir)
    return given


def known_points(path: Path) -> dict[str, dict]:
    """What is predicted or measured already, by the name of the setting. Raises ValueError."""
    if not path.exists():
        return {}
    try:
        points = {Setting(**{f.name: p[f.name] for f in dataclasses.fields(Setting)}).name: p
                  for p in json.loads(path.read_text())["points"]}
        for p in points.values():
            if not p.keys() >= MEASURED:  # of an older version: measured anew
                for name in MEASURED:
                    p.pop(name, None)
        report(list(points.values()))  # it looks at all that a point must have
    except (ValueError, KeyError, TypeError, AttributeError):
        words = "has other predictions; allowed: another folder"
        raise ValueError(f"--out_dir: {str(path)!r} {words}") from None
    return points


def save(path: Path, points: dict[str, dict]) -> None:
    rows = list(points.values())
    write_json(path, {"points": rows})
    write_atomically(path.with_suffix(".md"), lambda p: p.write_text(report(rows)))
    if done := [p for p in rows if p.get("after_fresh") is not None]:
        draw(path.with_suffix(".png"), done)


if __name__ == "__main__":
    run_main("python -m lab.preflight_table", main)
