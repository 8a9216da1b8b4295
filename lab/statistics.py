"""Means with intervals, and how strongly two quantities go together."""

import math

import numpy as np
from scipy import stats


def mean_and_interval(values: list[float], share: float = 0.95) -> dict:
    """Mean, 95 % interval (Student's t) of independent values, and their number n.

    The interval of one value is unknown: low and high are None.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    # Not stats.t.interval, which is nan where all values are equal.
    half = float(stats.t.ppf((1 + share) / 2, n - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def rank_correlation(xs: list[float], ys: list[float]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs; nan of a constant."""
    if np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return math.nan
    return float(stats.spearmanr(xs, ys).statistic)


def slope_and_fit(xs: list[float], ys: list[float]) -> tuple[float, float]:
    """Slope and R^2 of the least-squares line; both 0 where xs or ys are constant."""
    if np.ptp(xs) == 0 or np.ptp(ys) == 0:  # no line through a point, no fit of a constant
        return 0.0, 0.0
    line = stats.linregress(xs, ys)
    return float(line.slope), float(line.rvalue**2)
