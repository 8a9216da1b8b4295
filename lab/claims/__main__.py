"""Published statements about self-distillation as experiments that can fail.

python -m lab.claims list                   # their names and titles
python -m lab.claims coverage --seeds 5     # one claim: runs, table, verdict, picture
python -m lab.claims all --seeds 5          # all of them; finished runs are never repeated

Any other flag of train_gpt.py goes to all arms. Every run is a command of its own, printed as one
can paste it; an interrupted call goes on where it stopped.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

from lab.claims.claim import Claim, all_claims
from lab.claims.judge import MIN_SEEDS, judge
from lab.claims.pictures import draw_claim
from lab.claims.runs import Flags, Run, arm_numbers, code_hash, run_all, runs_of, split_flags
from lab.claims.text import claim_text, claims_markdown
from lab.flags import OneLineParser, run_main
from lab.storage import write_atomically, write_json

OWN = ("--seeds", "--seed", "--workers", "--out_dir")
REFUSED = ("--method", "--init", "--data", "--resume")  # arms set the method, all are in the toy


def main(argv: list[str]) -> None:
    claims = all_claims()
    settings, given = settings_of(argv)
    names = list(dict.fromkeys(settings.names)) or ["list"]
    for name in names:
        if name not in (*claims, "all", "list"):
            raise ValueError(f"claim: {name!r}; allowed: all, list, {', '.join(claims)}")
    if "list" in names:
        print("\n".join(f"{name:18}{claim.title}" for name, claim in claims.items()))
        return
    chosen = {name: claims[name] for name in (claims if "all" in names else names)}
    seeds = list(range(settings.seed, settings.seed + settings.seeds))
    folder, start = Path(settings.out_dir), time.perf_counter()
    known = read_rows(folder)
    rows = run_claims(chosen, given, seeds, folder, settings.workers)
    kept = known | rows
    kept = {name: kept[name] for name in (*claims, *known) if name in kept}
    write_json(folder / "claims.json", rounded(kept))
    write_atomically(folder / "claims.md", lambda path: path.write_text(claims_markdown(kept)))
    for name, row in rows.items():
        draw_claim(folder / f"claim-{name}.png", chosen[name], row)
        print(f"\n{claim_text(name, row)}")
    print(f"\nwritten: {folder / 'claims.json'}, {folder / 'claims.md'}, claim-<name>.png")
    print(f"{time.perf_counter() - start:.0f} seconds")


def settings_of(argv: list[str]) -> tuple[argparse.Namespace, Flags]:
    """The settings of this command, and the flags for all arms."""
    parser = OneLineParser(
        prog="python -m lab.claims", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", default=[], help="claims, or all, or list")
    parser.add_argument("--seeds", type=int, default=MIN_SEEDS, help="how many (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--out_dir", default="out/claims", help="default: out/claims")
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    words, flags = split_flags(argv)
    own = [part for k, v in flags.items() if k in OWN for part in (k, *([v] if v else []))]
    settings = parser.parse_args([*words, *own])
    for name, least in (("seeds", 1), ("seed", 0), ("workers", 1)):
        if getattr(settings, name) < least:
            raise ValueError(f"--{name}: {getattr(settings, name)}; allowed: {least} or more")
    for name in REFUSED:
        if name in flags:
            raise ValueError(f"{name}: {flags[name]!r}; allowed: not with claims, see their arms")
    return settings, {k: v for k, v in flags.items() if k not in OWN}


def run_claims(
    claims: dict[str, Claim], given: Flags, seeds: list[int], folder: Path, workers: int
) -> dict[str, dict]:
    """The judged row of every claim. Arms that claims share run once."""
    runs = {
        (name, arm, seed): runs_of(content, given, seed, folder)
        for seed in seeds
        for name, claim in claims.items()
        for arm, content in claim.arms.items()
    }
    for name, claim in claims.items():
        print(f"{name}: {claim.title}")
        for arm in claim.arms:
            print("".join(f"  {arm}: {run.text}\n" for run in runs[name, arm, seeds[0]]), end="")
    run_all(list(runs.values()), workers)
    return {
        name: row_of(claim, given, seeds, {k[1:]: v for k, v in runs.items() if k[0] == name})
        for name, claim in claims.items()
    }


def row_of(claim: Claim, given: Flags, seeds: list[int], runs: dict[tuple, list[Run]]) -> dict:
    """All that is kept of a claim whose runs, by arm and seed, are done."""
    by_seed = [{arm: arm_numbers(runs[arm, seed]) for arm in claim.arms} for seed in seeds]
    arms = {}
    for arm in claim.arms:
        commands = [run.text for run in runs[arm, seeds[0]]]
        arms[arm] = {"commands": commands, "runs": [rounded(numbers[arm]) for numbers in by_seed]}
    return {
        "source": claim.source, "published": claim.published, "prediction": claim.predicted,
        "seeds": seeds, "flags": given,
        **judge(claim.statements, claim.control, by_seed),
        "comment": claim.found, "code": [code_hash()],
        "core_seconds": sum(n.get("seconds", 0) for numbers in by_seed for n in numbers.values()),
        "arms": arms,
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


def read_rows(folder: Path) -> dict[str, dict]:
    """The rows of earlier calls. Raises ValueError if claims.json is none of this version."""
    path = folder / "claims.json"
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text())
        claims_markdown(rows)  # it looks at all that a row must have
    except (ValueError, KeyError, TypeError, AttributeError):
        words = f"--out_dir: {str(path)!r} has no claims of this version; allowed: another folder"
        raise ValueError(words) from None
    return rows


if __name__ == "__main__":
    run_main("python -m lab.claims", main)
