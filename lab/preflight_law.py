"""What the forecast of lab/forecast.py says of a method, and how far it has been off so far.

    1 classes of tokens   2 a method as the law sees it   3 the record, and the verdict
"""

import json
import math
from pathlib import Path

import minisd
from lab import forecast
from minisd import Method

# 1. Classes of tokens -----------------------------------------------------------------------------

# Of text: numbers | operators and LaTeX | each other token. Chosen once, before any run of a real
# checkpoint was forecast; lab/preflight_table.py says how much hangs on them.
NUMBERS = r"\s*\d+"
OPERATORS = (
    r"\s*[-+*/=<>^_%$&|~(){}\[\]\\\u00b1\u00b7\u00d7\u00f7\u2212\u2260\u2264\u2265]+"
    r"|\s*\\?(frac|boxed|box|cdot|times|div|sqrt|left|right|text)")
TEXT_CLASSES = (NUMBERS, OPERATORS)
KINDS = ("numbers", "operators", "other")

# 2. A method as the law sees it -------------------------------------------------------------------
LAW = "corrected"
CORRECTION = (
    "corrected: in each class of tokens the student's likeliest gets the teacher's largest "
    "probability, so that doubt which belongs to a manner is not taken for ignorance")
Hint = tuple[str, float, float]  # context; weights of the hinted and of the bare student


def hint_of(method: Method) -> Hint | None:
    """The teacher's target as a log-linear sum of the student with a context and without.

    None where the law says nothing: rewards, other weights, two contexts, a student that is hinted.
    """
    own = all(weights != "external" for _, weights, _ in method.terms)
    kinds = {c for _, _, c in method.terms} - {"none"}
    if method.reward_weight > 0 or not own or len(kinds) != 1 or method.student_context != "none":
        return None
    bare = sum(a for a, _, c in method.terms if c == "none")
    return (*kinds, sum(a for a, _, _ in method.terms) - bare, bare)


def law_of(hint: Hint) -> str:
    """The name in `forecast.LAWS` of the corrected law towards that target, put there if new."""
    _, hinted, bare = hint
    if (hinted, bare) == (1.0, 0.0):
        return LAW
    name, inner = f"{LAW} {hinted:g} {bare:g}", forecast.LAWS[LAW]
    forecast.LAWS[name] = lambda s, t, classes: inner(
        s, hinted * minisd.log_softmax(t) + bare * minisd.log_softmax(s), classes)
    return name


# 3. The record, and the verdict -------------------------------------------------------------------
RESULTS = Path(__file__).parent / "results"
MOVED = 0.05  # a smaller change has no sign that matters
ENOUGH, SIGNS = 4, 0.75  # runs that moved; the share of right signs below which a law failed


def record_of(changes: list[tuple[float, float]]) -> dict:
    """Root mean square error, and right signs, of (predicted, measured) changes (fractions)."""
    moved = [(p, m) for p, m in changes if abs(m) > MOVED]
    right = sum(p * m > 0 for p, m in moved)
    return {
        "runs": len(changes), "moved": len(moved), "signs_frac": right / max(1, len(moved)),
        "error_frac": math.sqrt(sum((p - m) ** 2 for p, m in changes) / len(changes)),
    }


def track_record(real: bool, results: Path = RESULTS) -> dict:
    """How far off the law has been: in the toy and, once it was tried, on a real checkpoint."""
    points = json.loads((results / "forecasts.json").read_text())
    found = {"failed": False, "toy": record_of(
        [(p["predicted"][LAW] - p["before_fresh"], p["after_fresh"] - p["before_fresh"])
         for p in points])}
    path = results / "preflight.json"
    points = json.loads(path.read_text())["points"] if real and path.exists() else []
    if points := [p for p in points if p.get("after_fresh") is not None]:
        # From the law's own samples before the run: those of the measurement are others.
        x = found["real"] = record_of(
            [(p["predicted_fresh"] - p["now_fresh"], p["after_fresh"] - p["before_fresh"])
             for p in points])
        found["failed"] = x["moved"] >= ENOUGH and x["signs_frac"] < SIGNS
    return found | {"error_frac": found.get("real", found["toy"])["error_frac"]}


def verdict(change: float, half_width: float, failed: bool = False) -> str:
    """What a forecast change of the accuracy on fresh problems comes to, within its interval."""
    if failed:
        return "none: the law has failed on real weights"
    if abs(change) <= half_width:
        return "cannot tell"
    return "likely to help" if change > 0 else "likely to hurt fresh problems"
