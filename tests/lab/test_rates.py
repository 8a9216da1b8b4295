"""The search for learning rates: which runs, which rate is best, what is refused."""

import json

import pytest

import train_gpt
from lab import rates


@pytest.fixture
def searched(monkeypatch):
    """(method, rate) -> accuracy on training problems; main(words) without any training."""
    found = {}

    def main(*words: str, **accuracy: float) -> dict:
        monkeypatch.setattr(rates, "run_all", lambda arms, workers, tell: found.update(arms))
        monkeypatch.setattr(rates, "arm_numbers", lambda runs: numbers(runs[0].words))

        def numbers(words) -> dict:
            settings, _ = train_gpt.parse(list(words[1:]))
            x = accuracy[f"at_{settings.method.learning_rate:g}".replace(".", "_")]
            return {} if x is None else {"after.train.accuracy": x, "after.fresh.accuracy": 0.5}

        rates.main(list(words))
        return found

    return main


def test_the_best_rate_is_that_of_the_training_problems(searched, tmp_path, capsys):
    """Catches a choice by fresh problems, the higher of two equal rates, a failed run that wins."""
    words = ("sft", "grpo", "--out_dir", str(tmp_path))
    runs = searched(*words, at_0_0001=0.8, at_0_0003=0.8, at_0_001=None)
    rows = json.loads((tmp_path / "rates.json").read_text())
    assert rows["sft"]["best"] == "1e-4" and list(rows) == ["sft", "grpo"]
    assert rows["sft"]["rates"]["1e-3"]["train"]["mean"] == 0
    assert "| sft | 0.80 / 0.50 | 0.80 / 0.50 | 0.00 / 0.00 | 1e-4 |" in capsys.readouterr().out
    words = [run.words for [run] in runs["grpo"]]
    assert len(set(words)) == 6 and all("--steps 60" in " ".join(w) for w in words)


def test_rows_of_earlier_calls_are_kept(searched, tmp_path):
    """Catches a call for one row that forgets the others."""
    accuracy = {"at_0_0001": 0.1, "at_0_0003": 0.2, "at_0_001": 0.3}
    searched("sft", "--out_dir", str(tmp_path), **accuracy)
    searched("grpo", "--out_dir", str(tmp_path), **accuracy)
    rows = json.loads((tmp_path / "rates.json").read_text())
    assert {name: row["best"] for name, row in rows.items()} == {"sft": "1e-3", "grpo": "1e-3"}


@pytest.mark.parametrize("words, said", [
    (["chess"], "method: 'chess'; allowed: sft"),
    (["--seeds", "0"], "--seeds: 0; allowed: 1 or more, at most 1000"),
    (["--workers", "0"], "--workers: 0; allowed: 1 or more, at most 1000"),
    (["--learning_rate", "1"], "--learning_rate: '1'; allowed: not here"),
    (["--method", "sft"], "--method: 'sft'; allowed: not here"),
    (["--seed", "3"], "--seed: '3'; allowed: not here"),
])
def test_what_would_change_nothing_is_refused(words, said):
    """Catches a flag that is silently overruled by the search's own."""
    with pytest.raises(ValueError) as error:
        rates.settings_of(words)
    assert str(error.value).startswith(said)


def test_a_file_of_something_else_is_not_written_over(tmp_path):
    """Catches a traceback, and hours of runs before the refusal."""
    (tmp_path / "rates.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"rates.json' holds no rates; allowed: another folder"):
        rates.main(["sft", "--out_dir", str(tmp_path)])
    assert (tmp_path / "rates.json").read_text() == "[1]"
