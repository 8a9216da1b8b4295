"""The learning rate of each row of the method table: the best of three, found in the toy.

python -m lab.rates                      # all rows; finished runs are never repeated
python -m lab.rates sdpo grpo            # these alone

Best is what a practitioner would call so, who has no fresh problems to look at: the rate after
which the student is right most often on its training problems. Written to rates.json and rates.md
of --out_dir; the rates themselves stand in the rows, as `learning_rate`.
"""

import argparse
import json
from pathlib import Path

import lab.extra_losses  # noqa: F401 (importing it adds its rows to the table of methods)
from lab.claims.arms import SHARED
from lab.claims.runs import Run, arm_numbers, folder_name, run_all
from lab.flags import OneLineParser, run_main
from lab.runs import Flags, joined, own_and_passed, split_flags
from lab.statistics import mean_and_interval
from lab.storage import write_atomically, write_json
from minisd import METHODS

RATES = ("1e-4", "3e-4", "1e-3")
STEPS = "60"
REFUSED = {  # flag: why not
    "--method": "rows are words without a flag", "--learning_rate": "it is what is looked for",
    "--init": "all are in the toy", "--data": "all are in the toy",
    "--resume": "the same command goes on", "--seed": "--seeds says how many",
}


def run_of(method: str, rate: str, seed: int, given: Flags, folder: Path) -> Run:
    flags = {"--method": method, "--steps": STEPS, **split_flags(SHARED.split())[1], **given}
    flags |= {"--learning_rate": rate, "--seed": str(seed)}
    place = folder / "runs" / folder_name(method, flags)
    words = ("train_gpt.py", *joined(flags), "--out_dir", str(place))
    return Run(words, place / "summary.json")


def main(argv: list[str]) -> None:
    settings, given = settings_of(argv)
    folder, seeds = Path(settings.out_dir), range(settings.seeds)
    kept = kept_rows(folder)  # fails before the work, not after it
    runs = {
        name: {rate: [run_of(name, rate, seed, given, folder) for seed in seeds] for rate in RATES}
        for name in settings.methods
    }
    arms = {name: [[run] for rows in row.values() for run in rows] for name, row in runs.items()}
    run_all(arms, settings.workers, lambda name, left: print(name, flush=True))
    rows = kept | {name: row_of(found) for name, found in runs.items()}
    write_json(folder / "rates.json", rows)
    write_atomically(folder / "rates.md", lambda path: path.write_text(table(rows)))
    print(table(rows))


def settings_of(argv: list[str]) -> tuple[argparse.Namespace, Flags]:
    """The settings of this command, and the flags for all runs."""
    parser = OneLineParser(
        prog="python -m lab.rates", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=[], help="rows (default: all)")
    parser.add_argument("--seeds", type=int, default=2, help="how many (default: 2)")
    settings, given = own_and_passed(
        parser, argv, limits={"seeds": (1, 1000)}, refused=REFUSED, out_dir="out/rates")
    settings.methods = settings.methods or list(METHODS)
    for name in settings.methods:
        if name not in METHODS:
            raise ValueError(f"method: {name!r}; allowed: {', '.join(METHODS)}")
    return settings, given


def kept_rows(folder: Path) -> dict:
    """The rows of earlier calls. Raises ValueError if the file has none."""
    path = folder / "rates.json"
    try:
        rows = json.loads(path.read_text()) if path.exists() else {}
        table(rows)  # it looks at all that a row must have
    except (ValueError, KeyError, TypeError, AttributeError):
        words = f"--out_dir: {str(path)!r} holds no rates; allowed: another folder"
        raise ValueError(words) from None
    return rows


def row_of(runs: dict[str, list[Run]]) -> dict:
    """Accuracy after training, by rate, and the best rate; a failed run counts as 0."""
    row = {}
    for rate, found in runs.items():
        numbers = [arm_numbers([run]) for run in found]
        row[rate] = {
            split: mean_and_interval([n.get(f"after.{split}.accuracy", 0.0) for n in numbers])
            for split in ("train", "fresh")
        }
    best = max(row, key=lambda rate: row[rate]["train"]["mean"])  # of equal ones the lowest
    return {"rates": row, "best": best}


def table(rows: dict) -> str:
    """Markdown that a terminal shows as well."""
    lines = ["Accuracy after 60 steps of 64 completions, on training / fresh problems; means.", "",
             f"| row | {' | '.join(RATES)} | best on training problems |", "|---" * 5 + "|"]
    for name, row in rows.items():
        means = ["{train[mean]:.2f} / {fresh[mean]:.2f}".format(**row["rates"][r]) for r in RATES]
        lines.append(f"| {name} | {' | '.join(means)} | {row['best']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main("python -m lab.rates", main)
