"""The runs of the arena, a file each.

They stand in a module of their own because a worker process cannot unpickle what is defined in the
`__main__` of a package.
"""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from lab.arena.run import TUNING, Universe, result_of
from lab.arena.world import settings
from lab.claims.runs import code_hash
from lab.storage import write_json

CODE = ("minisd.py", "toy_tasks.py", "lab/base.py", "lab/evaluation.py", "lab/extra_losses.py",
        "lab/fixes/*.py", "lab/arena/world.py", "lab/arena/run.py")


@dataclass(frozen=True)
class Job:
    """One run, and the file that its result is kept in."""

    world: str
    row: str
    universe: Universe
    rate: float
    path: Path
    cache_dir: str

    def result(self) -> dict | None:
        try:
            return json.loads(self.path.read_text()) if self.path.exists() else None
        except ValueError:
            return None  # half a file: it is run again

    def run(self) -> dict:
        torch.set_num_threads(1)
        universe = TUNING if self.universe == TUNING else self.universe  # another process's copy
        with contextlib.redirect_stdout(io.StringIO()):  # what base model it is, every time
            found = result_of(settings()[self.world], self.row, universe, self.rate, self.cache_dir)
        write_json(self.path, found)
        return found


def job_of(world: str, row: str, universe: Universe, rate: float, folder: Path, cache: str) -> Job:
    name = f"{world}-{row}-{universe.number}-{rate:g}-{code_hash(CODE)}.json"
    return Job(world, row, universe, rate, folder / "runs" / name, cache)
