"""The picture of a judged claim: its effect and its control in every universe, and its panels."""

import math
import textwrap
from pathlib import Path

import numpy as np

from lab.claims.claim import Claim
from lab.claims.judge import interval_text
from lab.claims.statements import Panel, Runs
from lab.claims.text import MARKS, bound_text, count_text
from lab.claims.universes import STEPS
from lab.report import save_figure

COLOURS = {"half": "tab:blue", "twice": "tab:orange"}  # of the learning rate
SHAPES = dict(zip(STEPS, "o^"))
GREY, BAR = "0.4", "0.25"  # of dots whose learning rate is all the same, of means
VERDICT_COLOURS = {"reproduced": "tab:green", "opposite": "tab:red", "fragile": "tab:brown"}
PLACES = {"effect": 1.0, "control": 0.0}  # on the vertical axis


def draw_claim(path: Path, claim: Claim, row: dict, runs: list[Runs]) -> None:
    """claim-<name>.png: the effect and its control, then the claim's panels."""
    from matplotlib.figure import Figure

    runs = [{arm: {} for arm in claim.all_arms} | numbers for numbers in runs]
    width, count = 8.5 + 4.6 * len(claim.panels), len(claim.panels)
    figure = Figure(figsize=(width, 5.4), layout="constrained")
    grid = figure.add_gridspec(1, 1 + count, width_ratios=[8.5, *[4.6] * count])
    letters = int(11.5 * width)
    title = textwrap.fill(claim.title, int(0.85 * letters))
    figure.suptitle(title, ha="left", x=0.01, fontsize=13, fontweight="bold")
    draw_universes(figure.add_subplot(grid[0]), row)
    for i, panel in enumerate(claim.panels, start=1):
        draw_panel(figure.add_subplot(grid[i]), panel, runs)
    said = f"Published: {row['published']} ({row['source']})."
    figure.supxlabel(textwrap.fill(said, int(1.4 * letters)), ha="left", x=0.01, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(path, figure)


def draw_universes(axes, row: dict) -> None:
    """A dot for each universe in two lines, the effect above its control; means with intervals."""
    label, names = labels(row["effect"]["words"], row["control"]["words"])
    # One above the other in the same order, so that a pair can be followed.
    shifts = np.linspace(0.24, -0.16, len(row["universes"]))
    for shift, universe in zip(shifts, row["universes"]):
        for what, y in PLACES.items():
            if universe[what] is not None:
                axes.plot(universe[what], y + shift, **dot(universe, row["varied"]))
    for what, y in PLACES.items():
        draw_mean(axes, row[what], y - 0.3)
    axes.axvline(0, color="0.5", lw=1)
    draw_bound(axes, row["effect"])
    axes.set_yticks(list(PLACES.values()), [names[what] for what in PLACES], fontsize=9)
    axes.set_ylim(-0.5, 1.5)
    axes.axhline(0.5, color="0.85", lw=1)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.25)
    colour = VERDICT_COLOURS.get(row["verdict"], "0.35")
    why = f": {row['why']}" if row["why"] else ""
    said = f"{MARKS[row['verdict']]} {row['verdict'].upper()}, holds in {count_text(row)}{why}"
    axes.set_title(textwrap.fill(said, 105), loc="left", fontsize=10, color=colour)
    # DejaVu Sans, which matplotlib brings along, has the marks.
    axes.title.set_fontfamily("DejaVu Sans")
    axes.legend(
        handles=legend_handles(row["varied"]), ncols=1 + len(row["varied"]), fontsize=8,
        title="a dot: one universe, with a seed of its own", title_fontsize=8,
        loc="upper center", bbox_to_anchor=(0.5, -0.13),
    )


def dot(universe: dict, varied: list[str]) -> dict:
    """How a universe is drawn: colour: learning rate, shape: steps, filled: all pretraining.

    What does not differ between a claim's runs does not show.
    """
    colour = COLOURS[universe["learning_rate"]] if "learning_rate" in varied else GREY
    marker = SHAPES[universe["steps"] if "steps" in varied else STEPS[0]]
    inside = colour if universe["base"] == "full" or "base" not in varied else "white"
    look = {"marker": marker, "color": colour, "markerfacecolor": inside}
    return look | {"markersize": 8, "linestyle": "none", "markeredgewidth": 1.6}


WORDS = {  # of the legend
    "learning_rate": {"half": "half the best learning rate", "twice": "twice the best"},
    "steps": {steps: f"{steps} steps" for steps in STEPS},
    "base": {"full": "all pretraining", "70 %": "70 % of it"},
}


def legend_handles(varied: list[str]) -> list:
    """What colours, shapes and fillings mean, in words."""
    from matplotlib.lines import Line2D

    usual = {"learning_rate": "half", "steps": STEPS[0], "base": "full"}
    handles = [
        Line2D([], [], label=words, **dot(usual | {factor: level}, [factor]))
        for factor in varied for level, words in WORDS[factor].items()
    ]
    bar = {"color": BAR, "marker": "|", "markersize": 12, "lw": 2.5}
    return [*handles, Line2D([], [], label="mean, 95 % interval", **bar)]


def draw_mean(axes, result: dict, y: float) -> None:
    """A bar for the interval, and the numbers beside it."""
    if result["mean"] is None:
        return
    low, high = (result["mean"] if result[k] is None else result[k] for k in ("low", "high"))
    axes.plot([low, high], [y, y], color=BAR, lw=2.5, solid_capstyle="butt")
    axes.plot(result["mean"], y, marker="|", markersize=14, color=BAR, markeredgewidth=2.5)
    axes.annotate(
        interval_text(result), (result["mean"], y), xytext=(0, -9), textcoords="offset points",
        ha="center", va="top", fontsize=9, color=BAR,
    )


def draw_bound(axes, effect: dict) -> None:
    """The bound, dashed, and where the effect was predicted to lie, shaded."""
    low, high = axes.get_xlim()
    if "within" in effect:
        bounds = [-effect["within"], effect["within"]]
    else:
        bounds = [float(effect["bound"].split()[1])]
    low, high = min(low, *bounds, 0), max(high, *bounds, 0)
    low, high = low - 0.12 * (high - low), high + 0.12 * (high - low)
    for bound in bounds:
        axes.axvline(bound, color="tab:green", ls="--", lw=1.2)
    if len(bounds) == 1:
        bounds = [low, bounds[0]] if effect["bound"].startswith("<") else [bounds[0], high]
    axes.axvspan(*bounds, ymin=0.5, color="tab:green", alpha=0.08, lw=0)
    axes.text(
        np.mean(bounds), 1.46, f"predicted: {bound_text(effect)}", ha="center", va="top",
        fontsize=9, color="tab:green",
    )
    axes.set_xlim(low, high)


def labels(effect: str, control: str) -> tuple[str, dict[str, str]]:
    """The axis: what both have in common, such as `change of x (unit)`; and what each one is."""
    parts = [words.rpartition(": ") for words in (effect, control)]
    same = parts[0][0] == parts[1][0] != ""
    label = parts[0][0] if same else "the effect, and the same without its cause"
    names = [p[2].replace("'", "") if same else words for p, words in zip(parts, (effect, control))]
    return label, {
        what: textwrap.fill(f"{what}: {name}", 26) for what, name in zip(PLACES, names)
    }


def draw_panel(axes, panel: Panel, runs: list[Runs]) -> None:
    """Curves: a thin line for each universe, a thick one for their mean; dots without an order."""
    xs = [panel.x(r) if callable(panel.x) else panel.x for r in runs]
    longest = max(xs, key=len)
    words = any(isinstance(x, str) for x in longest)
    thin = {"lw": 0.6} if panel.joined else {"lw": 0, "marker": ".", "markersize": 4}
    thick = {"lw": 2.4} if panel.joined else {"lw": 0, "marker": "_", "markersize": 14}
    for i, (label, curve) in enumerate(panel.curves.items()):
        shift = 0.0 if panel.joined else 0.1 * i  # dots of one x stand side by side
        places = [np.arange(len(x)) + shift for x in xs] if words else xs
        ys = [known(curve(r), x) for r, x in zip(runs, xs)]
        for place, y in zip(places, ys):
            axes.plot(place[: len(y)], y, color=f"C{i}", alpha=0.5, **thin)
        axes.plot(*mean_curve(places, ys, words), color=f"C{i}", label=label, **thick)
    if words:
        axes.set_xticks(range(len(longest)), longest, rotation=30 * (len(longest) > 5))
    axes.set_title(textwrap.fill(panel.title, 46), fontsize=10)
    axes.set_xlabel(panel.x_label)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def known(values: list, x: list) -> list[float]:
    """A curve as floats, nan for None, no longer than its x."""
    return [math.nan if y is None else float(y) for y in values[: len(x)]]


def mean_curve(
    xs: list[list], ys: list[list[float]], words: bool
) -> tuple[list[float], list[float]]:
    """The mean over the universes that have a finite value.

    Of numbers, such as steps, only as far as all of these go: else it would jump where one ends.
    """
    curves = [{x: v for x, v in zip(x, y) if math.isfinite(v)} for x, y in zip(xs, ys)]
    curves = [curve for curve in curves if curve]
    common = all if not words else any
    places = sorted({x for curve in curves for x in curve})
    places = [x for x in places if common(x in curve for curve in curves)]
    means = [float(np.mean([curve[x] for curve in curves if x in curve])) for x in places]
    return places, means
