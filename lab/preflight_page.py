"""The page of `lab.preflight` as text and as a picture, from what preflight.json holds."""

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

from lab import lints
from lab.report import save_figure

SAYS = {True: "ok", None: "doubt", False: "FAILED"}
PAINT = {True: "32", None: "33", False: "1;31"}


def has_colour() -> bool:
    """Whether somebody looks who wants colours; they repeat what words and signs say anyway."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


# 1. Text ------------------------------------------------------------------------------------------


def text(x: dict[str, Any], width: int = 100, colour: bool = False) -> str:
    """The whole page, in lines of at most `width` characters."""
    parts = [head(x), checks("1 LOSS, on a small batch of yours", x["loss"], width, colour),
             checks("2 PROMPTS", x["prompts"]["lints"], width, colour),
             prompts(x["prompts"], width, colour),
             titled("3 SIGNALS, before any step", signals(x["signals"], x["forecast"]), width),
             titled("4 FORECAST, before any step", forecast(x, broken(x)), width),
             titled("5 COST", cost(x["cost"]), width)]
    return "\n".join(parts)


def head(x: dict) -> str:
    asked, c = x["settings"]["preflight"], x["settings"]["checkpoint"]
    who = f"checkpoint {c['init']}" if c["init"] else "the toy"
    warm = x["settings"]["method"]["warm_start_steps"]
    pool = f"{asked['train_problems']} problems" if asked["train_problems"] else (
        f"all of {c['data']}" if c["init"] else "endless problems")
    return "\n".join([
        f"preflight of {asked['method']}: {x['method']}",
        f"{who}, {x['parameters'] / 1e6:.4g}M parameters, {c['dtype']}; run asked for: "
        f"{asked['steps']} steps of {asked['batch_size']} completions, {pool}, seed "
        f"{asked['seed']}",
        f"Nothing has been trained. {asked['problems']} problems were looked at in "
        f"{sum(x['seconds'].values()):.0f} s."
        + f" A warm start of {warm} steps is asked for and not made here." * (warm > 0)])


def broken(x: dict) -> int:
    return sum(row["passed"] is False for row in (*x["loss"], *x["prompts"]["lints"]))


def titled(title: str, rows: list[tuple[str, str]], width: int) -> str:
    lines = ["", title]
    for name, words in rows:
        lines += textwrap.wrap(words, width, initial_indent=f"  {name:10}",
                               subsequent_indent=" " * 12)
    return "\n".join(lines)


def checks(title: str, rows: list[dict], width: int, colour: bool) -> str:
    """A line for each check, and one for all that passed with nothing to read."""
    counts = [f"{sum(row['passed'] is p for row in rows)} {says}" for p, says in SAYS.items()]
    lines = ["", f"{title}: {', '.join(counts)}"]
    silent = "; ".join(row["what"] for row in rows if not row["reading"])
    told = [row for row in rows if row["reading"]]
    told += [{"what": silent, "passed": True, "reading": ""}] if silent else []
    for row in sorted(told, key=lambda row: (False, None, True).index(row["passed"])):
        mark, said = f"{SAYS[row['passed']]:7}", f"{row['what']}: {row['reading']}"
        words = textwrap.wrap(said.removesuffix(": "), width, initial_indent="  " + mark,
                              subsequent_indent=" " * 11)
        if colour:
            words[0] = words[0].replace(mark, f"\x1b[{PAINT[row['passed']]}m{mark}\x1b[0m", 1)
        lines += words
    return "\n".join(lines)


def prompts(x: dict, width: int, colour: bool) -> str:
    """Both prompts of one problem side by side, in tokens."""
    half = (width - 5) // 2
    lines = ["  " + "the student's prompt".ljust(half + 3) + "the teacher's (+ it alone reads)"]
    if x["tokens"]["student"] == x["tokens"]["teacher"]:
        lines = ["  the student's prompt, and the teacher's"]
    both = x["tokens"]["student"], x["tokens"]["teacher"]
    lines += ["  " + line for line in lints.side_by_side(*both, width=width - 2, colour=colour)]
    return "\n".join(lines)


def share(value: float) -> str:
    return f"{value:.0%}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def signals(x: dict, forecast: dict) -> list[tuple[str, str]]:
    G, rates = x["group_size"], x["pass_rates"]
    sometimes = sum(0 < rate < 1 for rate in rates)
    rows = [(
        "reward", f"{share(x['accuracy_frac'])} of the student's completions are right; of "
        f"{len(rates)} problems {sum(r == 0 for r in rates)} never, {sometimes} sometimes, "
        f"{sum(r == 1 for r in rates)} always in {G} attempts: {share(x['equal_groups_frac'])} of "
        "the groups tell a reward nothing")]
    if "horizon" not in x:
        return rows
    kinds = ", ".join(f"{kind} {share(f)}" for kind, f in x["information_by_kind_frac"].items())
    rows.append(("context", (
        f"it tells {x['information_nats_per_token']:.3f} nats a token, KL(student || teacher); "
        f"{share(x['information_first_frac'])} of it in the first 4 tokens; by kind of token: "
        f"{kinds}")))
    rows.append(("agreement", (
        f"{share(x['overlap_frac'])} of the 4 likeliest tokens are the same; entropy "
        f"{x['student_entropy']:.2f} nats a token of the student, {x['teacher_entropy']:.2f} of "
        "the teacher")))
    fresh = forecast.get("fresh", {})
    if "teacher_markers_per_completion" in fresh:
        rows.append(("doubt", (
            f"{fresh['student_markers_per_completion']:.2f} words of doubt a completion, "
            f"{fresh['teacher_markers_per_completion']:.2f} under the hint")))
    h = x["horizon"]
    cells = [f"{cut} {number(t)} ({number(s)})" for cut, t, s in
             zip(h["cuts"], h["teacher"], h["student"])]
    rows.append(("horizon", (
        "right when the teacher (the student) goes on from so much of the student's own text: "
        f"{'; '.join(cells)} [{h['count'][-1]} errors]")))
    return rows


def forecast(x: dict, failed: int) -> list[tuple[str, str]]:
    f = x["forecast"]
    if "fresh" not in f:
        return [("verdict", f"{f['verdict']}: {f['why']}")]
    trust, half = f["trust"], f["half_width_frac"]
    after, pool = f["predicted_fresh_accuracy_frac"], f["predicted_pool_accuracy_frac"]
    known = [f"{r['error_frac']:.3f} in {r['runs']} runs of {where}, the sign right in "
             f"{share(r['signs_frac'])} of {r['moved']} that moved"
             for name, where in (("toy", "the toy"), ("real", "a real checkpoint"))
             if (r := trust.get(name))]
    rows = [
        ("now", f"right on {f['now']:.2f} of fresh problems, on {f['hinted']:.2f} with the hint"),
        ("fresh", f"{after:.2f} after self-distillation, {max(0, after - half):.2f} to "
                  f"{min(1, after + half):.2f}: a change of "
                  f"{f['predicted_fresh_change_frac']:+.2f} +- {half:.2f}"),
        ("pool", f"{pool:.2f} of the training problems, {f['visits']:.3g} visits to each"),
        ("law", f["correction"]),
        ("error", f"of the law, root mean square: {'; '.join(known)}"),
        ("verdict", f["verdict"].upper() + (
            ". A hypothesis: on real weights this law is no more than that"
            if f["hypothesis"] else "") + (
            f". It presumes a sound loss and prompts: {failed} lint(s) above failed"
            if failed else ""))]
    count = x["settings"]["preflight"]["fix_problems"]
    for row in f["fixes"][:3]:
        rows.append(("instead", (
            f"{row['fix']}: {row['predicted_fresh_accuracy_frac']:.2f} on {count} fresh problems, "
            f"{row['difference_frac']:+.2f}")))
    return rows


def cost(x: dict) -> list[tuple[str, str]]:
    rows = []
    for dtype, m in x["by_dtype"].items():
        total = x["weights_bytes"] + m["micro_batch_bytes"]
        room = f"about {total / 2**30:.2g} GiB" if m["micro_batch_bytes"] else (
            f"{x['weights_bytes'] / 2**30:.2g} GiB for weights and optimiser, and a micro-batch")
        star = "*" if dtype == x["dtype"] else ""
        rows.append((f"{dtype}{star}", (
            f"{m['step_s']:.3g} s a step ({m['sampling_s']:.2g} of them sampling), {x['steps']} "
            f"steps {clock(x['steps'] * m['step_s'])}; {room}")))
    rows.append(("how", (
        f"on {x['device']}, {x['threads']} thread(s), measured on a micro-batch of "
        f"{x['micro_batch']} completions, for {x['completion_tokens']:.0f} tokens a completion and "
        "without evaluations; * is the dtype asked for")))
    return rows


def clock(seconds: float) -> str:
    hours, minutes = seconds / 3600, seconds / 60
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min" if minutes >= 1 else (
        f"{seconds:.1f} s")


# 2. Picture ---------------------------------------------------------------------------------------


def draw(path: Path, x: dict[str, Any]) -> None:
    """preflight.png: lints, rewards, where the context tells something, horizon, forecast."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(14, 8.5), layout="constrained")
    asked = x["settings"]["preflight"]
    figure.suptitle(f"preflight of {asked['method']}, before any training: {x['method']}",
                    fontsize=11, parse_math=False)
    panels = figure.subplots(2, 3).flat
    for axes, panel in zip(panels, (lint_panel, reward_panel, place_panel, horizon_panel,
                                    forecast_panel, cost_panel)):
        panel(axes, x)
    save_figure(path, figure)


COLOURS = {True: "tab:green", None: "tab:orange", False: "tab:red"}


def lint_panel(axes: Any, x: dict) -> None:
    axes.set_title("lints")
    axes.axis("off")
    rows = [*x["loss"], *x["prompts"]["lints"]]
    for i, row in enumerate(rows):
        y = 1 - (i + 0.5) / len(rows)
        axes.text(0, y, SAYS[row["passed"]], color=COLOURS[row["passed"]], weight="bold",
                  fontsize=9, va="center")
        axes.text(0.17, y, row["what"], fontsize=9, va="center", parse_math=False)


def reward_panel(axes: Any, x: dict) -> None:
    s = x["signals"]
    G = s["group_size"]
    counts = [sum(round(rate * G) == k for rate in s["pass_rates"]) for k in range(G + 1)]
    axes.bar(range(G + 1), counts, color=["C3", *["C0"] * (G - 1), "C3"])
    axes.set(title="problems by right completions", ylabel="problems", xticks=range(G + 1),
             xlabel=f"right of {G}; red: tells a reward nothing ({share(s['equal_groups_frac'])})")


def place_panel(axes: Any, x: dict) -> None:
    axes.set_title("what the context tells, along the completion")
    values = x["signals"].get("information_by_tenth")
    if values is None:
        return nothing(axes, "no teacher")
    places = [i for i, v in enumerate(values) if v is not None]
    axes.bar([10 * i + 5 for i in places], [values[i] for i in places], 9, color="C2")
    kinds = x["signals"]["information_by_kind_frac"]
    axes.set(xlabel="place in the completion (%)\nof all: " + ", ".join(
        f"{kind} {share(f)}" for kind, f in kinds.items()), ylabel="KL(student || teacher) (nats)")


def horizon_panel(axes: Any, x: dict) -> None:
    axes.set_title("who goes on rightly from the student's text")
    h = x["signals"].get("horizon")
    if h is None:
        return nothing(axes, "no teacher")
    for shift, who in ((-0.2, "teacher"), (0.2, "student")):
        kept = [(i + shift, v) for i, v in enumerate(h[who]) if v is not None]
        axes.bar(*zip(*kept), 0.38, label=who)
    axes.set(xticks=range(len(h["cuts"])), ylim=(0, 1), ylabel="accuracy (fraction)",
             xlabel="how much of the student's completion is kept")
    axes.set_xticklabels(h["cuts"], fontsize=8)
    axes.legend()


def forecast_panel(axes: Any, x: dict) -> None:
    f = x["forecast"]
    axes.set_title(f"fresh problems: {f['verdict']}" + " (hypothesis)" * f.get("hypothesis", False))
    if "fresh" not in f:
        return nothing(axes, f["why"])
    axes.bar([0, 1], [f["now"], f["hinted"]], 0.6, color=["C1", "C0"])
    after = f["predicted_fresh_accuracy_frac"]
    axes.errorbar([2], [after], [f["half_width_frac"]], fmt="o", color="black", capsize=6)
    axes.set(xticks=range(3), ylim=(0, 1), ylabel="accuracy (fraction)")
    axes.set_xticklabels(["student now", "with the hint", "forecast"])


def cost_panel(axes: Any, x: dict) -> None:
    c = x["cost"]
    names = list(c["by_dtype"])
    parts = [(m["sampling_s"], m["step_s"] - m["sampling_s"]) for m in c["by_dtype"].values()]
    sampling, rest = zip(*parts)
    axes.barh(names, sampling, color="C4", label="sampling")
    axes.barh(names, rest, left=sampling, color="C5", label="loss and optimiser")
    axes.set(title=f"a step on {c['device']}, {c['threads']} thread(s)", xlabel="seconds")
    axes.legend(fontsize=8)


def nothing(axes: Any, why: str) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, "\n".join(textwrap.wrap(why, 40)), ha="center", va="center")
