"""The picture of a judged claim: what was measured in every arm, each statement at its bound."""

import math
import textwrap
from pathlib import Path

import numpy as np

from lab.claims.arms import Measure
from lab.claims.claim import Claim
from lab.claims.statements import Panel, Runs, number
from lab.claims.text import control_text
from lab.statistics import mean_and_interval

VERDICT_COLOURS = {"reproduced": "tab:green", "not reproduced": "tab:orange", "opposite": "tab:red"}
TITLES = {
    "accuracy": "accuracy (fraction)",
    "markers": "epistemic markers per completion",
    "direct": "share of direct answers (fraction)",
    "tokens": "completion length (tokens)",
    "remark": "share with the closing remark (fraction)",
}


def draw_claim(path: Path, claim: Claim, row: dict) -> None:
    """claim-<name>.png, from left to right: panels, what the arms have in common, statements."""
    from matplotlib.figure import Figure

    runs = [{arm: a["runs"][i] for arm, a in row["arms"].items()} for i in range(len(row["seeds"]))]
    trained = [name for name, arm in claim.arms.items() if not isinstance(arm, Measure)]
    shown = claim.shown if trained else []
    columns, count = len(shown) + len(claim.panels), len(row["statements"]) + 1
    width = 4.2 * columns + 6
    height = 2.2 + max(0.8 * count, 0.32 * len(trained) * bool(shown), 3.2)
    figure = Figure(figsize=(width, height), layout="constrained")
    heading = f"{claim.name}: {row['verdict'].upper()}. Predicted: {row['prediction']}"
    figure.suptitle(textwrap.fill(heading, int(11 * width)), ha="left", x=0.01, fontsize=11)
    grid = figure.add_gridspec(1, columns + 1, width_ratios=[4.2] * columns + [6])
    for i, panel in enumerate(claim.panels):
        draw_panel(figure.add_subplot(grid[i]), panel, runs)
    for i, what in enumerate(shown, start=len(claim.panels)):
        draw_arms(figure.add_subplot(grid[i]), what, trained, runs, labelled=i == len(claim.panels))
    cells = grid[columns].subgridspec(count, 1)
    control = {"above": None, "below": None, "verdict": f"control, {control_text(row)}"}
    results = [*row["statements"], row["control"] | control]
    for cell, result in zip(cells, results):
        draw_statement(figure.add_subplot(cell), result)
    seeds = f"{row['seeds'][0]} to {row['seeds'][-1]}"
    caption = (
        f"Bars and bands: mean and 95 % interval over seeds {seeds}; small dots: seeds. Right: "
        "what was stated beforehand, shaded where it was predicted to lie; accuracy and shares as "
        f"fractions. Published: {row['published']} ({row['source']})"
    )
    figure.supxlabel(textwrap.fill(caption, int(15 * width)), ha="left", x=0.01, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def draw_statement(axes, result: dict) -> None:
    """An interval against the bound that the prediction shades; the control has no colour."""
    bound = result["above"] if result["below"] is None else result["below"]
    control = bound is None
    colour = "0.4" if control else VERDICT_COLOURS.get(result["verdict"], "tab:blue")
    half = 0 if result["low"] is None else result["high"] - result["mean"]
    if result["mean"] is not None:
        axes.errorbar(result["mean"], 0, xerr=half, fmt="o", capsize=4, color=colour)
    axes.plot(result["values"], [-0.35] * len(result["values"]), ".", color=colour, alpha=0.5)
    axes.axvline(0, color="0.7", lw=0.8)
    if not control:
        low, high = axes.get_xlim()
        low, high = min(low, bound), max(high, bound)
        low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
        predicted = (bound, high) if result["below"] is None else (low, bound)
        axes.axvspan(predicted[0], predicted[1], alpha=0.12)
        axes.set_xlim(low, high)
    words = f"{result['verdict']}: {result['words']}"
    axes.set_title(textwrap.fill(words, 78), fontsize=8, loc="left", color=colour)
    axes.set(yticks=[], ylim=(-0.7, 0.5))
    axes.tick_params(labelsize=8)


def draw_arms(axes, what: str, arms: list[str], runs: list[Runs], labelled: bool) -> None:
    """One number after training in every arm, the untrained model as a vertical line."""
    split, _, measure = what.partition(".")
    for y, arm in enumerate(arms):
        values = [number(r, what, arm) for r in runs]
        before = float(np.mean([number(r, f"before.{what}", arm) for r in runs]))
        axes.plot([before] * 2, [y - 0.35, y + 0.35], color="0.4", lw=1.2)
        m = mean_and_interval(values)
        half = 0 if m["low"] is None else m["high"] - m["mean"]
        axes.errorbar(m["mean"], y, xerr=half, fmt="o", capsize=3, color="tab:blue")
        axes.plot(values, [y] * len(values), ".", color="tab:blue", alpha=0.35)
    axes.plot([], [], color="0.4", lw=1.2, label="before training")
    axes.set_yticks(range(len(arms)), arms if labelled else [""] * len(arms), fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_title(f"{split} problems:\n{TITLES.get(measure, measure)}", fontsize=9)
    axes.set_xlim(0, 1.02 if measure in ("accuracy", "direct", "remark") else None)
    axes.grid(axis="x", alpha=0.3)
    if labelled:
        axes.legend(fontsize=7)


def draw_panel(axes, panel: Panel, runs: list[Runs]) -> None:
    """Curves with their 95 % intervals over seeds."""
    labels = panel.x(runs[0]) if callable(panel.x) else panel.x
    numeric = not any(isinstance(x, str) for x in labels)
    x = labels if numeric else list(range(len(labels)))
    for i, (label, curve) in enumerate(panel.curves.items()):
        by_seed = [[math.nan if y is None else y for y in curve(r)] for r in runs]
        points = [mean_and_interval(list(values)) for values in zip(*by_seed)]
        means = [p["mean"] for p in points]
        known = bool(points) and points[0]["low"] is not None
        half = [p["high"] - p["mean"] if known else 0 for p in points]
        if panel.joined:
            (line,) = axes.plot(x[: len(means)], means, marker=".", label=label)
            band = [[m + sign * h for m, h in zip(means, half)] for sign in (-1, 1)]
            axes.fill_between(x[: len(means)], *band, alpha=0.15, color=line.get_color())
        else:
            beside = [place + 0.1 * i for place in x[: len(means)]]
            axes.errorbar(beside, means, yerr=half, fmt="o", capsize=4, label=label)
    if not numeric:
        axes.set_xticks(x, labels, rotation=30 * (len(x) > 5))
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.x_label, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
