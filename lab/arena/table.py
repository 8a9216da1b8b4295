"""What the runs say: rows with intervals, arena.json, arena.md and one picture."""

import json
from pathlib import Path

from lab.arena.pictures import draw
from lab.arena.predictions import EXPECTED
from lab.arena.run import RATES, UNIVERSES, Universe
from lab.fixes import FIXES
from lab.statistics import mean_and_interval, rank_correlation
from lab.storage import write_atomically, write_json

MEASURES = ("speed", "train", "fresh", "new_operators", "doubt", "checked", "direct", "careful",
            "tokens", "kl", "sampled_tokens", "step_s")
MARGIN = 0.02  # of the harmonic mean: less than this is noise
WIDE = 0.05  # an interval that reaches beyond it does not show that nothing is added
CLOSE = 0.05  # of accuracy on the tuning seed: another rate could as well have been chosen
CEILING = 0.92  # of both, from which on nothing is ranked
ENOUGH = 3  # universes, below which no verdict is given
ANCHORS = ("grpo", "exact_anchor", "rlcsd", "antisd", "purified")  # for `ours` to beat
FAILED = {"speed": 0.0, "train": 0.0, "fresh": 0.0, "new_operators": 0.0}  # not finite: nothing
Found = list[tuple[Universe, dict[str, dict | None]]]


def harmonic(speed: float, fresh: float) -> float:
    """The harmonic mean of speed and fresh accuracy, 0 to 1: high only if both are.

    >>> round(harmonic(0.5, 1.0), 3)
    0.667
    """
    return 2 * speed * fresh / (speed + fresh) if speed + fresh else 0.0


def numbers_in(found: Found, row: str) -> list[dict]:
    """What the row did, by universe, with its score."""
    of = [FAILED if "failed" in results[row] else results[row] for _, results in found]
    return [numbers | {"score": harmonic(numbers["speed"], numbers["fresh"])} for numbers in of]


def differences(ours: list[dict], theirs: list[dict]) -> dict:
    """Paired over universes: speed, fresh accuracy and score, and in how many the score holds."""
    gaps = {name: [a[name] - b[name] for a, b in zip(ours, theirs)]
            for name in ("speed", "fresh", "score")}
    found = {name: mean_and_interval(values) for name, values in gaps.items()}
    both = sum(s > 0 and f > 0 for s, f in zip(gaps["speed"], gaps["fresh"]))
    return found | {"holds": sum(gap > MARGIN for gap in gaps["score"]), "holds_on_both": both}


def verdict_of(row: list[dict], control: list[dict] | None, gap: dict | None) -> str:
    """What a comparison with the control comes to, in words."""
    if control is None:
        return "no control"
    if len(row) < ENOUGH:
        return "too few universes"
    mean = [sum(n[name] for n in of) / len(of) for of in (row, control)
            for name in ("speed", "fresh")]
    if min(mean) >= CEILING:
        return "at the ceiling"
    score = gap["score"]
    if score["low"] > 0 and score["mean"] > MARGIN:
        return "better than its control"
    if score["high"] < 0 and score["mean"] < -MARGIN:
        return "worse than its control"
    if score["low"] <= 0 <= score["high"] and max(-score["low"], score["high"]) > WIDE:
        return "unclear: the interval is wide"
    return "adds nothing beyond its control"


def row_of(
    world: str, name: str, found: Found, tuning: dict[float, dict], steps: int,
    forecast: float | None = None,
) -> dict:
    """All that arena.json has of a row in a world; forecast: of fresh accuracy, before training."""
    fix, ours = FIXES[name], numbers_in(found, name)
    known = fix.control and all(fix.control in results for _, results in found)
    control = numbers_in(found, fix.control) if known else None
    gap = differences(ours, control) if control else None
    values = {m: [n[m] for n in ours if n.get(m) is not None] for m in (*MEASURES, "score")}
    rate = next(r[name]["rate"] for _, r in found)
    word = EXPECTED.get(name)
    row = {
        "method": name, "control": fix.control, "world": world, "is_control": fix.is_control,
        "family": fix.family, "formula": fix.formula, "source": fix.recipe.source,
        "differs": fix.differs, "seen": fix.seen, "steps": steps,
        "expected": word and word[world == "arena"],
        "forecast": forecast,
        "rate": rate, "rate_at_edge": rate in (min(RATES), max(RATES)),
        "rates": {f"{r:g}": t.get("train", 0.0) for r, t in tuning.items()},
        "measures": {m: mean_and_interval(v) for m, v in values.items() if v},
        "difference": gap, "verdict": verdict_of(ours, control, gap),
        "universes": [{"universe": u.number, "settings": u.words, **r[name]} for u, r in found],
    }
    if name == "ours":
        row["anchors"] = {a: differences(ours, numbers_in(found, a)) for a in ANCHORS
                          if a in found[0][1]}
    return row


def merged(folder: Path, rows: list[dict], gates: list[dict]) -> tuple[list[dict], list[dict]]:
    """These rows and gates, and those of earlier calls with the same code that are not among them.

    Raises ValueError if the file has no rows.
    """
    kept: list[list[dict]] = []
    files = ("arena", rows, ("world", "method")), ("arena-gate", gates, ("world",))
    for name, new, keys in files:
        path = folder / f"{name}.json"
        try:
            old = json.loads(path.read_text()) if path.exists() else []
            known = {tuple(row[key] for key in keys) for row in new}
            others = [row for row in old if tuple(row[key] for key in keys) not in known]
            if name == "arena":
                others = [row for row in others if row["code"] == rows[0]["code"]]
        except (ValueError, KeyError, TypeError):
            words = f"--out_dir: {str(path)!r} holds no arena; allowed: another folder"
            raise ValueError(words) from None
        kept.append(others + new)
    order = {name: i for i, name in enumerate(FIXES)}
    kept[0].sort(key=lambda row: (row["world"] == "arena", order.get(row["method"], -1)))
    return kept[0], kept[1]


def write(folder: Path, rows: list[dict], gates: list[dict]) -> None:
    """arena.json, arena.md, arena-gate.json and arena.png."""
    write_json(folder / "arena.json", rows)
    write_json(folder / "arena-gate.json", gates)
    write_atomically(folder / "arena.md", lambda path: path.write_text(markdown(rows, gates)))
    draw(folder / "arena.png", rows)


# Text ---------------------------------------------------------------------------------------------


def gate_lines(gate: dict) -> str:
    """The gate of a world in a line for each of its three conditions."""
    met, rates = gate["met"], ", ".join(f"{r}: {a:.2f}" for r, a in gate["grpo_by_rate"].items())
    def said(name: str) -> str:
        return "met" if met[name] else "NOT MET"

    return "\n".join([
        f"gate of world {gate['world']}: {'open' if gate['open'] else 'closed'}",
        f"  contrast at step digits {gate['contrast_nats']:.2f} nats (needed .1; the hint alone "
        f"{gate['hint_nats']:.2f}): {said('contrast')}",
        f"  base model right on {gate['pass_rate']:.2f} (needed .05 to .2): {said('pass_rate')}",
        f"  GRPO by learning rate {rates} (the best not at the edge): {said('grpo_rate')}"])


def short(value: float) -> str:
    """.35 for 0.35.

    >>> short(-0.349)
    '-.35'
    """
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def cell(x: dict | None) -> str:
    if x is None:
        return "-"
    if x["low"] is None:
        return short(x["mean"])
    return f"{short(x['mean'])} [{short(x['low'])}, {short(x['high'])}]"


def markdown(rows: list[dict], gates: list[dict]) -> str:
    """The table of each world, best first, and what the reader must know to read it."""
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    lines = ["# The arena", "", SAID.strip(), ""]
    lines += in_short(rows)
    for world in worlds:
        mine = [row for row in rows if row["world"] == world]
        gate = next((g for g in gates if g["world"] == world), None)
        lines += world_lines(world, mine, gate)
    lines += ["## The rows", "", "| row | formula | source (formula known from) | differs |",
              "|---" * 4 + "|"]
    for row in {row["method"]: row for row in rows}.values():
        words = f"{row['source']} ({row['seen']})".replace("|", "\\|")
        formula = row["formula"].replace("|", "\\|")
        lines.append(f"| `{row['method']}` | {formula} | {words} | {row['differs']} |")
    return "\n".join(lines) + "\n"


def world_lines(world: str, rows: list[dict], gate: dict | None) -> list[str]:
    done = [len(row["universes"]) for row in rows]
    n = max(done)
    count = f"{n}" if min(done) == n else f"{min(done)} to {n}"
    lines = [f"## World {world}: {count} of {len(UNIVERSES)} universes, "
             f"{len(rows)} of {len(FIXES)} rows", ""]
    if lacking := [name for name in FIXES if name not in {row["method"] for row in rows}]:
        lines += [f"Not run yet ({len(lacking)}): {', '.join(lacking)}.", ""]
    if gate:
        lines += ["```", gate_lines(gate), "```", ""]
        lines += [] if gate["open"] else [CLOSED.strip(), ""]
    lines += verdict_lines(rows, n)
    lines += ["| row | score | speed | fresh | control | score minus control's | holds | verdict "
              "| forecast | rate | doubt | checked | tokens | KL | ms |", "|---" * 15 + "|"]
    for row in sorted(rows, key=lambda row: -row["measures"]["score"]["mean"]):
        m, gap = row["measures"], row["difference"]
        name = f"_{row['method']}_" if row["is_control"] else f"**{row['method']}**"
        holds = f"{gap['holds']} of {len(row['universes'])}" if gap else "-"
        edge = "*" * row["rate_at_edge"] + "~" * has_close_rate(row)
        means = [short(m[k]["mean"]) if k in m else "-" for k in ("doubt", "checked")]
        more = [f"{m[k]['mean']:.{d}f}" if k in m else "-" for k, d in (("tokens", 0), ("kl", 2))]
        ms = f"{1000 * m['step_s']['mean']:.0f}" if "step_s" in m else "-"
        cells = [name, short(m["score"]["mean"]), cell(m["speed"]), cell(m["fresh"]),
                 row["control"] or "-", cell(gap and gap["score"]), holds, row["verdict"],
                 "-" if row["forecast"] is None else short(row["forecast"]),
                 f"{row['rate']:.0e}{edge}".replace("e-0", "e-"), *means, *more, ms]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *ours_lines(rows, n)]


def has_close_rate(row: dict) -> bool:
    """Whether another learning rate did nearly as well on the tuning seed."""
    second, best = sorted(row["rates"].values())[-2:] if len(row["rates"]) > 1 else (0.0, 1.0)
    return second > best - CLOSE


def in_short(rows: list[dict]) -> list[str]:
    """What the rows say in all worlds together; nothing if a world lacks rows of another."""
    by: dict[str, dict[str, dict]] = {}
    for row in rows:
        by.setdefault(row["method"], {})[row["world"]] = row
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    if len(worlds) < 2 or any(len(of) < len(worlds) for of in by.values()):
        return []

    def scores(name: str) -> list[float]:
        return [by[name][world]["measures"]["score"]["mean"] for world in worlds]

    def said(name: str) -> str:
        words = f"_{name}_" if FIXES[name].is_control else f"**{name}**"
        return f"{words} ({', '.join(map(short, scores(name)))})"

    ranked = sorted(by, key=lambda name: -sum(scores(name)))
    unrewarded = [name for name in ranked if not FIXES[name].recipe.reward_weight
                  and not FIXES[name].is_control]
    fixes = [name for name in by if by[name][worlds[0]]["difference"]
             and not FIXES[name].is_control]
    better = [name for name in fixes if all(
        row["verdict"] == "better than its control" for row in by[name].values())]
    gains = [name for name in by if not FIXES[name].is_control and "grpo" in by and all(
        a > b + MARGIN for a, b in zip(scores(name), scores("grpo")))]
    lines = [
        f"- Highest mean score over the worlds {', '.join(worlds)}: "
        f"{', '.join(map(said, ranked[:6]))}. Controls in _italics_.",
        f"- Better than its control in every world, of {len(fixes)} fixes: "
        f"{', '.join(map(said, better)) or 'none'}.",
        f"- Above grpo ({', '.join(map(short, scores('grpo')))}) by more than {short(MARGIN)} in "
        f"every world: {', '.join(map(said, gains)) or 'none'}." if "grpo" in by else "",
        f"- Without a policy gradient: {', '.join(map(said, unrewarded[:3])) or 'none'}."]
    return ["## In short", "", *filter(None, lines), ""]


def verdict_lines(rows: list[dict], n: int) -> list[str]:
    """The fixes by verdict, in a few lines, and how the predictions fared."""
    fixes = [row for row in rows if not row["is_control"] and row["control"]]
    lines = []
    for verdict in dict.fromkeys(row["verdict"] for row in fixes):
        names = ", ".join(row["method"] for row in fixes if row["verdict"] == verdict)
        lines.append(f"- **{verdict}**: {names}")
    told = [row for row in rows if row["expected"] and row["difference"]]
    right = sum(row["expected"] == direction(row["difference"]["score"]["mean"]) for row in told)
    said = f"- expected before the runs: right for {right} of {len(told)} rows with a control"
    enough = n >= ENOUGH  # fewer say nothing about a prediction
    return [*sorted(lines), *([said] if enough else []), *forecast_lines(rows), ""]


def forecast_lines(rows: list[dict]) -> list[str]:
    """Whether the transplant law ranks the rows that have a teacher's target alone."""
    pairs = [(row["forecast"], row["measures"]["fresh"]["mean"]) for row in rows
             if row["forecast"] is not None]
    if len(pairs) < 3:
        return []
    error = sum(abs(a - b) for a, b in pairs) / len(pairs)
    rank = rank_correlation(*map(list, zip(*pairs)))
    return [f"- forecast of fresh accuracy before training (`lab/arena/forecast.py`), {len(pairs)} "
            f"rows: rank correlation {short(rank)}, mean error {short(error)}"]


def direction(gap: float) -> str:
    """+, - or 0 of a difference of scores."""
    return "+" if gap > MARGIN else "-" if gap < -MARGIN else "0"


def ours_lines(rows: list[dict], n: int) -> list[str]:
    """Our own row against the anchors that it was to beat on both axes."""
    row = next((row for row in rows if row["method"] == "ours"), None)
    if not row or not row.get("anchors"):
        return []
    lines = ["`ours` against the anchors (to beat: on both axes in 6 of 8, intervals above 0):", "",
             "| anchor | speed | fresh | both in |", "|---" * 4 + "|"]
    for name, gap in row["anchors"].items():
        both = f"{gap['holds_on_both']} of {n}"
        lines.append(f"| {name} | {cell(gap['speed'])} | {cell(gap['fresh'])} | {both} |")
    return [*lines, ""]


CLOSED = """
The gate is closed: this world does not tell rows with a reward apart. It does show what a teacher's
target costs.
"""
SAID = """
Which fix of self-distillation should one use? Published fixes side by side on equal tokens and
steps, each beside the control that shares everything but its idea (`python -m lab.arena`).

- **speed**: mean accuracy on the training problems over the tokens sampled. **fresh**: accuracy on
  unseen problems at the end. **score**: their harmonic mean; rows are sorted by it. Brackets: 95 %
  intervals (Student's t) over universes.
- **holds**: universes in which the score is above the control's by more than .02. _Italics_:
  controls, no fixes.
- **rate**: the best of 1e-4, 3e-4 and 1e-3 on training problems, on a seed of its own; `*` at the
  edge of the grid, `~` if another one was within .05 there.
- **forecast**: of fresh accuracy, by the transplant law, before training; of rows with a teacher's
  target and no reward. **doubt**: `wait` per fresh completion. **checked**: share of glances that
  `wait` follows. **KL**: from the initial model, nats per token. **ms**: a step, on one core.
- arena.json also has accuracy on training problems at the end, with new operators, and behind a
  `wait` that was put first.
- Base models are of two seeds, so intervals are over settings and samples more than over models.
"""
