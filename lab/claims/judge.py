"""Verdicts: on one statement over seeds, on a control, on a claim."""

import dataclasses

import numpy as np

from lab.claims.statements import Quantity, Runs, Statement
from lab.statistics import mean_and_interval

MIN_SEEDS = 5  # fewer give no verdict


def verdict(
    values: list[float], *, above: float | None = None, below: float | None = None, none: float = 0
) -> dict:
    """Mean, 95 % interval over seeds and the verdict on `mean > above`, or on `mean < below`.

    reproduced: the whole interval is beyond the bound. opposite: the whole interval is on the other
    side both of the bound and of `none`, what it would be without any effect (a norm or a spread
    has no other side). not reproduced: all else. too few seeds: less than MIN_SEEDS. not measured:
    a value is not finite, as after a run that failed.
    """
    if (above is None) == (below is None):
        raise ValueError(f"above {above}, below {below}; allowed: exactly one of them")
    if not np.isfinite(values).all():
        nothing = {"mean": None, "low": None, "high": None, "n": len(values)}
        return nothing | {"verdict": "not measured"}
    result = mean_and_interval(values)
    if result["n"] < MIN_SEEDS:
        return result | {"verdict": "too few seeds"}
    sign, bound = (1, above) if below is None else (-1, -below)
    low, high = sorted((sign * result["low"], sign * result["high"]))
    words = "not reproduced"
    if low > bound:
        words = "reproduced"
    elif high < min(sign * none, bound):
        words = "opposite"
    return result | {"verdict": words}


def judge(statements: list[Statement], control: Quantity, runs: list[Runs]) -> dict:
    """All statements, the control and the verdict of a claim, from the runs of every seed.

    The verdict is that of the first statement, and reproduced only if the control removes the
    effect. The other statements have verdicts of their own; `held` counts all that are reproduced.
    """
    first = statements[0]
    results = [judged(s, runs) for s in statements]
    rest = dataclasses.replace(first, words=control.words, value=control.value, none=control.none)
    found = judged(rest, runs)
    removed = removes(first, results[0]["values"], found["values"])
    found = {k: found[k] for k in ("words", "values", "mean", "low", "high", "n")}
    found["removes_effect"] = removed
    total = results[0]["verdict"]
    if total == "reproduced" and not removed:
        total = "not measured" if found["mean"] is None else "not reproduced"
    held = sum(r["verdict"] == "reproduced" for r in results)
    return {"verdict": total, "held": held, "statements": results, "control": found}


def judged(s: Statement, runs: list[Runs]) -> dict:
    """A statement with its value of every seed, their mean and interval, and its verdict."""
    values, bound = [float(s.value(r)) for r in runs], {"above": s.above, "below": s.below}
    return {"words": s.words, **bound, "values": values, **verdict(values, **bound, none=s.none)}


def removes(first: Statement, effects: list[float], rests: list[float]) -> bool:
    """Whether the control removes the effect.

    Less than half of it is left, seed by seed with its interval, and too little for the bound.
    """
    sign = 1 if first.below is None else -1
    pairs = [(sign * (e - first.none), sign * (r - first.none)) for e, r in zip(effects, rests)]
    less = verdict([effect - 2 * rest for effect, rest in pairs], above=0.0)
    reaches = verdict(rests, above=first.above, below=first.below)
    return less["verdict"] == "reproduced" and reaches["verdict"] != "reproduced"
