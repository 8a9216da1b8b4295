"""Times of functions side by side, and tables of them."""

import statistics
import time
from collections.abc import Callable

import torch


def clock(device: str) -> Callable[[], float]:
    """Seconds: of this process on a CPU, to which other work does not add; of the wall on a GPU."""
    if device == "cpu":
        return time.process_time

    def finished() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return finished


def alternate(functions: dict, repetitions: int, device: str = "cpu") -> dict:
    """Median seconds of each function; all run once before, then in turns."""
    seconds, now = {name: [] for name in functions}, clock(device)
    for function in functions.values():
        function()
    for _ in range(repetitions):
        for name, function in functions.items():
            start = now()
            function()
            seconds[name].append(now() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(headings: tuple, rows: list[tuple]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


class Stopwatch:
    """CPU seconds by name; what a timed function spends in another one counts there alone."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.inner = [0.0]  # of each timed function at work: seconds in others

    def timed(self, name: str, function: Callable) -> Callable:
        def run(*arguments, **options):
            start = time.process_time()
            self.inner.append(0.0)
            result = function(*arguments, **options)
            spent = time.process_time() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self.inner.pop()
            self.inner[-1] += spent
            return result

        return run
