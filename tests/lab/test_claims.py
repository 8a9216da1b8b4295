"""Claims: verdicts on made-up numbers, statements as written, the files, the kept results."""

import json
import math
import types
from dataclasses import replace
from pathlib import Path

import pytest

from lab.claims import __main__ as command
from lab.claims.arms import SDPO, Measure
from lab.claims.claim import all_claims, claim_of
from lab.claims.judge import contrast, interval_text, judge, verdict
from lab.claims.pictures import draw_claim, mean_curve
from lab.claims.runs import arms_in, runs_of, varying
from lab.claims.statements import Panel, Quantity, change, mean_reward, over_steps, room, value
from lab.claims.text import claim_text, claims_markdown, verdict_line
from lab.claims.universes import UNIVERSES
from lab.statistics import mean_and_interval, rank_correlation, slope_and_fit

RESULTS = Path(__file__).parents[2] / "lab" / "results"
CLAIMS = all_claims()

# Verdicts

FALLS = change("fresh.accuracy", "arm") < -0.1
STRONG = [-0.30, -0.35, -0.32, -0.28, -0.33, -0.31, -0.29, -0.34]
NONE = [0.01, -0.02, 0.0, 0.02, -0.01, 0.01, -0.01, 0.0]


def but(values: list[float], *others: float) -> list[float]:
    """The values with the last ones replaced."""
    return [*values[: len(values) - len(others)], *others]


def by(factor: str, level, values: list[float], elsewhere: list[float]) -> list[float]:
    """Values in the universes of a level of a factor, others elsewhere."""
    at = [getattr(u, factor) == level for u in UNIVERSES]
    return [v if here else e for here, v, e in zip(at, values, elsewhere)]


@pytest.mark.parametrize(
    ("effects", "controls", "expected", "why"),
    [
        (STRONG, NONE, "reproduced", ""),
        (but(STRONG, -0.05), NONE, "reproduced", ""),  # seven of eight
        (but(STRONG, -0.05, -0.05), NONE, "fragile", "most with"),
        ([-x for x in STRONG], NONE, "opposite", "mirror image holds in 8 of 8"),
        (NONE, NONE, "fragile", "no setting decides"),
        # Beyond the bound, but the control as well, or by more than half of the bound.
        (STRONG, STRONG, "fragile", "the control keeps -0.32 of -0.32"),
        ([-0.12] * 8, [-0.08] * 8, "fragile", "the control keeps -0.080 of -0.12"),
        # Beyond the control by half of the bound is enough, as the rule says, but it is said.
        ([-0.5] * 8, [-0.44] * 8, "reproduced", "the control keeps -0.44 of -0.50"),
        # The control moves with its effect: seen in pairs alone.
        ([-0.9, -0.2] * 4, [-0.75, -0.05] * 4, "reproduced", "keeps -0.40 of -0.55"),
        # Seven hold, and one so far on the other side that nothing is certain.
        (but(STRONG, 1.5), NONE, "fragile", "effect minus control may be 0"),
        (by("learning_rate", "twice", STRONG, NONE), NONE, "fragile",
         "hangs on the learning rate: 0.003 at half, -0.32 at twice"),
        (by("steps", 120, STRONG, NONE), NONE, "fragile",
         "hangs on the steps: -0.003 at 60, -0.31 at 120"),
        (by("base", "full", STRONG, NONE), NONE, "fragile", "hangs on the base model: -0.31 at f"),
    ],
)
def test_verdicts_on_made_up_numbers(effects, controls, expected, why):
    """Catches a verdict from the mean alone, unpaired controls, and a reason of another factor."""
    found, reason = verdict(FALLS, effects, controls, UNIVERSES)
    assert found == expected and why in reason, reason
    # The same of an effect in the other direction.
    rises = change("fresh.accuracy", "arm") > 0.1
    mirrored = [-x for x in effects], [-x for x in controls]
    assert verdict(rises, *mirrored, UNIVERSES)[0] == expected


@pytest.mark.parametrize(
    ("effects", "controls", "expected", "why"),
    [
        (NONE, STRONG, "reproduced", ""),
        (NONE, NONE, "fragile", "control shows no effect either"),
        (STRONG, STRONG, "opposite", "-0.32 [-0.34, -0.29]"),
        ([-x for x in STRONG], STRONG, "opposite", "0.32 [0.29, 0.34]"),
        ([0.04, 0.06] * 4, STRONG, "fragile", "base model"),  # the mean lies on the margin
        # Of mean 0, but with an interval wider than the margin.
        ([-0.2, 0.2] * 4, STRONG, "fragile", ""),
    ],
)
def test_an_equivalence_needs_narrow_numbers_and_a_control_that_moves(
    effects, controls, expected, why
):
    """Catches `no effect shown` that is sold as `no effect`, where nothing could be shown."""
    alike = change("fresh.accuracy", "arm").within(0.05)
    found, reason = verdict(alike, effects, controls, UNIVERSES)
    assert found == expected and why in reason, reason


def test_two_one_sided_tests_use_the_interval_of_90_percent():
    """Catches the wider interval of 95 %, with which an equivalence is claimed too rarely."""
    values = [0.04, -0.04] * 4  # standard error .0151: 90 % +- .0286, 95 % +- .0358
    alike = change("fresh.accuracy", "arm").within(0.032)
    assert verdict(alike, values, STRONG, UNIVERSES) == ("reproduced", "")
    assert mean_and_interval(values)["high"] > 0.032 > mean_and_interval(values, 0.9)["high"]


def test_only_what_varies_can_be_what_a_claim_hangs_on():
    """Catches a learning rate that is blamed in a claim that trains nothing."""
    effects = by("learning_rate", "half", STRONG, NONE)
    assert contrast(FALLS, effects, UNIVERSES, ["base"]) == (
        "no setting decides; most with the base model: -0.16 at full, -0.15 at 70 %")
    measured = replace(CLAIMS["suppression"], arms={"a": Measure("horizon")})
    own = replace(CLAIMS["suppression"], arms={"a": f"{SDPO} --steps 30"})
    assert varying(measured, {}) == ["base"]
    assert varying(own, {}) == ["learning_rate", "base"]
    assert varying(CLAIMS["suppression"], {}) == ["learning_rate", "steps", "base"]
    assert varying(CLAIMS["suppression"], {"--steps": "2"}) == ["learning_rate", "base"]


MADE_UP = claim_of("made_up", types.SimpleNamespace(
    __doc__="It falls.\n\nSource: a.\n\nPublished: b\nand more.\n\nPredicted: c.\n\nFound: d.",
    ARMS={"arm": SDPO, "other": f"{SDPO} --teacher live"},
    EFFECT=FALLS,
    CONTROL=change("fresh.accuracy", "other"),
    TESTABLE=[room("fresh.accuracy", "arm", floor=0.1)],
    ONCE={"late": f"{SDPO} --steps 300"},
    ALSO=[change("fresh.accuracy", "late") < 0, change("fresh.markers", "late") < 0],
    PANELS=[Panel("reward", "step", over_steps("curve.step", "arm"),
                  {"arm": over_steps("curve.reward", "arm")})],
))


def runs_with(effects: list[float], controls: list[float], before: float = 0.5) -> list[dict]:
    """The numbers of MADE_UP in every universe."""
    def numbers(rise: float) -> dict:
        rewards = {"curve.step": [1, 5], "curve.reward": [before, before + rise]}
        found = {"before.fresh.accuracy": before, "after.fresh.accuracy": before + rise}
        return found | rewards

    runs = [{"arm": numbers(e), "other": numbers(c)} for e, c in zip(effects, controls)]
    return [{**r, "late": numbers(-0.2) if n == 0 else {}} for n, r in enumerate(runs)]


def test_a_claim_that_cannot_show_anything_says_why():
    """Catches a verdict from a floor, a weak base model, a failed run, or too few universes."""
    def judged(runs, **how) -> tuple[str, str]:
        row = judge(MADE_UP, UNIVERSES[: len(runs)], runs, **how)
        return row["verdict"], row["why"]

    assert judged(runs_with(STRONG, NONE)) == ("reproduced", "")
    assert judged(runs_with(STRONG[:3], NONE[:3])) == ("too few universes", "3 instead of 8")
    found, why = judged(runs_with(STRONG, NONE, before=0.3))
    assert found == "not testable here" and "is 0.20, not > 0.25 (in 0 of 8)" in why

    runs = runs_with(STRONG, NONE)
    runs[5]["arm"] = {"failed": "the loss is not finite"}
    found, why = judged(runs)
    assert (found, why.partition(";")[0]) == (
        "not testable here", "no finite number in universe 5 (arm)")
    runs[5]["arm"] = runs_with(STRONG, NONE)[5]["arm"]
    # Base models with fewer steps may be weaker, and what was not measured is no reason.
    for full, weaker, expected in ((0.91, 0.5, "reproduced"), (0.89, 1.0, "not testable here")):
        for u, r in zip(UNIVERSES, runs):
            r["base"] = {"careful_fresh_accuracy_frac": full if u.base == "full" else weaker}
        assert judged(runs, bases=["base"])[0] == expected
    assert judged(runs_with(STRONG, NONE) and [{**r, "base": {}} for r in runs],
                  bases=["base"]) == ("reproduced", "")


def row_of(runs: list[dict]) -> dict:
    """The row of MADE_UP, as kept."""
    # As the careful measure leaves it, which is one of the runs where there is such a measure.
    runs = [r | {"base": {"careful_fresh_accuracy_frac": 0.95}} for r in runs]
    of = [{arm: runs_of(a, {}, u, Path("o")) for arm, a in arms_in(MADE_UP, u).items()}
          for u in UNIVERSES]
    return command.rounded(command.row_of(MADE_UP, {}, UNIVERSES, of, runs))


def test_a_row_has_all_that_is_kept_and_can_be_read_and_drawn(tmp_path):
    """Catches a table or picture that fails after an hour, and names that readers rely on."""
    effects = by("learning_rate", "twice", STRONG, NONE)
    row = row_of(runs_with(effects, but(NONE, math.nan)))
    assert row["verdict"] == "not testable here" and row["control"]["mean"] is None
    row = json.loads(json.dumps(row_of(runs_with(effects, NONE))))
    assert list(row) == [
        "claim", "title", "source", "published", "predicted", "found", "verdict", "why", "holds",
        "effect", "control", "difference", "universes", "varied", "testable", "also", "commands",
        "code", "core_seconds", "flags"]
    assert row["effect"] == {
        "words": "change of accuracy on fresh problems (fraction): arm", "bound": "< -0.1",
        "mean": pytest.approx(sum(effects) / 8, rel=1e-4), "low": row["effect"]["low"],
        "high": row["effect"]["high"]}
    assert row["universes"][3] == {
        "universe": 3, "learning_rate": "half", "steps": 120, "base": "70 %", "effect": 0.02,
        "control": 0.02, "holds": False}
    assert [u["holds"] for u in row["universes"]] == [False] * 4 + [True] * 4
    assert row["also"][0] == {
        "words": "change of accuracy on fresh problems (fraction): late", "bound": "< 0",
        "value": pytest.approx(-0.2), "holds": True}
    assert row["also"][1]["value"] is None and not row["also"][1]["holds"]

    text = claims_markdown([row])
    assert "1 fragile." in text and "| 4 of 8: hangs on the learning rate: " in text
    assert f"| {interval_text(row['effect'])} (< -0.1) |" in text
    assert "`python -m lab.claims made_up`" in text and "(older code)" not in text
    assert "(older code)" in claims_markdown([row | {"code": "0"}])
    assert verdict_line(row) == "made_up: fragile (holds in 4 of 8)"
    assert claim_text(row).startswith("made_up: FRAGILE   (a)\n  It falls.\n  Why: hangs on")
    alike = row | {"effect": row["effect"] | {"within": 0.05}}
    del alike["effect"]["bound"]
    assert "within \N{PLUS-MINUS SIGN}0.05" in claims_markdown([alike])
    draw_claim(tmp_path / "claim.png", MADE_UP, row, runs_with(effects, NONE)[:8])
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_a_mean_curve_goes_as_far_as_all_do():
    """Catches a mean that jumps where the shorter runs end, and one of arms that were not run."""
    xs, ys = [[1, 5], [1, 5, 9], [1, 5]], [[0.0, 1.0], [1.0, 2.0, 7.0], [math.nan, math.nan]]
    assert mean_curve(xs, ys, words=False) == ([1, 5], [0.5, 1.5])
    assert mean_curve(xs, ys, words=True) == ([1, 5, 9], [0.5, 1.5, 7.0])
    assert mean_curve([[1]], [[math.nan]], words=False) == ([], [])


def test_summaries_by_hand():
    """Catches ranks by the order of equal values, a slope of x over y, R for R^2, a wrong t."""
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    # Ranks 0.5, 1.5, 2.5 and, of equal values, 1, 1, 2.5: covariance 1.5, variances 2 and 1.5.
    assert rank_correlation([1, 2, 3], [7, 7, 8]) == pytest.approx(1.5 / 3**0.5)
    assert math.isnan(rank_correlation([1, 2, 3], [7, 7, 7]))
    slope, fit = slope_and_fit([0, 1, 2], [0, 2, 1])  # covariance 1, variances 2 and 2
    assert (slope, fit) == (pytest.approx(0.5), pytest.approx(0.25))
    assert slope_and_fit([0, 1, 2], [3, 3, 3]) == slope_and_fit([1, 1], [0, 2]) == (0.0, 0.0)
    # Values 1 and 3: standard error 1, and the t quantile of one degree of freedom is 12.706.
    found = mean_and_interval([1.0, 3.0])
    assert found == {"mean": 2, "low": pytest.approx(-10.706, abs=1e-3), "n": 2,
                     "high": pytest.approx(14.706, abs=1e-3)}
    assert mean_and_interval([1.0, 3.0], 0.9)["high"] == pytest.approx(8.314, abs=1e-3)
    assert mean_and_interval([4.0]) == {"mean": 4, "low": None, "high": None, "n": 1}
    assert mean_and_interval([4.0] * 3) == {"mean": 4, "low": 4, "high": 4, "n": 3}


# Statements


def test_statements_are_read_as_written():
    """Catches a wrong operation, order, bound or wording."""
    runs = {
        "a": {"before.fresh.x": 1.0, "after.fresh.x": 5.0, "y": 3.0},
        "b, c": {"before.fresh.x": 2.0, "after.fresh.x": 4.0, "y": 6.0},
    }
    x, d = (lambda arm: value("fresh.x", arm)), (lambda arm: change("fresh.x", arm))
    words, ones = "x on fresh problems", Quantity("ones", lambda runs: 1.0)
    for s, expected, holds, bound, text in (
        (x("a") - x("b, c") < -0.5, 1.0, False, "< -0.5", f"{words}: 'a' - 'b, c'"),
        (d("a") + d("b, c") > 2, 6.0, True, "> 2", f"change of {words}: 'a' + 'b, c'"),
        (value("y", "b, c") - 0.5 * value("y", "a") > 0, 4.5, True, "> 0",
         "y: 'b, c' - 0.5 * 'a'"),
        (d("b, c").within(2), 2.0, False, "within ±2", f"change of {words}: b, c"),
        (d("b, c").within(2.5), 2.0, True, "within ±2.5", f"change of {words}: b, c"),
        (value("y", "a") - x("a") < 4, -2.0, True, "< 4", f"(y: a) - ({words}: a)"),
        ((value("y", "a") - value("y", "b, c")).within(1), -3.0, False, "within ±1",
         "y: 'a' - 'b, c'"),
        (x("a") - 1 > 3, 4.0, True, "> 3", f"({words}: a) - 1"),
        (2 * ones > 1, 2.0, True, "> 1", "2 * (ones)"),
        (room("fresh.x", "a", floor=0.5), 0.5, True, "> 0.25",
         f"room of {words} before training to its floor 0.5: a"),
        (room("fresh.x", "a", floor=0, ceiling=1.2), 0.2, False, "> 0.25",
         f"room of {words} before training to its floor 0 and ceiling 1.2: a"),
    ):
        assert (s.value(runs), s.bound, s.words) == (pytest.approx(expected), bound, text)
        assert s.holds(s.value(runs)) == holds and not s.holds(math.nan), text
    assert mean_reward("a").words == "mean reward of the training batches (fraction): a"
    assert value("before.fresh.markers", "a").what == (
        "markers on fresh problems before training (per completion)")
    with pytest.raises(TypeError, match=r"write \.within"):
        _ = -0.05 < x("a") < 0.05


# The files of claims


def test_every_claim_is_complete():
    """Catches a file without source or prediction, or with an arm that does not exist."""
    for name, claim in CLAIMS.items():
        assert claim.title.endswith(".") and claim.predicted.endswith("."), name
        nothing = {arm: {} for arm in claim.arms}  # another arm is a KeyError
        for q in (claim.effect, claim.control, *claim.testable):
            assert math.isnan(q.value(nothing)), (name, q.words)
        nothing |= {arm: {} for arm in claim.once}
        for s in claim.also:
            assert math.isnan(s.value(nothing)), (name, s.words)
        for panel in claim.panels:
            x = panel.x(nothing) if callable(panel.x) else panel.x
            for label, curve in panel.curves.items():
                assert len(curve(nothing)) in (0, len(x)), (name, panel.title, label)
        assert set(claim.arms_of(claim.effect.value)) <= claim.arms.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"__doc__": "Title.\n\nSource: a.\n\nPublished: b."}, "lacks Predicted"),
        ({"EFFECT": change("fresh.accuracy", "arm") > -0.05}, r"allowed: .* or \.within"),
        ({"EFFECT": change("fresh.accuracy", "arm") < 0.05}, r"allowed: .* or \.within"),
        ({"ONCE": {"arm": SDPO}}, "arm in ARMS and in ONCE"),
        ({"ONCE": {"base": SDPO}}, "called base"),
    ],
)
def test_a_claim_that_is_no_experiment_is_refused(change, words):
    """Catches a copied file without its prediction, and an effect that nothing can contradict."""
    module = types.SimpleNamespace(
        __doc__="T.\n\nSource: a.\n\nPublished: b\nand more.\n\nPredicted: c.", ARMS={"arm": SDPO},
        EFFECT=FALLS, CONTROL=value("x", "arm"))
    claim = claim_of("new", module)
    assert (claim.title, claim.published, claim.found) == ("T.", "b and more", "")
    vars(module).update(change)
    with pytest.raises(ValueError, match=rf"new\.py: .*{words}"):
        claim_of("new", module)


def test_the_kept_results_are_those_of_the_claims_as_they_stand():
    """Catches a prediction, bound or verdict rule that was changed after its runs."""
    if not (RESULTS / "claims.json").exists():
        pytest.skip("the claims of this edition have not been run yet")
    kept = json.loads((RESULTS / "claims.json").read_text())
    text = (RESULTS / "claims.md").read_text()
    assert [row["claim"] for row in kept] == list(CLAIMS)
    for row in kept:
        claim, name = CLAIMS[row["claim"]], row["claim"]
        assert (claim.title, claim.source, claim.published, claim.predicted, claim.found) == (
            row["title"], row["source"], row["published"], row["predicted"], row["found"]), name
        assert (claim.effect.words, claim.control.words) == (
            row["effect"]["words"], row["control"]["words"]), name
        assert claim.effect.within == row["effect"].get("within"), name
        assert row["effect"].get("bound", claim.effect.bound) == claim.effect.bound, name
        assert len(row["universes"]) == 8, name
        if row["verdict"] != "not testable here":
            pairs = zip(*((u["effect"], u["control"]) for u in row["universes"]))
            again = verdict(claim.effect, *map(list, pairs), UNIVERSES, row["varied"])
            assert again == (row["verdict"], row["why"]), name
        assert interval_text(row["effect"]) in text, name
        assert (RESULTS / f"claim-{name}.png").stat().st_size > 10_000
