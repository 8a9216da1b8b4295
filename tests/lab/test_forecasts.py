"""Forecasts against what happened: written first, and judged as one works it out by hand."""

import json

import pytest

from lab.claims import __main__ as claims
from lab.claims import forecasts
from lab.claims.forecast import CASES

TABLE = {
    "student_accuracy_frac": 0.7, "teacher_accuracy_frac": 1.0, "transplant_accuracy_frac": 0.4,
    "corrected_accuracy_frac": 0.5, "initial_gap_frac": 0.3, "reverse_kl_per_token": 0.1,
    "entropy_drop_per_completion": 1.0, "marker_change_per_completion": -0.5,
}
FORECAST = {"fresh": TABLE, "pool": TABLE, "own": False}
RUN = {"before.fresh.accuracy": 0.7, "before.train.accuracy": 0.7, "after.fresh.accuracy": 0.5,
       "after.train.accuracy": 0.8}


def test_no_line_is_fitted_to_a_law():
    """Catches the R2 of a fitted line, which calls a forecast right that is off by half."""
    before, after = [0.5] * 4, [0.9, 0.7, 0.5, 0.3]
    assert forecasts.judged(after, before, after) == {"r2": 1, "error": 0, "signs": 1, "moved": 3}
    half = [0.7, 0.6, 0.5, 0.4]  # half of every change
    found = forecasts.judged(half, before, after)  # 1 - (.04+.01+0+.01) / (.09+.01+.01+.09)
    assert found["r2"] == pytest.approx(0.7) and found["error"] == pytest.approx(0.1)
    found = forecasts.judged([0.1, 0.3, 0.5, 0.7], before, after)  # the opposite
    assert found["r2"] < 0 and found["signs"] == 0
    # A rival gets the line that fits best, so that its scale does not matter.
    assert forecasts.fitted([40, 20, 0, -20], before, after) == pytest.approx(after)


def made_up(monkeypatch, trained) -> list[dict]:
    """Makes runs cost nothing; returns what is started, call by call."""
    started = []
    monkeypatch.setattr(forecasts, "run_all", lambda runs, *_: started.append(runs["forecasts"]))
    monkeypatch.setattr(
        forecasts, "arm_numbers",
        lambda runs: trained if runs[0].words[0] == "train_gpt.py" else FORECAST)
    return started


def test_predictions_are_written_before_the_first_run(tmp_path, monkeypatch, capsys):
    """Catches predictions that know their runs, and a table that lacks a case or a rival."""
    started = made_up(monkeypatch, RUN)
    command = ["forecasts", "--out_dir", str(tmp_path)]
    claims.main([*command, "--predict"])
    points = json.loads((tmp_path / "forecasts.json").read_text())
    assert len(points) == 8 * len(CASES) and "after_fresh" not in points[0]
    assert len(started) == 1 and all(r[0].words[:3] == ("-m", "lab.measures", "forecast")
                                     for r in started[0])
    first = points[0]
    assert first["case"] == "solution" and first["predicted"]["corrected"] == 0.5
    k = 1 - 2.718281828 ** -(60 * 64 / 8 / 64 / 16)
    assert first["predicted_pool"]["corrected"] == pytest.approx(k * 1.0 + (1 - k) * 0.5)
    endless = next(p for p in points if p["case"] == "solution, endless")
    assert endless["predicted_pool"]["corrected"] == 0.5  # nothing is seen twice

    claims.main(command)
    assert [r[0].words[0] for r in started[2]] == ["train_gpt.py"] * len(points)
    points = json.loads((tmp_path / "forecasts.json").read_text())
    assert points[0]["after_train"] == 0.8
    text = (tmp_path / "forecasts.md").read_text()
    names = (*CASES, *forecasts.RIVALS, forecasts.NOW)
    assert all(name.replace("|", "\\|") in text for name in names)
    assert "| law, corrected | nan | 0.000 | 100% of 72" in text  # all changes alike
    assert (tmp_path / "forecasts.png").stat().st_size > 10_000

    # The same folder with other predictions: those that were written stay.
    monkeypatch.setitem(TABLE, "corrected_accuracy_frac", 0.6)
    with pytest.raises(ValueError, match="other predictions; allowed: another folder"):
        claims.main([*command, "--predict"])


def test_a_failed_run_is_left_out(tmp_path, monkeypatch, capsys):
    """Catches nan in the tables, and a picture that cannot be drawn."""
    made_up(monkeypatch, RUN)
    monkeypatch.setattr(forecasts, "draw", lambda *_: None)
    found = iter([{"failed": "loss nan"}])
    finished = forecasts.arm_numbers
    monkeypatch.setattr(
        forecasts, "arm_numbers",
        lambda runs: next(found, RUN) if runs[0].words[0] == "train_gpt.py" else finished(runs))
    claims.main(["forecasts", "--out_dir", str(tmp_path)])
    text = (tmp_path / "forecasts.md").read_text()
    assert f"{8 * len(CASES) - 1} runs that were forecast" in text and "nan |" not in text[-400:]
