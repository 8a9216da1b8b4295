"""The claims: verdicts on made-up numbers, what is rerun when, every experiment at a tiny size."""

import dataclasses
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minisd
import toy_tasks
import train_gpt
from results import claims, measures
from results.claims import CLAIMS, Claim, Statement, judge, statement, verdict

TINY = {
    **{"steps": 1, "batch_size": 16, "group_size": 4, "eval_problems": 4, "max_new_tokens": 8},
    **{"pretrain_steps": 2, "adapt_steps": 1, "warm_start_steps": 0},
    "world": "operators=+-*,max_operations=3",
}


FEW = {  # of results/measures.py
    **{"HORIZON_PROBLEMS": 6, "FORCED": 4, "PREFIX_PROBLEMS": 6, "ENUMERATED_PROBLEMS": 2},
    **{"LEAST_MASS": 1e-2, "TREE_OPERATIONS": (1,), "TREE_TOKENS": 2, "RAREST_PREFIX": 0.05},
    **{"LONG_PROBLEMS": 1, "LONG_COMPLETIONS": 4, "SAMPLE_COUNTS": [1, 8]},
    **{"REWARD_COMPLETIONS": 64, "SIGNAL_BATCHES": 2},
}


def tiny_flags() -> list[str]:
    return [part for name, value in TINY.items() for part in (f"--{name}", str(value))]


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


def made_up(effects: list[float], controls: list[float]) -> tuple[Claim, list]:
    """A claim whose arm rises by the effects and whose control by the controls."""
    claim = Claim(
        source="", published="", prediction="", arms={"arm": {}, "other": {}},
        statements=["change of fresh.accuracy: arm > 0.1"],
        control="change of fresh.accuracy: other",
    )  # fmt: skip
    runs = [
        {
            name: {"before.fresh.accuracy": 0.5, "after.fresh.accuracy": 0.5 + change}
            for name, change in (("arm", effect), ("other", control))
        }
        for effect, control in zip(effects, controls)
    ]
    return claim, runs


STRONG, NONE = [0.3, 0.32, 0.28, 0.31, 0.29], [0.01, -0.02, 0.0, 0.02, -0.01]


@pytest.mark.parametrize(
    ("effects", "controls", "expected"),
    [
        (STRONG, NONE, "reproduced"),
        (STRONG, STRONG, "not reproduced"),  # the control does not remove the effect
        ([3 * x for x in STRONG], [0.6 * x / 0.3 for x in STRONG], "not reproduced"),  # nor half
        (NONE, NONE, "not reproduced"),
        ([-x for x in STRONG], NONE, "opposite"),
        (STRONG[:3], NONE[:3], "too few seeds"),
    ],
)
def test_a_claim_stands_only_with_its_control(effects, controls, expected):
    """Catches a verdict that forgets the control or the number of seeds."""
    assert judge(*made_up(effects, controls))["verdict"] == expected


def test_other_statements_are_counted_beside_the_verdict():
    """Catches a count of statements that forgets those that failed."""
    claim, runs = made_up(STRONG, NONE)
    harder = [*claim.statements, "change of fresh.accuracy: arm > 0.9"]
    row = judge(dataclasses.replace(claim, statements=harder), runs)
    assert (row["verdict"], row["held"], len(row["statements"])) == ("reproduced", 1, 2)


# Statements


def test_statements_are_read_as_written():
    """Catches a wrong operation, order or bound in the little language of the table."""
    runs = {
        "a": {"before.x": 1.0, "after.x": 5.0, "y": 3.0},
        "b, c": {"before.x": 2.0, "after.x": 4.0, "y": 6.0},
    }
    for text, value, above, below in (
        ("x: a - b, c < -0.5", 1.0, None, -0.5),
        ("change of x: a + b, c > 2", 6.0, 2.0, None),
        ("y: b, c - 0.5 * a > 0", 4.5, 0.0, None),
        ("x: a - b, c - a + a > 0", 1.0, 0.0, None),
        ("y: a", 3.0, None, None),
    ):
        s = statement(text)
        assert (s.value(runs), s.above, s.below) == (value, above, below), text
    with pytest.raises(ValueError, match="allowed: quantity: arm - arm < bound"):
        statement("no quantity")


def test_every_claim_is_complete():
    """Catches a row without source, prediction, bound, or with an arm that does not exist."""
    for name, claim in CLAIMS.items():
        assert claim.source and claim.prediction and claim.published, name
        for given in claim.statements:
            s = statement(given)
            assert (s.above is None) != (s.below is None), (name, s.words)
        for given in (*claim.statements, claim.control):
            if not isinstance(given, Statement):
                arms = re.sub(r" [<>] [-.\d]+$", "", given).partition(": ")[2]
                for arm in re.split(r" [-+] ", arms):
                    assert re.sub(r"^[.\d]+ \* ", "", arm) in claim.arms, (name, arm)


# What is rerun


def code(function, monkeypatch=None) -> str:
    train_gpt.code_of.cache_clear()
    return train_gpt.code_of(function)[0]


def test_a_result_is_named_by_the_code_and_settings_that_it_depends_on(monkeypatch):
    """Catches a stale result after a change, and a rerun after a change that affects nothing."""
    measure = measures.measure_training
    before = code(measure)
    monkeypatch.setattr(train_gpt, "draw_curves", None)  # only reports
    monkeypatch.setattr(minisd, "save_hf", None)
    assert code(measure) == before
    monkeypatch.setattr(minisd, "MAX_LOG_RATIO", 3.0)  # a constant in the policy gradient
    assert code(measure) != before
    monkeypatch.undo()
    monkeypatch.setattr(toy_tasks, "MARKER", "hm ")  # deep in the documents
    assert code(train_gpt.pretrain) != before
    monkeypatch.undo()
    assert code(measure) == before
    config = train_gpt.method_config({"method": "sdpo"})
    path = claims.result_path("training", config)
    for name, value in (("clip_low", 0.1), ("seed", 3), ("world", "slip_rate=0"), ("steps", 9)):
        changed = dataclasses.replace(config, **{name: value})
        assert claims.result_path("training", changed) != path, name
    for name, value in (("out_dir", "elsewhere"), ("cache_dir", "out/base/"), ("method", "opsd")):
        changed = dataclasses.replace(config, **{name: value})
        assert claims.result_path("training", changed) == path, name


def test_the_hash_of_the_code_does_not_depend_on_the_process():
    """Catches addresses or the order of sets in the hash: nothing would ever be found again."""
    command = "from results import claims as c; print(c.code_of(c.MEASUREMENTS['training'])[0])"
    there = subprocess.run(
        [sys.executable, "-c", command],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        cwd=os.path.dirname(train_gpt.__file__),
        capture_output=True,
        text=True,
    )
    assert there.stdout.strip() == code(claims.MEASUREMENTS["training"])


# Every experiment at a tiny size


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_runs_at_a_tiny_size(name, tmp_path_factory, capsys, monkeypatch):
    """Catches a broken arm, statement, control, table or picture before an hour is spent."""
    for constant, value in FEW.items():
        monkeypatch.setattr(measures, constant, value)
    cache = tmp_path_factory.getbasetemp() / "claims"  # arms that claims share run once
    out = cache / name
    arguments = ["--claim", name, "--seeds", "1", "--workers", "1", "--cache_dir", str(cache)]
    train_gpt.main([*arguments, "--out_dir", str(out), *tiny_flags()])
    row = json.loads((out / "claims.json").read_text())[name]
    assert row["verdict"] in ("too few seeds", "not measured")
    assert set(row["arms"]) == set(CLAIMS[name].arms)
    assert all(len(arm["runs"]) == 1 for arm in row["arms"].values())
    assert (out / f"claim-{name}.png").stat().st_size > 10_000
    assert f"## {name}" in (out / "claims.md").read_text()
    assert f"{name}: {row['verdict'].upper()}" in capsys.readouterr().out


def test_finished_runs_are_kept_and_interrupted_calls_go_on(tmp_path):
    """Catches a run that is repeated, and a result that an interruption loses."""
    flags = TINY | {"cache_dir": str(tmp_path)}
    first = claims.run_claims(["suppression"], flags, [0], 1)
    files = sorted((tmp_path / "runs").iterdir())
    times = [f.stat().st_mtime_ns for f in files]
    files[0].unlink()  # as if it had been interrupted
    again = claims.run_claims(["suppression"], flags, [0], 1)
    assert sorted((tmp_path / "runs").iterdir()) == files
    assert [f.stat().st_mtime_ns for f in files[1:]] == times[1:]
    assert first["suppression"]["statements"] == again["suppression"]["statements"]


@pytest.mark.parametrize("name", ["rlvr_teacher", "prefix_mismatch"])
def test_runs_are_queued_behind_all_of_their_base_models(name, tmp_path, monkeypatch):
    """Catches a run that pretrains by itself, unseen, and an external teacher for every seed."""
    for constant, value in FEW.items():
        monkeypatch.setattr(measures, constant, value)
    in_turn = claims.in_turn

    def checked(function, *arguments):
        if function is claims.run_arm:
            bases = train_gpt.bases_of(arguments[0][1])
            assert all(train_gpt.base_path(*base).exists() for base in bases)
        return in_turn(function, *arguments)

    monkeypatch.setattr(claims, "in_turn", checked)
    claims.run_claims([name], TINY | {"cache_dir": str(tmp_path)}, [0, 1], 1)
    assert len(list(tmp_path.glob("*.pt"))) == 3  # of two students and of the external teacher


def test_what_is_said_of_a_control():
    """Catches an effect that is called gone because nobody could judge it, or a failed control."""
    falls, nothing = [-0.30, -0.35, -0.32, -0.28, -0.33], [-0.01, 0.02, 0.0, 0.01, -0.02]
    claim = dataclasses.replace(CLAIMS["suppression"], statements=["x: a < -0.1"], control="x: b")
    for a, b, total, words in (
        (falls, nothing, "reproduced", "removes the effect"),
        (falls, falls, "not reproduced", "keeps the effect"),
        (nothing, falls, "not reproduced", "not asked, as the effect is not reproduced"),
        (falls[:4], nothing[:4], "too few seeds", "not judged"),
        (falls, [math.nan, *nothing[1:]], "not measured", "not judged"),
        ([math.nan, *falls[1:]], nothing, "not measured", "not judged"),
    ):
        row = judge(claim, [{"a": {"x": x}, "b": {"x": y}} for x, y in zip(a, b)])
        assert (row["verdict"], claims.control_text(row)) == (total, words)


def test_the_command_of_a_row_can_be_typed():
    """Catches a switch with a value, a pattern that a shell expands, a flag that was not kept."""
    flags = {"world": "operators=+-*", "only_correct": False, "deterministic": True}
    words = claims.claim_flags("coverage", {"seeds": [5, 6], "flags": flags})
    assert "--world 'operators=+-*'" in words
    given = vars(train_gpt.make_parser().parse_args(shlex.split(words)))
    expected = {"claim": ["coverage"], "seed": 5, "seeds": 2} | flags
    assert {k: v for k, v in given.items() if k in expected} == expected
    assert (
        claims.claim_flags("coverage", {"seeds": [0], "flags": {}}) == "--claim coverage --seeds 1"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--claim", "nonsense"],
        ["--claim", "coverage", "--compare", "sdpo"],
        ["--claim", "coverage", "--seeds", "0"],
        ["--claim", "coverage", "--method", "grpo"],
        ["--claim", "coverage", "--init", "x", "--data", "y"],
    ],
)
def test_bad_calls_of_claims_are_met_by_one_line(arguments, capsys):
    """Catches a traceback, or an hour of runs before an error."""
    with pytest.raises(SystemExit) as stopped:
        train_gpt.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.count("\n") == 1 and "--" in error and "allowed" in error


def test_the_readme_shows_the_results_that_are_kept():
    """Catches a table in the README, or claims.md, that is older than the numbers in results/."""
    folder = Path(train_gpt.__file__).parent
    rows = json.loads((folder / "results" / "claims.json").read_text())
    assert list(rows) == list(CLAIMS)
    assert all(len(row["seeds"]) >= claims.MIN_SEEDS for row in rows.values())
    plain = claims.claims_markdown(rows).replace(" (older code)", "")
    kept = (folder / "results" / "claims.md").read_text().replace(" (older code)", "")
    assert kept == plain
    table = claims.claims_table(rows).replace(" (older code)", "")
    assert table in (folder / "README.md").read_text()
    for name, row in rows.items():
        assert row["prediction"] == CLAIMS[name].prediction, f"{name}: changed after its runs"


def test_summaries_by_hand():
    """Catches ranks that follow the order of equal values, a slope of x over y, R for R^2."""
    assert claims.rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert claims.rank_correlation([1, 2, 3], [9, 5, 1]) == pytest.approx(-1)
    # Ranks 0.5, 1.5, 2.5 and, of equal values, 1, 1, 2.5: covariance 1.5, variances 2 and 1.5.
    assert claims.rank_correlation([1, 2, 3], [7, 7, 8]) == pytest.approx(1.5 / 3**0.5)
    assert math.isnan(claims.rank_correlation([1, 2, 3], [7, 7, 7]))
    slope, fit = claims.slope_and_fit([0, 1, 2], [0, 2, 1])  # covariance 1, variances 2 and 2
    assert (slope, fit) == (pytest.approx(0.5), pytest.approx(0.25))
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.2, 0.5, 0.3])
    assert measures.total_variation(p, q).item() == pytest.approx(0.3)
    assert measures.ratio(1.0, 4.0) == 0.25 and measures.ratio(1.0, 0.0) is None


def test_numbers_do_not_depend_on_the_number_of_workers(tmp_path):
    """Catches a worker whose threads or random numbers differ from those of one process."""
    rows = [
        claims.run_claims(["sft_guided"], TINY | {"cache_dir": str(tmp_path / str(n))}, [0, 1], n)
        for n in (1, 2)
    ]
    assert rows[0]["sft_guided"]["statements"] == rows[1]["sft_guided"]["statements"]
