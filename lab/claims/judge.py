"""The verdict on a claim from its effect and its control in every universe; one rule for all."""

import math

import numpy as np

from lab.claims.claim import Claim
from lab.claims.statements import Runs, Statement, at
from lab.claims.universes import FACTORS, UNIVERSES, Universe, as_dict
from lab.statistics import mean_and_interval

# An effect must hold in so many of the eight; of eight coins 3.5 % do.
HOLDS_IN = 7
CAREFUL = 0.9  # a base model that checks everything is right so often, or nothing is shown


def judge(
    claim: Claim, universes: list[Universe], runs: list[Runs], *, bases: list[str] = (),
    factors: list[str] = tuple(FACTORS),
) -> dict:
    """Verdict, reason and numbers of a claim.

    bases: the names under which `runs` have the careful measures of its base models. factors: the
    settings that differ between its runs.
    """
    effects = [float(claim.effect.value(r)) for r in runs]
    controls = [float(claim.control.value(r)) for r in runs]
    differences = [e - c for e, c in zip(effects, controls)]
    tested = [looked_at(s, runs) for s in claim.testable]
    tested += [careful(name, universes, runs) for name in bases]
    known = np.isfinite(differences).all()
    obstacles = [] if known else [unknown(universes, runs, differences)]
    obstacles += [t["why"] for t in tested if t.get("why")]
    holds = [held(claim.effect, e, c) for e, c in zip(effects, controls)]
    if len(universes) < len(UNIVERSES):
        found, why = "too few universes", f"{len(universes)} instead of {len(UNIVERSES)}"
    elif obstacles:
        found, why = "not testable here", "; ".join(obstacles)
    else:
        found, why = verdict(claim.effect, effects, controls, universes, factors)
    margin = claim.effect.within
    bound = {"bound": claim.effect.bound} if margin is None else {"within": margin}
    rows = [
        as_dict(u) | {"effect": e, "control": c, "holds": h}
        for u, e, c, h in zip(universes, effects, controls, holds)
    ]
    return {
        "verdict": found, "why": why, "holds": sum(holds),
        "effect": {"words": claim.effect.words, **bound, **summary(effects)},
        "control": {"words": claim.control.words, **summary(controls)},
        "difference": summary(differences), "universes": rows, "varied": list(factors),
        "testable": [{k: v for k, v in t.items() if k != "why"} for t in tested],
        "also": [at_once(s, runs[0]) for s in claim.also],
    }


def verdict(
    effect: Statement, effects: list[float], controls: list[float], universes: list[Universe],
    factors: list[str] = tuple(FACTORS),
) -> tuple[str, str]:
    """The verdict on finite numbers of all universes, and why.

    reproduced: the effect holds in HOLDS_IN of them, and the 95 % interval of effect minus control
    excludes 0. opposite: the mirror image. Of an equivalence see `equivalence`. fragile: all else.
    """
    if effect.within is not None:
        return equivalence(effect, effects, controls, universes, factors)
    difference = summary([e - c for e, c in zip(effects, controls)])
    e, c = float(np.mean(effects)), float(np.mean(controls))
    counts, kept = {}, f"the control keeps {short(c)} of {short(e)}"
    for sign, word in ((1, "reproduced"), (-1, "opposite")):
        counts[word] = sum(held(effect, e, c, sign) for e, c in zip(effects, controls))
        side = sign * direction(effect)
        away = min(side * difference["low"], side * difference["high"])
        if counts[word] >= HOLDS_IN and away > 0:
            mirrored = "" if sign > 0 else f"its mirror image holds in {counts[word]} of 8"
            return word, mirrored or (kept if side * c > side * e / 2 else "")
    if max(counts.values()) >= HOLDS_IN:
        return "fragile", f"effect minus control may be 0: {interval_text(difference)}"
    if sum(map(effect.holds, effects)) >= HOLDS_IN:
        return "fragile", kept
    return "fragile", contrast(effect, effects, universes, factors)


def equivalence(
    effect: Statement, effects: list[float], controls: list[float], universes: list[Universe],
    factors: list[str],
) -> tuple[str, str]:
    """The verdict on `no effect, up to a margin`, by two one-sided tests.

    reproduced: the 90 % interval of the effect is inside the margin, and the mean of the control,
    where an effect is expected, is outside. opposite: the 95 % interval of the effect is outside.
    """
    margin, control = effect.within, float(np.mean(controls))
    inner, outer = summary(effects, 0.9), summary(effects)
    if outer["low"] > margin or outer["high"] < -margin:
        return "opposite", f"the effect is {interval_text(outer)}"
    if inner["low"] <= -margin or inner["high"] >= margin:
        return "fragile", contrast(effect, effects, universes, factors)
    if abs(control) <= margin:
        return "fragile", f"the control shows no effect either: {short(control)}"
    return "reproduced", ""


def direction(effect: Statement) -> int:
    return 1 if effect.below is None else -1


def held(effect: Statement, e: float, c: float, sign: int = 1) -> bool:
    """Whether an effect e with control c is as predicted; sign -1: whether it is the opposite."""
    if effect.within is not None:
        return effect.holds(e)
    side = sign * direction(effect)
    bound = abs(effect.above if effect.below is None else effect.below)
    return bool(side * e > bound and side * (e - c) > bound / 2)


def contrast(
    effect: Statement, effects: list[float], universes: list[Universe], factors: list[str]
) -> str:
    """In words: the setting with which the effect differs most, four universes against four."""
    found = []
    for factor in factors:
        levels = list(dict.fromkeys(getattr(u, factor) for u in universes))
        means = [
            float(np.mean([e for e, u in zip(effects, universes) if getattr(u, factor) == level]))
            for level in levels
        ]
        texts = [f"{short(m)} at {level}" for m, level in zip(means, levels)]
        decides = effect.holds(means[0]) != effect.holds(means[-1])
        found.append((abs(means[0] - means[-1]), decides, FACTORS[factor], ", ".join(texts)))
    _, decides, factor, texts = max(found)
    return f"{'hangs on' if decides else 'no setting decides; most with'} {factor}: {texts}"


def looked_at(s: Statement, runs: list[Runs]) -> dict:
    """A statement that must hold in HOLDS_IN universes; `why` if it does not."""
    values = [float(s.value(r)) for r in runs]
    holds = sum(map(s.holds, values))
    found = {"words": s.words, "bound": s.bound, "mean": summary(values)["mean"], "holds": holds}
    if holds < HOLDS_IN:
        mean = "unknown" if found["mean"] is None else short(found["mean"])
        found["why"] = f"{s.words} is {mean}, not {s.bound} (in {holds} of {len(runs)})"
    return found


def careful(name: str, universes: list[Universe], runs: list[Runs]) -> dict:
    """Whether the fully pretrained models that check everything are right.

    Those with fewer steps of pretraining are allowed to be weaker.
    """
    words = "accuracy of the base model that checks everything, fresh problems (fraction)"
    pairs = [(u, at(r, name, "careful_fresh_accuracy_frac")) for u, r in zip(universes, runs)]
    full = [x for u, x in pairs if u.base == "full"]
    found = {
        "words": words, "bound": f"> {CAREFUL:g}", "mean": summary(full)["mean"],
        "holds": sum(x >= CAREFUL for _, x in pairs),
    }
    if found["mean"] is not None and found["mean"] < CAREFUL:
        found["why"] = f"{words} is {short(found['mean'])}, not {found['bound']}"
    return found


def at_once(s: Statement, runs: Runs) -> dict:
    """A statement about one universe."""
    x = float(s.value(runs))
    return {"words": s.words, "bound": s.bound, "value": x, "holds": bool(s.holds(x))}


def unknown(universes: list[Universe], runs: list[Runs], differences: list[float]) -> str:
    """In words: where an effect or a control could not be measured."""
    places = [n for n, x in enumerate(differences) if not math.isfinite(x)]
    failed = {arm for n in places for arm, numbers in runs[n].items() if "failed" in numbers}
    where = ", ".join(str(universes[n].number) for n in places)
    return f"no finite number in universe {where}" + (f" ({', '.join(failed)})" if failed else "")


def summary(values: list[float], share: float = 0.95) -> dict:
    """Mean and interval over universes; None where a value is not finite."""
    if not np.isfinite(values).all():
        return {"mean": None, "low": None, "high": None}
    found = mean_and_interval(values, share)
    return {k: found[k] for k in ("mean", "low", "high")}


def short(x: float, scale: float = 0.0) -> str:
    """A number of this size, or of one up to `scale`, without digits that tell nothing."""
    size = max(abs(x), scale)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.095 else 3
    text = f"{x:.{digits}f}"
    return "0" if float(text) == 0 else text


def interval_text(r: dict) -> str:
    """Mean and interval, such as -0.31 [-0.35, -0.27]."""
    if r["mean"] is None:
        return "unknown"
    if r["low"] is None:
        return short(r["mean"])
    scale = max(abs(r["low"]), abs(r["high"]))
    mean, low, high = (short(r[k], scale) for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
