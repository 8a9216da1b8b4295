"""The forecasts of the claim `forecast` against what happened, all universes together.

python -m lab.claims forecasts --predict     # before any training: forecasts.json
python -m lab.claims forecasts               # then the runs: forecasts.md and .png as well

Predictions are written before the first run begins, and what is written is never made again. Rivals
that have no scale of accuracy, such as a KL, are given the straight line that fits these points
best, an advantage that the laws do not have.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

from lab.claims import forecast
from lab.claims.forecast import CASES, name_of
from lab.claims.runs import Run, arm_numbers, run_all, runs_of
from lab.claims.statements import Runs, at, number
from lab.claims.universes import UNIVERSES, as_dict
from lab.flags import OneLineParser
from lab.report import save_figure
from lab.runs import Flags, own_and_passed
from lab.statistics import slope_and_fit
from lab.storage import write_atomically, write_json

REFUSED = {  # flag: why not
    "--method": "see the arms", "--init": "all are in the toy", "--data": "all are in the toy",
    "--resume": "the same command goes on", "--seed": "it is the number of the universe",
}
LAWS = ("corrected", "transplant")
NOW = "nothing will change"
TEACHER = "accuracy of the hinted teacher"
RIVALS = {  # name: of the table of fresh problems; a line is fitted to what changes
    "initial gap": "initial_gap_frac",
    "KL(student || teacher) per token": "reverse_kl_per_token",
    "entropy lost under the context, per completion": "entropy_drop_per_completion",
    "markers lost under the context": "marker_change_per_completion",
}
MOVED = 0.05  # a smaller change has no sign that matters
WORST = 6  # points that are listed


def main(arguments: list[str]) -> None:
    settings, given = settings_of(arguments)
    folder = Path(settings.out_dir)
    path = folder / "forecasts.json"
    forecasts, trained = ({(u.number, case): runs_of(forecast.ARMS[arm(case)], given, u, folder)
                           for u in UNIVERSES for case in CASES} for arm in (name_of, str))
    finished(forecasts, settings.workers)
    points = [predicted(place, runs, given) for place, runs in forecasts.items()]
    if path.exists():
        refuse_others(path, points)
    else:
        write_json(path, points)
    if settings.predict:
        return print(f"written: {path}, {len(points)} predictions")
    finished(trained, settings.workers)
    points = [point | measured(forecasts, trained, point) for point in points]
    write_json(path, points)
    text = report(points)
    write_atomically(folder / "forecasts.md", lambda p: p.write_text(text))
    draw(folder / "forecasts.png", points)
    print(f"{text}\nwritten: {path}, forecasts.md, forecasts.png")


def settings_of(arguments: list[str]) -> tuple[argparse.Namespace, Flags]:
    """The settings of this command, and the flags for all runs."""
    parser = OneLineParser(
        prog="python -m lab.claims forecasts", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--predict", action="store_true", default=False, help="stop before the runs")
    return own_and_passed(
        parser, arguments, limits={}, refused=REFUSED, out_dir="out/claims",
        switches=("predict",))


def finished(runs: dict[tuple, list[Run]], workers: int) -> None:
    run_all({"forecasts": list(runs.values())}, workers, lambda name, left: None)


# 1. Points ----------------------------------------------------------------------------------------


def predicted(place: tuple[int, str], runs: list[Run], given: Flags) -> dict:
    """What is known of a universe and a case before the run."""
    universe, case = UNIVERSES[place[0]], place[1]
    numbers = {name_of(case): arm_numbers(runs)}
    fresh = numbers[name_of(case)]["fresh"]
    steps = given.get("--steps") or universe.steps
    generations = {"curve.generations": [float(steps) * float(given.get("--batch_size") or 64)]}
    numbers[case] = generations
    return as_dict(universe) | {
        "case": case,
        "sampled": fresh["student_accuracy_frac"],
        "teacher": fresh["teacher_accuracy_frac"],
        "predicted": {law: forecast.predicted(numbers, case, law) for law in LAWS},
        "predicted_pool": {law: forecast.predicted_pool(numbers, case, law) for law in LAWS},
        "share": {law: forecast.share(numbers, case, law) for law in LAWS},
        "pool_teacher": at(numbers, name_of(case), "pool", "teacher_accuracy_frac"),
        "rivals": {name: fresh[key] for name, key in RIVALS.items()},
    }


def refuse_others(path: Path, points: list[dict]) -> None:
    """Raises ValueError if the file has other predictions than these."""
    try:
        written = [{k: old[k] for k in point} for old, point in zip(json.loads(path.read_text()),
                                                                    points, strict=True)]
    except (ValueError, KeyError, TypeError):
        written = None
    if written != points:
        words = f"--out_dir: {str(path)!r} has other predictions; allowed: another folder"
        raise ValueError(words)


def measured(forecasts: dict, trained: dict, point: dict) -> dict:
    """What the run of a point did, on fresh problems and on the pool."""
    numbers: Runs = {point["case"]: arm_numbers(trained[point["universe"], point["case"]])}
    found = {
        f"{when}_{split}": number(numbers, f"{when}.{split}.accuracy", point["case"])
        for when in ("before", "after") for split in ("fresh", "train")
    }
    return {name: None if math.isnan(x) else x for name, x in found.items()}


# 2. Tables ----------------------------------------------------------------------------------------


def judged(predicted: list[float], before: list[float], after: list[float]) -> dict[str, float]:
    """R2 of the change, mean error, and the share of right signs among the points that moved.

    R2 is 1 - squared errors / squared deviations from the mean change: no line is fitted.
    """
    p, b, a = (np.array(x, float) for x in (predicted, before, after))
    change, errors = a - b, p - a
    moved = abs(change) > MOVED
    total = ((change - change.mean()) ** 2).sum()
    return {
        "r2": float(1 - (errors**2).sum() / total) if total else math.nan,
        "error": float(abs(errors).mean()),
        "signs": float((np.sign(p - b) == np.sign(change))[moved].mean()) if moved.any() else
        math.nan,
        "moved": int(moved.sum()),
    }


def fitted(values: list[float], before: list[float], after: list[float]) -> list[float]:
    """Accuracy afterwards by the line from a rival's values to the change that fits best."""
    changes = [a - b for a, b in zip(after, before)]
    slope, _ = slope_and_fit(values, changes)
    level = float(np.mean(changes)) - slope * float(np.mean(values))
    return [b + level + slope * v for b, v in zip(before, values)]


def known(points: list[dict]) -> list[dict]:
    """Without runs that failed."""
    return [p for p in points if p["after_fresh"] is not None]


def table(points: list[dict]) -> dict[str, dict[str, float]]:
    """Every forecast of fresh accuracy, judged; then the laws on the pool."""
    points = known(points)
    before, after = ([p[f"{when}_fresh"] for p in points] for when in ("before", "after"))
    rows = {f"law, {law}": [p["predicted"][law] for p in points] for law in LAWS}
    rows |= {NOW: before, TEACHER: [p["teacher"] for p in points]}
    for name in RIVALS:
        rows[f"{name} (line fitted)"] = fitted([p["rivals"][name] for p in points], before, after)
    found = {name: judged(values, before, after) for name, values in rows.items()}
    before, after = ([p[f"{when}_train"] for p in points] for when in ("before", "after"))
    for law in LAWS:
        values = [p["predicted_pool"][law] for p in points]
        found[f"on the pool: law, {law}"] = judged(values, before, after)
    return found


def report(points: list[dict]) -> str:
    """forecasts.md."""
    rows, points = table(points), known(points)
    lines = [
        "# Forecasts", "",
        f"{len(points)} runs that were forecast before they began: {len(CASES)} cases in "
        f"{len(UNIVERSES)} universes. Accuracy on fresh problems after self-distillation; R2 of "
        "its change.", "",
        "| forecast | R2 | mean error | right sign |", "|---" * 4 + "|"]
    for name, row in rows.items():
        words = name.replace("|", "\\|")  # KL(a || b) in a table
        lines.append(f"| {words} | {row['r2']:.2f} | {row['error']:.3f} | {row['signs']:.0%} of "
                     f"{row['moved']} that moved by more than {MOVED:g} |")
    lines += ["", "| case | before | predicted | measured | mean error |", "|---" * 5 + "|"]
    for case in CASES:
        mine = [p for p in points if p["case"] == case]
        means = [float(np.mean(x)) for x in (
            [p["before_fresh"] for p in mine], [p["predicted"][LAWS[0]] for p in mine],
            [p["after_fresh"] for p in mine], [abs(error_of(p)) for p in mine])]
        lines.append(f"| {case} | " + " | ".join(f"{m:.2f}" for m in means) + " |")
    lines += ["", "The largest errors:", "",
              "| case | learning rate, steps, base | predicted | measured |", "|---" * 4 + "|"]
    for p in sorted(points, key=lambda p: -abs(error_of(p)))[:WORST]:
        place = f"{p['learning_rate']}, {p['steps']}, {p['base']}"
        lines.append(f"| {p['case']} | {place} | {p['predicted'][LAWS[0]]:.2f} | "
                     f"{p['after_fresh']:.2f} |")
    return "\n".join(lines) + "\n"


def error_of(point: dict) -> float:
    return point["predicted"][LAWS[0]] - point["after_fresh"]


# 3. The picture -----------------------------------------------------------------------------------


def draw(path: Path, points: list[dict]) -> None:
    """forecasts.png: predicted against measured, and when self-distillation pays."""
    from matplotlib.figure import Figure

    points = known(points)
    figure = Figure(figsize=(13, 5.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    law = table(points)[f"law, {LAWS[0]}"]
    figure.suptitle(
        f"A forecast made before training: R2 {law['r2']:.2f}, mean error {law['error']:.3f}, "
        f"{law['signs']:.0%} of signs right", fontsize=13, fontweight="bold")
    for i, case in enumerate(CASES):
        mine = [p for p in points if p["case"] == case]
        left.plot([p["predicted"][LAWS[0]] for p in mine], [p["after_fresh"] for p in mine],
                  "o", color=f"C{i}", alpha=0.8, label=case)
    left.plot([0, 1], [0, 1], color="0.5", lw=1)
    now = float(np.median([p["before_fresh"] for p in points]))  # without a function it is higher
    left.axhline(now, color="0.7", lw=1, ls=":")
    left.text(0.99, now, "before training", ha="right", va="bottom", fontsize=8, color="0.4")
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted before training",
             ylabel="measured after training", title="accuracy on fresh problems (fraction)")
    left.legend(fontsize=8, loc="upper left")
    left.grid(alpha=0.25)
    draw_phases(right, points)
    save_figure(path, figure)


def draw_phases(axes, points: list[dict]) -> None:
    """When should I self-distil? What manner costs, against what is deployed and was learnt."""
    gains = [p["pool_teacher"] - p["before_train"] for p in points]
    gain = float(np.mean(gains)) if gains else 0.3
    x = np.linspace(-0.5, 0.4, 200)
    line = np.where(x < 0, -x / np.maximum(gain - x, 1e-9), 0.0)  # k gain + (1 - k) x = 0
    axes.fill_between(x, line, 1, color="tab:green", alpha=0.12, lw=0)
    axes.fill_between(x, 0, line, color="tab:red", alpha=0.12, lw=0)
    axes.plot(x, line, color="0.4", lw=1.5)
    for p in points:
        for place, change in ((0.0, p["after_fresh"] - p["before_fresh"]),
                              (p["share"][LAWS[0]], p["after_train"] - p["before_train"])):
            colour = "tab:green" if change > MOVED else "tab:red" if change < -MOVED else "0.6"
            axes.plot(p["predicted"][LAWS[0]] - p["sampled"], place, "o", color=colour,
                      markersize=5, markeredgecolor="white", markeredgewidth=0.5)
    axes.text(-0.48, 0.93, "self-distil", color="tab:green", fontsize=11)
    axes.text(-0.48, 0.06, "do not", color="tab:red", fontsize=11)
    axes.set(
        xlim=(-0.5, 0.4), ylim=(-0.03, 1.03), title="when should I self-distil?",
        xlabel="what the teacher's manner alone changes (predicted, accuracy on fresh problems)",
        ylabel="share of deployment whose content was learnt, k")
    from matplotlib.lines import Line2D

    look = {"marker": "o", "linestyle": "none", "markersize": 5}
    words = {"tab:green": "measured: better by more than 5 points", "0.6": "about the same",
             "tab:red": "worse by more than 5 points"}
    axes.legend(handles=[Line2D([], [], color=c, label=w, **look) for c, w in words.items()],
                fontsize=8, loc="upper right", title="a dot: fresh problems (k = 0) or the pool",
                title_fontsize=8)

