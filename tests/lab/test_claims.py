"""Claims: verdicts on made-up numbers, statements as written, the queue, one claim whole."""

import json
import math
import re
import shlex
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from lab.claims.__main__ import main, settings_of
from lab.claims.arms import SDPO, Measure, MeasuredRun
from lab.claims.claim import all_claims, claim_of
from lab.claims.judge import MIN_SEEDS, judge, verdict
from lab.claims.pictures import draw_claim
from lab.claims.runs import (
    Run,
    arm_numbers,
    bases_of,
    numbers_of,
    queue_of,
    run_all,
    runs_of,
    split_flags,
)
from lab.claims.statements import Quantity, change, mean_reward, value
from lab.claims.text import claim_flags, claim_text, claims_markdown, control_text, interval_text
from lab.statistics import mean_and_interval, rank_correlation, slope_and_fit

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "lab" / "results"
CLAIMS = all_claims()
KEPT = json.loads((RESULTS / "claims.json").read_text())

# Verdicts


def test_verdicts_on_made_up_numbers():
    """Catches a verdict from the mean alone, a swapped sign, and one from too few seeds."""
    falls = [-0.30, -0.35, -0.32, -0.28, -0.33]
    nothing = [-0.05, 0.04, 0.01, -0.02, 0.03]
    assert verdict(falls, below=-0.1)["verdict"] == "reproduced"
    assert verdict(falls, below=-0.4)["verdict"] == "not reproduced"
    assert verdict(nothing, below=-0.1)["verdict"] == "not reproduced"
    assert verdict(nothing, below=0)["verdict"] == "not reproduced"
    assert verdict(falls, above=0.1)["verdict"] == "opposite"
    assert verdict([-x for x in falls], above=0.1)["verdict"] == "reproduced"
    assert verdict([-x for x in falls], below=-0.1)["verdict"] == "opposite"
    assert verdict(falls[:4], below=-0.1)["verdict"] == "too few seeds"
    assert verdict([math.nan, *falls[1:]], below=-0.1)["verdict"] == "not measured"
    # A ratio without effect is 1: one that falls, but not by half, is not the opposite.
    assert verdict([0.7, 0.71, 0.69, 0.7, 0.7], below=0.5, none=1)["verdict"] == "not reproduced"
    assert verdict([1.7, 1.71, 1.69, 1.7, 1.7], below=0.5, none=1)["verdict"] == "opposite"
    # A large mean with a wide interval is no reproduction.
    assert verdict([-0.9, 0.1, -0.8, 0.2, -0.1], below=0)["verdict"] == "not reproduced"


def test_a_prediction_of_no_harm_fails_only_beyond_its_margin():
    """Catches `opposite` for a harm that lies within the margin that the prediction grants."""
    assert verdict([-0.01, 0.0, 0.01, 0.0, -0.01], above=-0.05)["verdict"] == "reproduced"
    assert verdict([-0.03, -0.02, -0.08, -0.04, -0.06], above=-0.05)["verdict"] == "not reproduced"
    assert verdict([-0.3, -0.31, -0.29, -0.3, -0.3], above=-0.05)["verdict"] == "opposite"


def test_a_verdict_needs_exactly_one_bound():
    """Catches a statement that nothing can contradict."""
    for bounds in ({}, {"above": 0.0, "below": 0.0}):
        with pytest.raises(ValueError, match="exactly one"):
            verdict([1.0] * 5, **bounds)


def made_up(effects: list[float], controls: list[float]) -> list[dict]:
    """Runs of every seed: one arm rises by the effects, the other by the controls."""
    def numbers(rise: float) -> dict:
        return {"before.fresh.accuracy": 0.5, "after.fresh.accuracy": 0.5 + rise}

    return [{"arm": numbers(e), "other": numbers(c)} for e, c in zip(effects, controls)]


RISES = change("fresh.accuracy", "arm") > 0.1
OTHER = change("fresh.accuracy", "other")
STRONG, NONE = [0.3, 0.32, 0.28, 0.31, 0.29], [0.01, -0.02, 0.0, 0.02, -0.01]


@pytest.mark.parametrize(
    ("effects", "controls", "expected", "words"),
    [
        (STRONG, NONE, "reproduced", "removes the effect"),
        (STRONG, STRONG, "not reproduced", "keeps the effect"),
        # A control that is weaker but reaches the bound, or keeps more than half.
        ([3 * x for x in STRONG], [2 * x for x in STRONG], "not reproduced", "keeps the effect"),
        ([0.3 * x + 0.1 for x in STRONG], [0.098] * 5, "not reproduced", "keeps the effect"),
        (NONE, NONE, "not reproduced", "not asked, as the effect is not reproduced"),
        ([-x for x in STRONG], NONE, "opposite", "not asked, as the effect is not reproduced"),
        (STRONG[:3], NONE[:3], "too few seeds", "not judged"),
        (STRONG, [math.nan, *NONE[1:]], "not measured", "not judged"),
        ([math.nan, *STRONG[1:]], NONE, "not measured", "not judged"),
    ],
)
def test_a_claim_stands_only_with_its_control(effects, controls, expected, words):
    """Catches a verdict that forgets the control or the seeds, an effect that is called gone."""
    row = judge([RISES], OTHER, made_up(effects, controls))
    assert (row["verdict"], control_text(row)) == (expected, words)


def test_other_statements_are_counted_beside_the_verdict():
    """Catches a count of statements that forgets those that failed."""
    harder = change("fresh.accuracy", "arm") > 0.9
    row = judge([RISES, harder], OTHER, made_up(STRONG, NONE))
    assert (row["verdict"], row["held"], len(row["statements"])) == ("reproduced", 1, 2)


def test_summaries_by_hand():
    """Catches ranks by the order of equal values, a slope of x over y, R for R^2, a wrong t."""
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [9, 5, 1]) == pytest.approx(-1)
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
    words, ones = "x (fresh problems)", Quantity("ones", lambda runs: 1.0, none=1)
    for s, expected, above, below, text in (
        (x("a") - x("b, c") < -0.5, 1.0, None, -0.5, f"{words}: 'a' - 'b, c'"),
        (d("a") + d("b, c") > 2, 6.0, 2.0, None, f"change of {words}: 'a' + 'b, c'"),
        (value("y", "b, c") - 0.5 * value("y", "a") > 0, 4.5, 0.0, None, "y: 'b, c' - 0.5 * 'a'"),
        (x("a") - x("b, c") - (x("a") - x("a")) > 0, 1.0, 0.0, None,
         f"{words}: 'a' - 'b, c' - 'a' + 'a'"),
        (d("b, c") > 0, 2.0, 0.0, None, f"change of {words}: b, c"),
        (value("y", "a", "why") < 4, 3.0, None, 4.0, "why: a"),
        (value("y", "a") - x("a") < 4, -2.0, None, 4.0, f"(y: a) - ({words}: a)"),
        (2 * ones > 1, 2.0, 1.0, None, "2 * ones"),
    ):
        assert (s.value(runs), s.above, s.below, s.words) == (expected, above, below, text)
    assert (ones < 0.5).none == 1 and (x("a") < 0.5).none == 0
    assert mean_reward("a").words == "mean reward of the training batches: a"
    with pytest.raises(TypeError, match="write two statements"):
        _ = -0.05 < x("a") < 0.05


def test_what_a_failed_run_did_not_measure_is_nan():
    """Catches a failed arm that counts as 0, or that a maximum or a spread leaves out."""
    def values(name: str, failed: str) -> list[float]:
        """Of all statements and the control, seed 0, with one arm failed."""
        runs = {arm: content["runs"][0] for arm, content in KEPT[name]["arms"].items()}
        runs[failed] = {"failed": "the loss is not finite"}
        claim = CLAIMS[name]
        return [q.value(runs) for q in (*claim.statements, claim.control)]

    for name, failed, measured in (
        ("suppression", "grpo", [True, True, True, False, False, True]),
        ("transfer", "sparse, off-policy", [True, True, True, False, False]),
        ("sensitivity", "other style, reverse", [False, True]),
        ("sensitivity", "rule, self, forward", [True, False]),
        ("initial_gap", "partial", [False] * 5),
        ("dense_is_fast", "measured", [True, True, False, False, True]),
    ):
        assert [math.isfinite(v) for v in values(name, failed)] == measured, name


# The files of claims


def test_every_claim_is_complete():
    """Catches a file without source or prediction, or with an arm that does not exist."""
    assert len(CLAIMS) == 21
    for name, claim in CLAIMS.items():
        assert claim.title.endswith(".") and claim.found, name
        assert claim.source and claim.published and claim.predicted.endswith("."), name
        nothing = {arm: {} for arm in claim.arms}  # another arm is a KeyError
        for s in (*claim.statements, claim.control):
            assert math.isnan(s.value(nothing)), (name, s.words)
        for s in claim.statements:
            assert (s.above is None) != (s.below is None), (name, s.words)


def test_a_claim_without_a_prediction_is_refused():
    """Catches a copied file whose prediction was forgotten, and that nobody misses."""
    text = "Title.\n\nSource: a.\n\nPublished: b\nand more.\n\nPredicted: c.\n"
    names = {"ARMS": {"a": SDPO}, "STATEMENTS": [RISES], "CONTROL": OTHER}
    module = types.ModuleType("new", text)
    vars(module).update(names)
    claim = claim_of("new", module)
    assert (claim.title, claim.published, claim.found) == ("Title.", "b and more", "")
    module.__doc__ = text.replace("Predicted: c.", "")
    with pytest.raises(ValueError, match=r"new\.py: lacks Predicted"):
        claim_of("new", module)


def test_the_kept_results_are_those_of_the_claims_as_they_stand():
    """Catches a prediction, statement or verdict rule that was changed after its runs."""
    assert set(KEPT) == set(CLAIMS)
    text = (RESULTS / "claims.md").read_text()
    for name, row in KEPT.items():
        claim, seeds = CLAIMS[name], range(len(row["seeds"]))
        assert row["commit"] == "dce4e41" and len(seeds) >= MIN_SEEDS
        assert (claim.source, claim.published) == (row["source"], row["published"]), name
        assert claim.predicted == row["prediction"], name
        again = judge(claim.statements, claim.control, [
            {arm: content["runs"][i] for arm, content in row["arms"].items()} for i in seeds
        ])
        assert (again["verdict"], again["held"]) == (row["verdict"], row["held"]), name
        found = [*again["statements"], again["control"]]
        for s, kept in zip(found, [*row["statements"], row["control"]], strict=True):
            assert s["words"] == kept["words"]
            # The kept numbers have five digits, and those of their runs as well.
            assert s["values"] == pytest.approx(kept["values"], rel=2e-3, abs=2e-4), s["words"]
            assert s.get("verdict") == kept.get("verdict")
            assert f"{kept['words']}: {interval_text(kept)}" in text
        assert (RESULTS / f"claim-{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", CLAIMS)
def test_panels_have_a_y_for_each_x(name):
    """Catches a curve that the picture would cut off, or that reads another arm."""
    runs = {arm: content["runs"][0] for arm, content in KEPT[name]["arms"].items()}
    for panel in CLAIMS[name].panels:
        x = panel.x(runs) if callable(panel.x) else panel.x
        for label, curve in panel.curves.items():
            assert len(curve(runs)) == len(x), (panel.title, label)


def test_a_row_can_be_read_and_drawn(tmp_path):
    """Catches a table or picture that fails after an hour of runs."""
    name, row = "mixture", KEPT["mixture"]
    assert claim_text(name, row).startswith("mixture: REPRODUCED")
    assert "(commit dce4e41)" in claims_markdown({name: row})
    draw_claim(tmp_path / "claim.png", CLAIMS[name], row)
    assert (tmp_path / "claim.png").stat().st_size > 10_000


# Commands


def test_flags_are_merged_and_the_last_one_counts():
    """Catches a world that replaces the arm's, a switch that swallows a word."""
    words = "coverage --steps 3 --world a=1 --deterministic --seed=4 all --steps 5 --world b=2"
    rest, flags = split_flags(shlex.split(words))
    assert rest == ["coverage", "all"]
    expected = {"--steps": "5", "--world": "a=1,b=2", "--deterministic": None, "--seed": "4"}
    assert flags == expected


def test_commands_of_arms(tmp_path):
    """Catches an arm that beats the user, a measurement without its run, a flag it cannot take."""
    given = {"--steps": "2", "--world": "slip_rate=0", "--eval_problems": "4"}
    (run,) = runs_of(f"{SDPO} --steps 120 --world persona_rate=0", given, 3, tmp_path)
    folder = run.result.parent
    assert run.result == folder / "summary.json" and folder.parent == tmp_path / "runs"
    assert run.text == (
        "python train_gpt.py --method sdpo --steps 2 --batch_size 64 --threads 1 "
        f"--world persona_rate=0,slip_rate=0 --eval_problems 4 --seed 3 --out_dir {folder}"
    )
    (run,) = runs_of(Measure("horizon", "--world persona_rate=0"), given, 3, tmp_path)
    assert run.text == (
        "python -m lab.measures horizon --world persona_rate=0,slip_rate=0 --seed 3 "
        f"--out {run.result}"
    )
    first, second = runs_of(MeasuredRun("rules", SDPO), given, 3, tmp_path)
    folder = first.result.parent
    assert second.words[1:] == ("lab.measures", "rules", "--run", str(folder), "--out",
                                str(folder / "rules.json"))


def test_a_run_is_named_by_what_its_numbers_depend_on(tmp_path):
    """Catches a stale result for other settings, and a rerun where only a path differs."""
    def result(arm, seed=0, **given):
        flags = {f"--{k}": str(v) for k, v in given.items()}
        return runs_of(arm, flags, seed, tmp_path)[-1].result

    same = result(SDPO)
    assert same == result(SDPO, cache_dir="elsewhere")
    others = [result("--method grpo"), result(SDPO, 1), result(SDPO, clip_low=0.1),
              result(SDPO, world="slip_rate=0"), result(Measure("horizon"))]
    assert len({same, *others}) == 6


def test_the_first_runs_of_the_queue_have_all_base_models_among_them(tmp_path):
    """Catches workers that wait for a base model while another could be pretrained."""
    arms = [
        runs_of(arm, {}, seed, tmp_path)
        for seed in (0, 1)
        for arm in [*CLAIMS["sft_first"].arms.values(), *CLAIMS["rlvr_teacher"].arms.values()]
    ]
    queue = queue_of(arms)
    assert sorted(map(str, queue)) == sorted(map(str, arms))
    bases = [set().union(*map(bases_of, runs)) for runs in queue]
    assert set().union(*bases[:4]) == set().union(*bases)  # of two seeds, larger, other style
    assert len(set().union(*bases)) == 4


def command(result: Path, code: str) -> list[Run]:
    return [Run(("-c", f"import sys; from pathlib import Path; {code}"), result)]


def test_finished_and_failed_runs_are_kept_and_errors_end_the_queue(tmp_path):
    """Catches a run that is repeated, a failed one that is, and an error that nobody sees."""
    done, failed = tmp_path / "done.json", tmp_path / "failed.json"
    arms = [
        command(done, f"p = Path({str(done)!r}); p.write_text('1' * (p.exists() + 1))"),
        command(failed, "print('x: error: loss not finite', file=sys.stderr); sys.exit(2)"),
    ]
    for _ in range(2):
        run_all(arms, workers=2)
    assert done.read_text() == "1"
    assert arm_numbers(arms[1]) == {"failed": "x: error: loss not finite\n"}
    slow = command(tmp_path / "slow.json", "import time; time.sleep(60)")
    wrong = command(tmp_path / "wrong.json", "sys.exit('--stops: 1; allowed: 2')")
    start = time.perf_counter()
    with pytest.raises(ValueError, match="--stops: 1; allowed: 2"):
        run_all([slow, wrong], workers=2)
    assert time.perf_counter() - start < 30


def test_numbers_of_a_run_by_hand(tmp_path):
    """Catches before for after, a reward that is never reached, generations of another batch."""
    means = {"accuracy_frac": 0.5, "markers_per_completion": 1.0}
    better = {"accuracy_frac": 0.75, "markers_per_completion": 0.25}
    summary = {
        "before": {"train": means, "fresh": means}, "after": {"train": better, "fresh": better},
        "teacher_accuracy_frac": {"unadapted": 0.8, "before": 0.9, "after": 0.7}, "train_s": 3.5,
    }
    step = {"kind": "step", "completion_tokens": 9.0, "reverse_kl": 0.1}
    rows = [
        {"kind": "evaluation", "step": 0, "train": means, "teacher": {"accuracy_frac": 0.9}},
        {**step, "step": 1, "reward": 0.25}, {**step, "step": 5, "reward": 0.95},
        {"kind": "evaluation", "step": 5, "train": better, "teacher": {"accuracy_frac": 0.7}},
    ]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"run": {"batch_size": 16}}}))
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    numbers = numbers_of(tmp_path)
    assert (numbers["before.fresh.accuracy"], numbers["after.train.markers"]) == (0.5, 0.25)
    assert (numbers["before.teacher.accuracy"], numbers["after.teacher.accuracy"]) == (0.9, 0.7)
    assert numbers["initial gap"] == pytest.approx(0.4)
    assert numbers["curve.generations"] == [16, 80]
    assert (numbers["mean reward"], numbers["generations to 0.9"]) == (pytest.approx(0.6), 80)
    rows[2]["reward"] = 0.5
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert numbers_of(tmp_path)["generations to 0.9"] == 80


def test_the_command_of_a_row_can_be_typed():
    """Catches a switch with a value, a pattern that a shell expands, a flag that was not kept."""
    flags = {"--world": "operators=+-*", "--deterministic": None}
    words = claim_flags("coverage", {"seeds": [5, 6], "flags": flags})
    assert words == "coverage --seed 5 --seeds 2 --world 'operators=+-*' --deterministic"
    settings, given = settings_of(shlex.split(words))
    assert (settings.names, settings.seed, settings.seeds, given) == (["coverage"], 5, 2, flags)
    assert claim_flags("coverage", {"seeds": [0], "flags": {}}) == "coverage --seeds 1"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nonsense"], "coverage"),
        (["coverage", "--seeds", "0"], "--seeds"),
        (["coverage", "--workers", "two"], "--workers"),
        (["coverage", "--method", "grpo"], "--method"),
        (["coverage", "--init", "x", "--data", "y"], "--init"),
    ],
)
def test_bad_calls_are_met_by_one_line(arguments, word, capsys):
    """Catches a traceback, or an hour of runs before an error."""
    with pytest.raises((ValueError, SystemExit)) as stopped:
        main(arguments)
    error = capsys.readouterr().err if stopped.type is SystemExit else f"{stopped.value}\n"
    assert error.count("\n") == 1 and word in error


# With train_gpt.py


def test_every_arm_is_a_command_that_training_takes(tmp_path):
    """Catches a flag or a value in an arm that train_gpt.py does not know."""
    import train_gpt

    arms = {arm for claim in CLAIMS.values() for arm in claim.arms.values()}
    trained = [arm for arm in arms if not isinstance(arm, Measure)]
    for words in {runs_of(arm, {}, 0, tmp_path)[0].words for arm in trained}:
        train_gpt.parse(list(words[1:]))


@pytest.mark.slow
def test_a_claim_from_the_command_to_the_picture(tmp_path):
    """Catches a broken command, arm, statement, table or picture before an hour is spent."""
    tiny = (
        "--steps 1 --batch_size 16 --group_size 4 --eval_problems 4 --max_new_tokens 8 "
        f"--pretrain_steps 2 --cache_dir {tmp_path / 'base'} --out_dir {tmp_path}"
    )
    words = [sys.executable, "-m", "lab.claims", "other_problem", "--seeds", "1", *tiny.split()]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "other_problem: TOO FEW SEEDS" in done.stdout
    row = json.loads((tmp_path / "claims.json").read_text())["other_problem"]
    assert set(row["arms"]) == set(CLAIMS["other_problem"].arms)
    assert all(len(arm["runs"]) == 1 for arm in row["arms"].values())
    assert all(s["mean"] is not None for s in row["statements"])
    assert len(list((tmp_path / "base").glob("*.pt"))) == 1
    assert (tmp_path / "claim-other_problem.png").stat().st_size > 10_000
    text = (tmp_path / "claims.md").read_text()
    commands = re.findall(r"`(python train_gpt\.py [^`]+)`", text)
    assert len(commands) == 3 and all(c in done.stdout for c in commands)
