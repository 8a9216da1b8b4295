"""Which fix of self-distillation should one use? All of them side by side, with their controls.

python -m lab.arena                                # all rows, two worlds, eight universes
python -m lab.arena sdpo rlsd rlcsd grpo --seeds 3 # these rows and their controls, three universes
python -m lab.arena --quick                        # ten rows, two universes, world v2: minutes
python -m lab.arena grpo dapo --rate 3e-4 --out_dir out/arena-3e-4      # one rate for all of them

Finished runs are never repeated. Learning rates are chosen first, on a seed of their own. Then all
rows run in a universe before the next one begins, so that a call that is stopped leaves a table
with as many universes for every row. Writes arena.json, arena.md and arena.png to --out_dir.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lab.arena import table
from lab.arena.forecast import forecast_of, has_forecast
from lab.arena.gate import gate_of
from lab.arena.jobs import CODE, Job, job_of
from lab.arena.run import RATES, STEPS, TUNING, UNIVERSES, Universe, starting_model
from lab.arena.world import settings
from lab.claims.runs import code_hash
from lab.claims.text import time_text
from lab.fixes import FIXES
from lab.flags import OneLineParser, out_folder, run_main
from lab.storage import write_json

QUICK = ("grpo", "exact_anchor", "ours", "rlcsd", "rlcsd_shuffled", "antisd", "opsa", "opsd",
         "purified", "opsd_js")


def tuned(results: dict[float, dict | None]) -> float:
    """The rate after which training problems are right most often; of equal ones the lowest.

    >>> tuned({1e-4: {"train": 0.5}, 3e-4: {"train": 0.7}, 1e-3: {"failed": "nan"}})
    0.0003
    """
    return max(results, key=lambda rate: (results[rate] or {}).get("train", -1.0))


def forecasts(world: str, rows: list[str], folder: Path, cache_dir: str) -> dict[str, float]:
    """The forecast of each row that has one; kept in a file, made before the first universe."""
    setting, path = settings()[world], folder / "runs" / f"{world}-forecasts-{code_hash(CODE)}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for row in rows:
        if row not in kept and has_forecast(row, setting.task(0, 0).attempts):
            kept[row] = forecast_of(setting, row, cache_dir)
            write_json(path, kept)
    return {row: kept[row] for row in rows if row in kept}


class Progress:
    """A line for each finished run, with the time that is left at the pace so far."""

    def __init__(self, total: int):
        self.total, self.done, self.begun = total, 0, time.perf_counter()

    def tell(self, job: Job, found: dict) -> None:
        self.done += 1
        left = (time.perf_counter() - self.begun) / self.done * (self.total - self.done)
        where = "rates" if job.universe is TUNING else f"universe {job.universe.number}"
        said = found.get("failed") or ", ".join(
            f"{name} {found[name]:.2f}" for name in ("speed", "train", "fresh") if name in found)
        print(f"[{self.done}/{self.total}] {job.world} {where}: {job.row} at {job.rate:g}: {said}; "
              f"{time_text(left)} left", flush=True)


def done(jobs: list[Job], workers: int, progress: Progress) -> None:
    """Does what is not done, `workers` at a time."""
    left = [job for job in jobs if job.result() is None]
    if left:  # made here, so that whoever waits for it is told
        starting_model(settings()[left[0].world], left[0].universe, left[0].cache_dir)
    if workers == 1 or len(left) < 2:
        for job in left:
            progress.tell(job, job.run())
        return
    # Not a fork: PyTorch has its threads already.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(job.run): job for job in left}
        for future in waiting:
            progress.tell(waiting[future], future.result())


def rows_of(names: list[str]) -> list[str]:
    """The rows asked for, each behind its control and the control of that, in table order."""
    wanted = set(names or FIXES)
    for name in list(wanted):
        while name := FIXES[name].control:
            if name in wanted:
                break
            wanted.add(name)
    return [name for name in FIXES if name in wanted | {"grpo"}]


def settings_of(argv: list[str]) -> argparse.Namespace:
    """The settings of this command. Raises ValueError."""
    parser = OneLineParser(prog="python -m lab.arena", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=[], help="rows (default: all)")
    parser.add_argument("--seeds", type=int, default=len(UNIVERSES), help="universes, 1 to 8")
    parser.add_argument("--world", default="both", help="v2, arena or both (default)")
    parser.add_argument("--quick", action="store_true", default=False,
                        help="ten rows, two universes, in v2 or the world given")
    parser.add_argument("--rate", type=float, default=0.0,
                        help="learning rate of all rows, instead of each row's own best")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--out_dir", default="out/arena", help="default: out/arena")
    parser.add_argument("--cache_dir", default="out/base", help="where base models are kept")
    asked = parser.parse_args(argv)
    for name in asked.rows:
        if name not in FIXES:
            raise ValueError(f"row: {name!r}; allowed: {', '.join(FIXES)}")
    if not 1 <= asked.seeds <= len(UNIVERSES):
        raise ValueError(f"--seeds: {asked.seeds}; allowed: 1 to {len(UNIVERSES)}")
    if asked.rate not in (0.0, *RATES):
        raise ValueError(f"--rate: {asked.rate:g}; allowed: {', '.join(f'{r:g}' for r in RATES)}")
    if not 1 <= asked.workers <= 1000:
        raise ValueError(f"--workers: {asked.workers}; allowed: 1 to 1000")
    if asked.world not in (*settings(), "both"):
        raise ValueError(f"--world: {asked.world!r}; allowed: {', '.join(settings())}, both")
    out_folder(asked.out_dir)
    if asked.quick:
        world = "v2" if asked.world == "both" else asked.world
        asked.seeds, asked.world = min(2, asked.seeds), world
    quick = asked.quick and not asked.rows
    asked.rows = [name for name in FIXES if name in QUICK] if quick else rows_of(asked.rows)
    asked.worlds = list(settings()) if asked.world == "both" else [asked.world]
    return asked


def main(argv: list[str]) -> None:
    asked = settings_of(argv)
    folder = Path(asked.out_dir)
    (folder / "runs").mkdir(parents=True, exist_ok=True)

    def jobs(world: str, universe: Universe, rate_of: Callable[[str], tuple]) -> list[Job]:
        return [job_of(world, row, universe, rate, folder, asked.cache_dir)
                for row in asked.rows for rate in rate_of(row)]

    tuning = {world: jobs(world, TUNING, lambda row: RATES) for world in asked.worlds}
    known = sum(job.result() is not None for of in tuning.values() for job in of)
    total = len(asked.worlds) * len(asked.rows) * (len(RATES) + asked.seeds) - known
    progress, gates = Progress(total), {}
    laws: dict[str, dict[str, float]] = {}
    found: dict[str, list] = {world: [] for world in asked.worlds}  # a list of jobs a universe

    for first in range(0, asked.seeds, 2):  # two mirrored universes of every world, and so on
        for world in asked.worlds:
            done(tuning[world], asked.workers, progress)
            results = {row: {} for row in asked.rows}
            for job in tuning[world]:
                results[job.row][job.rate] = job.result()
            rates = {row: asked.rate or tuned(of) for row, of in results.items()}
            if world not in gates:
                gates[world] = gate_of(settings()[world], results["grpo"], asked.cache_dir)
                print(table.gate_lines(gates[world]), flush=True)
                laws[world] = forecasts(world, asked.rows, folder, asked.cache_dir)
            for universe in UNIVERSES[first : min(first + 2, asked.seeds)]:
                todo = jobs(world, universe, lambda row: (rates[row],))  # noqa: B023
                progress.total -= sum(job.result() is not None for job in todo)
                done(todo, asked.workers, progress)
                found[world].append((universe, {job.row: job.result() for job in todo}))
                rows = [table.row_of(w, row, found[w], tuning_of(tuning[w], row), STEPS,
                                     laws[w].get(row)) | {"code": code_hash(CODE)}
                        for w in asked.worlds if found[w] for row in asked.rows]
                table.write(folder, *table.merged(folder, rows, list(gates.values())))
    print(f"written: {folder / 'arena.json'}, arena.md, arena.png")


def tuning_of(jobs: list[Job], row: str) -> dict[float, dict]:
    return {job.rate: job.result() for job in jobs if job.row == row}


if __name__ == "__main__":
    run_main("python -m lab.arena", main)
