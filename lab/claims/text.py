"""Judged claims as a person reads them: on the terminal, and as claims.md."""

import shlex
import textwrap

from lab.claims.runs import code_hash


def interval_text(r: dict) -> str:
    """Mean and interval, such as -0.31 [-0.35, -0.27]."""
    if r["mean"] is None:
        return "-"
    spread = "" if r["low"] is None else f" [{r['low']:.3g}, {r['high']:.3g}]"
    return f"{r['mean']:.3g}{spread}"


def bound_text(r: dict) -> str:
    """What was predicted, such as < -0.1."""
    return f"> {r['above']:g}" if r["below"] is None else f"< {r['below']:g}"


def control_text(row: dict) -> str:
    """What the control does to the effect, in words."""
    first = row["statements"][0]["verdict"]
    if first in ("too few seeds", "not measured") or row["control"]["mean"] is None:
        return "not judged"
    if first != "reproduced":
        return "not asked, as the effect is not reproduced"
    return "removes the effect" if row["control"]["removes_effect"] else "keeps the effect"


def claim_text(name: str, row: dict) -> str:
    """A judged claim for the terminal."""
    lines = [f"{name}: {row['verdict'].upper()}   ({row['source']})"]
    for what, text in (
        ("Published: ", row["published"]),
        ("Predicted: ", row["prediction"]),
        ("Found in the first edition: ", row["comment"]),
    ):
        if text:
            lines += textwrap.wrap(what + text, 98, initial_indent="  ", subsequent_indent="  ")
    for s in row["statements"]:
        lines.append(f"  {s['verdict']:15}{interval_text(s):>25}  ({bound_text(s)})  {s['words']}")
    c = row["control"]
    lines.append(f"  {'control':15}{interval_text(c):>25}  {c['words']}: {control_text(row)}")
    lines.append(f"  {row['held']} of {len(row['statements'])} statements hold")
    return "\n".join(lines)


def claims_table(rows: dict[str, dict]) -> str:
    """One line a claim, in Markdown."""
    lines = [
        "| `python -m lab.claims` with: | source | verdict; statements that hold "
        "| the effect: measured, predicted | control |",
        "|---" * 5 + "|",
    ]
    for name, row in rows.items():
        s, c = row["statements"][0], row["control"]
        lines.append(
            f"| `{claim_flags(name, row)}` | {row['source']} "
            f"| **{row['verdict']}**{older(row)}; {row['held']} of {len(row['statements'])} "
            f"| {s['words']}: {interval_text(s)}, {bound_text(s)} "
            f"| {c['words']}: {interval_text(c)}, {control_text(row)} |"
        )
    return "\n".join(lines)


def claim_flags(name: str, row: dict) -> str:
    """What makes a row again, behind `python -m lab.claims`."""
    own = ["--seed", str(row["seeds"][0])] if row["seeds"][0] else []
    own += ["--seeds", str(len(row["seeds"]))]
    given = [part for k, v in row["flags"].items() for part in ([k] if v is None else [k, v])]
    return shlex.join([name, *own, *given])


def older(row: dict) -> str:
    """A mark of rows whose numbers come from another version of the code than this one."""
    if "commit" in row:
        return f" (commit {row['commit']})"
    return "" if row["code"] == [code_hash()] else " (older code)"


def claims_markdown(rows: dict[str, dict]) -> str:
    """The table of all claims, and every statement and command below it."""
    lines = ["# Claims", "", claims_table(rows)]
    for name, row in rows.items():
        lines += ["", f"## {name}: {row['verdict']}", "", f"![{name}](claim-{name}.png)", ""]
        lines += [f"Source: {row['source']}. Published: {row['published']}.", ""]
        lines += [f"Predicted before the runs: {row['prediction']}", ""]
        for s in row["statements"]:
            text = f"{s['words']}: {interval_text(s)}, predicted {bound_text(s)}"
            lines.append(f"- {s['verdict']}: {text}")
        c = row["control"]
        lines.append(f"- control, {control_text(row)}: {c['words']}: {interval_text(c)}")
        lines += ["", f"Found in the first edition: {row['comment']}"] if row["comment"] else []
        lines += ["", f"    python -m lab.claims {claim_flags(name, row)}", ""]
        for arm, content in row["arms"].items():
            commands = content.get("commands", [])
            lines += [f"- {arm}: `{command}`" for command in commands]
        lines += ["", f"{row['core_seconds']:.0f} seconds of training and measuring."]
    return "\n".join(lines) + "\n"
