"""The picture of the arena: speed against fresh accuracy, a point a row, the front drawn."""

from pathlib import Path

from lab.report import save_figure

NAMED = ("grpo", "opsd", "sdpo", "rlcsd", "purified", "ours", "exact_anchor", "opsa", "op2sd",
         "bregman_clip")
FIRST = 4  # rows by score, which are named, too
FEW = 16  # rows, all of which are named
TITLES = {"v2": "World v2: the hint says nothing about the digits of a chain",
          "arena": "World arena: the hint tells which digit was fatal"}


def front(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats on both axes, from left to right.

    >>> front([(0.2, 0.9), (0.5, 0.5), (0.4, 0.4), (0.9, 0.1)])
    [0, 1, 3]
    """
    best = [i for i, (x, y) in enumerate(points) if not any(
        a >= x and b >= y and (a, b) != (x, y) for a, b in points)]
    return sorted(best, key=lambda i: points[i])


def draw(path: Path, rows: list[dict]) -> None:
    """arena.png: a panel for each world that has rows."""
    from matplotlib.figure import Figure

    worlds = list(dict.fromkeys(row["world"] for row in rows))
    if not worlds:
        return
    figure = Figure(figsize=(9.5 * len(worlds), 8), layout="constrained")
    panels = figure.subplots(1, len(worlds), squeeze=False)[0]
    most = max(row["measures"].get("doubt", {"mean": 0.0})["mean"] for row in rows)
    for axes, world in zip(panels, worlds):
        points = draw_world(axes, world, [row for row in rows if row["world"] == world], most)
    figure.colorbar(points, ax=panels, label="words of doubt (`wait`) per fresh completion",
                    shrink=0.8, pad=0.01)
    figure.suptitle("Which fix of self-distillation? Equal tokens, each at its own learning rate",
                    fontsize=14, fontweight="bold")
    save_figure(path, figure)


def draw_world(axes, world: str, rows: list[dict], most: float):
    """The points of a world; returns what the colour bar is of."""
    x, y = ([row["measures"][name] for row in rows] for name in ("speed", "fresh"))
    places = [(a["mean"], b["mean"]) for a, b in zip(x, y)]
    for (a, b), mx, my in zip(places, x, y):
        if mx["low"] is not None:
            look = {"color": "0.88", "lw": 0.8, "zorder": 1}
            axes.plot([mx["low"], mx["high"]], [b, b], **look)
            axes.plot([a, a], [my["low"], my["high"]], **look)
    colours = [row["measures"].get("doubt", {"mean": 0.0})["mean"] for row in rows]
    solid = [i for i, row in enumerate(rows) if not row["is_control"]]
    hollow = [i for i, row in enumerate(rows) if row["is_control"]]
    scale = {"cmap": "viridis", "vmin": 0, "vmax": max(most, 1e-9), "zorder": 3}
    points = axes.scatter([places[i][0] for i in solid], [places[i][1] for i in solid], s=55,
                          label="fix", c=[colours[i] for i in solid], **scale)
    edges = [points.cmap(points.norm(colours[i])) for i in hollow]
    axes.scatter([places[i][0] for i in hollow], [places[i][1] for i in hollow], s=55,
                 facecolors="white", edgecolors=edges, linewidths=1.8, zorder=3, label="control")
    best = front(places)
    axes.plot(*zip(*(places[i] for i in best)), "-o", color="tab:red", lw=1.2, zorder=2,
              markersize=13, markerfacecolor="none", label="front: no other beats it on both")
    low_x, low_y = (min(p[k] for p in places) for k in (0, 1))
    axes.set_xlim(max(0.0, low_x - 0.05), max(p[0] for p in places) + 0.14)
    axes.set_ylim(max(0.0, low_y - 0.06), max(p[1] for p in places) + 0.1)
    scores = sorted((row["measures"]["score"]["mean"] for row in rows), reverse=True)
    least = scores[min(FIRST, len(rows)) - 1]
    label(axes, [(places[i], row["method"]) for i, row in enumerate(rows)
                 if row["measures"]["score"]["mean"] >= least or i in best
                 or row["method"] in NAMED or len(rows) <= FEW])
    n = len(rows[0]["universes"])
    axes.set_title(f"{TITLES.get(world, world)} ({n} of 8 universes)", fontsize=11)
    axes.set_xlabel("speed: accuracy on training problems, mean over sampled tokens")
    axes.set_ylabel("accuracy on fresh problems at the end")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.25)
    return points


def label(axes, named: list[tuple[tuple[float, float], str]]) -> None:
    """Names right of their points, each moved up or down until it is clear of those near it."""
    width, height = (b - a for a, b in (axes.get_xlim(), axes.get_ylim()))
    placed: list[tuple[float, float]] = []
    for (x, y), name in sorted(named, key=lambda pair: pair[0][1]):
        moves = (sign * i * height / 160 for i in range(160) for sign in (1, -1))
        at = next(y + move for move in moves if not any(
            abs(x - a) < width / 7 and abs(y + move - b) < height / 36 for a, b in placed))
        placed.append((x, at))
        line = {"arrowstyle": "-", "color": "0.5", "lw": 0.6}
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5}
        axes.annotate(name, (x, y), (x + width / 50, at), fontsize=8, va="center", bbox=box,
                      arrowprops=line, zorder=4)
