"""math-verify's verdict on two formulas, from a process of its own that can be stopped.

What a model writes may take sympy hours (9^9^9^9) or all memory, inside operations that no alarm
interrupts; and an alarm needs the main thread and the signal handlers, which training has for
itself. So `same_formula` asks a second process, and ends it when it has used up its time.
"""

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading

CPU_S = 1.0  # of one verdict; usual ones take 0.01 to 0.4. Not of the clock: load changes nothing
WALL_S = 10.0  # where there is no such timer, and for a process that somebody has stopped
START_S = 120.0  # to import sympy, a second on an idle machine
MEMORY_BYTES = 2**31


@functools.lru_cache(maxsize=4096)  # a completion is graded for its reward and for the measures
def same_formula(given: str, reference: str) -> bool:
    """Whether two LaTeX formulas are equal for math-verify; False if that takes too long.

    Raises ValueError if math-verify cannot be imported.
    """
    # A fork of this process has another number, and does not read answers that are not its own.
    return WORKERS.setdefault(os.getpid(), Worker()).ask(given, reference)


class Worker:
    """The other process, started when it is first asked and again after each that was ended."""

    # -P: the names of files in lab/ must not stand for those of the standard library.
    command = (sys.executable, "-P", __file__)

    def __init__(self):
        self.lock, self.process = threading.Lock(), None

    def ask(self, given: str, reference: str) -> bool:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                self.stop()  # that somebody ended it is not the fault of this question
                self.start()
            answer = ""
            try:
                answer = self.line(json.dumps([given, reference]), WALL_S)
            finally:  # also if a signal came meanwhile: its answer must not be the next one's
                if not answer:
                    self.stop()
            return answer == "true\n"

    def start(self) -> None:
        # A session of its own: Ctrl-C is for the training, which ends this one by itself.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            self.command, text=True, start_new_session=True, **pipes)
        ready = ""
        try:
            ready = self.line("", START_S)
        finally:
            if not ready:
                self.stop()
        if not ready:
            raise ValueError("--reward boxed: math-verify does not start; allowed: with the "
                             "packages of requirements.txt")

    def line(self, question: str, seconds: float) -> str:
        """The line that answers a question; empty if the process ended, or took longer."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
            return self.process.stdout.readline()
        except BrokenPipeError:
            return ""
        finally:
            timer.cancel()

    def stop(self) -> None:
        process, self.process = self.process, None
        if process:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # a question that nobody has read
                process.stdin.close()


WORKERS: dict[int, Worker] = {}  # by the number of the process that asks


@atexit.register
def stop_own() -> None:
    if own := WORKERS.pop(os.getpid(), None):
        own.stop()


# In the other process ----------------------------------------------------------------------------


def verdicts() -> None:
    """Reads pairs of formulas from stdin until it is closed; writes true or false for each."""
    import logging

    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    # Formulas alone: its reader of plain expressions calls eval. Units are the grader's business:
    # the library's own list takes the t of 3t for one.
    reading = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=(
        NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")))]
    options = {"extraction_config": reading, "parsing_timeout": None,
               "fallback_mode": "no_fallback"}

    def same(given: str, reference: str) -> bool:
        gold, found = (parse(f"${text}$", **options) for text in (reference, given))
        # To 12 decimals: to its default of 6, 0.0000001 is 0.0000002 and pi is 3.141593.
        return bool(gold and found) and verify(
            gold, found, float_rounding=12, allow_set_relation_comp=True, timeout_seconds=None)

    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    same("x + 1", "1 + x")  # the first one takes a third of a second
    sys.stdin.readline()
    print("ready", flush=True)
    for line in sys.stdin:
        if hasattr(signal, "setitimer"):  # its signal ends the process, inside a C function too
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
        try:
            answer = same(*json.loads(line))
        except Exception:  # whatever sympy finds wrong with it
            answer = False
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    verdicts()
