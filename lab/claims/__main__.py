"""Published statements about self-distillation as experiments that can fail.

python -m lab.claims list             # their names and titles
python -m lab.claims suppression      # one claim: runs in eight universes, verdict, picture
python -m lab.claims all              # all of them; finished runs are never repeated

Any other flag of train_gpt.py goes to all arms. Every run is a command of its own, which claims.md
has as one can paste it; an interrupted call goes on where it stopped.
"""

import argparse
import json
import math
import time
from pathlib import Path

from tqdm import tqdm

from lab.claims.claim import Claim, all_claims, modules
from lab.claims.judge import judge
from lab.claims.pictures import draw_claim
from lab.claims.runs import (
    Flags,
    Run,
    arm_numbers,
    arms_in,
    bases_of,
    code_hash,
    run_all,
    runs_of,
    varying,
)
from lab.claims.text import claim_text, claims_markdown, time_text, verdict_line
from lab.claims.universes import UNIVERSES, Universe
from lab.flags import OneLineParser, run_main
from lab.runs import own_and_passed
from lab.storage import write_atomically, write_json

REFUSED = {  # flag: why not
    "--method": "see their arms", "--init": "all are in the toy", "--data": "all are in the toy",
    "--resume": "the same command goes on", "--seed": "it is the number of the universe",
    "--seeds": "--universes",
}
SHOWN = 3  # claims up to which all of a claim is shown on the terminal


def main(argv: list[str]) -> None:
    claims, others = all_claims(), other_commands()
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:])
    settings, given = settings_of(argv)
    names = list(dict.fromkeys(settings.names)) or ["list"]
    for name in names:
        if name not in (*claims, "all", "list"):
            known = ", ".join(("all", "list", *others, *claims))
            raise ValueError(f"claim: {name!r}; allowed: {known}")
    if "list" in names:
        print("\n".join(f"{name:18}{claim.title}" for name, claim in claims.items()))
        return
    chosen = {name: claims[name] for name in (claims if "all" in names else names)}
    folder, start = Path(settings.out_dir), time.perf_counter()
    rows = run_claims(
        chosen, given, UNIVERSES[: settings.universes], folder, settings.workers, order=[*claims])
    if len(rows) <= SHOWN:
        print("\n" + "\n\n".join(map(claim_text, rows)))
    print(f"\nwritten: {folder / 'claims.json'}, {folder / 'claims.md'}, claim-<name>.png")
    print(time_text(time.perf_counter() - start))


def other_commands() -> dict:
    """The modules of this package that are no claim and have a main(arguments), by name."""
    found = {name: getattr(module, "main", None) for name, module in modules().items()}
    return {name: function for name, function in found.items() if function}


def settings_of(argv: list[str]) -> tuple[argparse.Namespace, Flags]:
    """The settings of this command, and the flags for all arms."""
    parser = OneLineParser(
        prog="python -m lab.claims", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    most = len(UNIVERSES)
    parser.add_argument("names", nargs="*", default=[], help="claims, or all, or list")
    parser.add_argument("--universes", type=int, default=most, help="the first n (default: 8)")
    return own_and_passed(
        parser, argv, limits={"universes": (1, most)}, refused=REFUSED, out_dir="out/claims")


def run_claims(
    claims: dict[str, Claim], given: Flags, universes: list[Universe], folder: Path, workers: int,
    order: list[str],
) -> list[dict]:
    """The judged rows of claims, which are also written as soon as their runs are done.

    Arms that claims share run once. order: of the rows in claims.json, which may have others.
    """
    kept = {row["claim"]: row for row in read_rows(folder)}
    runs = {
        name: [
            {arm: runs_of(content, given, u, folder) for arm, content in arms_in(claim, u).items()}
            for u in universes
        ]
        for name, claim in claims.items()
    }
    rows, width = {}, 1 + max(map(len, claims))

    def finished(name: str, seconds: float | None) -> None:
        numbers = [{arm: arm_numbers(r) for arm, r in arms.items()} for arms in runs[name]]
        rows[name] = row_of(claims[name], given, universes, runs[name], numbers)
        kept[name] = rounded(rows[name])
        write_rows(folder, [kept[n] for n in dict.fromkeys((*order, *kept)) if n in kept])
        draw_claim(folder / f"claim-{name}.png", claims[name], kept[name], numbers)
        left = f", {time_text(seconds)} left" if seconds else ""
        count = f"[{len(rows):{len(str(len(claims)))}}/{len(claims)}]"
        tqdm.write(f"{count} {verdict_line(rows[name], width)}{left}")

    queues = {name: [r for arms in of for r in arms.values()] for name, of in runs.items()}
    run_all(queues, workers, finished)
    return [kept[name] for name in claims]


def row_of(
    claim: Claim, given: Flags, universes: list[Universe], runs: list[dict[str, list[Run]]],
    numbers: list[dict],
) -> dict:
    """All that is kept of a claim whose runs, by universe and arm, are done."""
    nothing = {arm: {} for arm in claim.once}  # outside the first universe
    found = judge(
        claim, universes, [nothing | n for n in numbers], bases=list(bases_of(claim)),
        factors=varying(claim, given),
    )
    return {
        "claim": claim.name, "title": claim.title, "source": claim.source,
        "published": claim.published, "predicted": claim.predicted, "found": claim.found, **found,
        "commands": {arm: [run.text for run in of] for arm, of in runs[0].items()},
        "code": code_hash(),
        "core_seconds": sum(n.get("seconds", 0) for arms in numbers for n in arms.values()),
        "flags": given,
    }


def rounded(value):
    """Floats anywhere inside with five significant digits; None, which JSON has, for nan."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def write_rows(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "claims.json", rows)
    text = claims_markdown(rows)
    write_atomically(folder / "claims.md", lambda path: path.write_text(text))


def read_rows(folder: Path) -> list[dict]:
    """The rows of earlier calls. Raises ValueError if claims.json is none of this version."""
    path = folder / "claims.json"
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())
        claims_markdown(rows)  # it looks at all that a row must have
    except (ValueError, KeyError, TypeError, AttributeError):
        words = f"--out_dir: {str(path)!r} has no claims of this version; allowed: another folder"
        raise ValueError(words) from None
    return rows


if __name__ == "__main__":
    run_main("python -m lab.claims", main)
