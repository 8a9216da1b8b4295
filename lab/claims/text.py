"""Judged claims as a person reads them: on the terminal, and as claims.md."""

import shlex
import textwrap

from lab.claims.judge import interval_text, short
from lab.claims.runs import code_hash
from lab.claims.universes import UNIVERSES

MARKS = {
    "reproduced": "\N{HEAVY CHECK MARK}",
    "opposite": "\N{HEAVY BALLOT X}",
    "fragile": "\N{WHITE UP-POINTING TRIANGLE}",
    "not testable here": "\N{WHITE CIRCLE}",
    "too few universes": "\N{HORIZONTAL ELLIPSIS}",
}
RULE = (
    "Every claim is tried in eight universes: half and twice the learning rate that suits its "
    "method best, 60 and 120 steps, base models with all and with 70 % of their pretraining, each "
    "with a seed of its own. reproduced: in at least 7 of 8 the effect is beyond the bound that "
    "was written down before, and beyond its control by half of that. opposite: the same with the "
    "other sign. fragile: anything else. Numbers are means over the universes with 95 % intervals."
)


def bound_text(effect: dict) -> str:
    """What was predicted, such as < -0.1."""
    if "within" in effect:
        return f"within \N{PLUS-MINUS SIGN}{effect['within']:g}"
    return effect["bound"]


def count_text(row: dict) -> str:
    """In how many universes the effect holds, such as 7 of 8."""
    return f"{row['holds']} of {len(row['universes'])}"


def verdict_line(row: dict, width: int = 0) -> str:
    """A finished claim in one line, such as `coverage: fragile (holds in 5 of 8)`."""
    return f"{row['claim'] + ':':{width}} {row['verdict']} (holds in {count_text(row)})"


def time_text(seconds: float) -> str:
    """Such as 4 min 10 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def value_text(a: dict) -> str:
    """A number with its bound, as of `also`."""
    x = "unknown" if a["value"] is None else short(a["value"])
    return f"{x} ({'as' if a['holds'] else 'not as'} predicted: {a['bound']})"


def tested_text(t: dict) -> str:
    mean = "unknown" if t["mean"] is None else short(t["mean"])
    return f"{mean} (needed: {t['bound']}, so in {t['holds']} universes)"


def claim_text(row: dict) -> str:
    """A judged claim for the terminal."""
    lines = [f"{row['claim']}: {row['verdict'].upper()}   ({row['source']})", f"  {row['title']}"]
    texts = {"Why: ": row["why"], "Published: ": row["published"], "Predicted: ": row["predicted"]}
    for what, text in (texts | {"Found: ": row["found"]}).items():
        if text:
            lines += textwrap.wrap(what + text, 98, initial_indent="  ", subsequent_indent="  ")
    e, c, d = row["effect"], row["control"], row["difference"]
    lines += [
        f"  holds in {count_text(row)} universes",
        f"  {'effect':10}{interval_text(e):>24}  (predicted {bound_text(e)})  {e['words']}",
        f"  {'control':10}{interval_text(c):>24}  {c['words']}",
        f"  {'difference':10}{interval_text(d):>24}",
    ]
    lines += [f"  testable: {t['words']}: {tested_text(t)}" for t in row["testable"]]
    lines += [f"  also, in universe 0: {a['words']}: {value_text(a)}" for a in row["also"]]
    return "\n".join(lines)


def claims_table(rows: list[dict]) -> str:
    """One line a claim, in Markdown."""
    lines = ["| verdict | claim | effect (predicted) | control | holds in |", "|---" * 5 + "|"]
    for row in rows:
        e, why = row["effect"], f": {row['why']}" if row["why"] else ""
        lines.append(
            f"| {MARKS[row['verdict']]} {row['verdict']}{older(row)} "
            f"| [{row['title']}](#{row['claim']}) ({row['source']}) "
            f"| {interval_text(e)} ({bound_text(e)}) | {interval_text(row['control'])} "
            f"| {count_text(row)}{why} |"
        )
    return "\n".join(lines)


def claim_flags(row: dict) -> str:
    """What makes a row again, behind `python -m lab.claims`."""
    count = len(row["universes"])
    own = ["--universes", str(count)] if count < len(UNIVERSES) else []
    given = [part for k, v in row["flags"].items() for part in ([k] if v is None else [k, v])]
    return shlex.join([row["claim"], *own, *given])


def older(row: dict) -> str:
    """A mark of rows whose numbers come from another version of the code than this one."""
    return "" if row["code"] == code_hash() else " (older code)"


def claims_markdown(rows: list[dict]) -> str:
    """The table of all claims, and every number and command below it."""
    counts = {v: sum(row["verdict"] == v for row in rows) for v in MARKS}
    said = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    lines = ["# Claims", "", f"{said}.", "", claims_table(rows), "", RULE]
    for row in rows:
        lines += ["", *section(row)]
    return "\n".join(lines) + "\n"


def section(row: dict) -> list[str]:
    """A claim's part of claims.md."""
    name, e, c = row["claim"], row["effect"], row["control"]
    lines = [f"## {name}", "", f"{row['title']}", "", f"![{name}](claim-{name}.png)", ""]
    why = f": {row['why']}" if row["why"] else ""
    lines += [f"- **{row['verdict']}**{why}; holds in {count_text(row)} universes"]
    lines += [f"- effect: {e['words']}: {interval_text(e)}, predicted {bound_text(e)}"]
    lines += [f"- control: {c['words']}: {interval_text(c)}"]
    lines += [f"- effect minus control: {interval_text(row['difference'])}"]
    lines += [f"- testable: {t['words']}: {tested_text(t)}" for t in row["testable"]]
    lines += [f"- also, in universe 0: {a['words']}: {value_text(a)}" for a in row["also"]]
    lines += ["", f"Source: {row['source']}. Published: {row['published']}.", ""]
    lines += [f"Predicted before the runs: {row['predicted']}", ""]
    lines += [f"Found: {row['found']}", ""] if row["found"] else []
    lines += ["The commands of the first universe:", ""]
    lines += [f"- {arm}: `{text}`" for arm, texts in row["commands"].items() for text in texts]
    again = f"`python -m lab.claims {claim_flags(row)}`"
    return [*lines, "", f"All universes: {again}, {row['core_seconds']:.0f} core seconds."]
