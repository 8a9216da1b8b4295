"""The table of what the toy world must be: its numbers, its bounds, its runs."""

import json

import pytest

import train_gpt
from lab.claims import __main__ as claims
from lab.claims import world

CAREFUL = {
    "careful_fresh_accuracy_frac": 0.96, "careful_new_operators_accuracy_frac": 0.95,
    "careful_longer_accuracy_frac": 0.81, "banned_fresh_accuracy_frac": 0.7,
    "fresh_direct_frac": 0.4, "forced_wrong_glance_teacher": 0.2,
    "forced_wrong_glance_unaided": 0.9, "forced_right_glance_teacher": 0.8,
    "forced_right_glance_unaided": 0.9,
}
TRAINED = {
    "before.fresh.accuracy": 0.7, "before.new_operators.accuracy": 0.7,
    "before.longer.accuracy": 0.5, "pretrain seconds": 9.0,
}


def numbers_of(arm: str, fresh: float) -> dict:
    after = {f"after.{split}.accuracy": fresh for split in ("fresh", "new_operators", "longer")}
    return CAREFUL | TRAINED | after | {"careful_fresh_accuracy_frac": 0.6}


def test_the_table_says_what_is_met(tmp_path, monkeypatch, capsys):
    """Catches a bound read from the other side, and a mean at its bound that is called met."""
    started = {}
    arms = {"base": CAREFUL, "grpo": numbers_of("grpo", 0.92), "sdpo": numbers_of("sdpo", 0.4)}
    arms |= {f"{m}, no function": numbers_of(m, 0.68) for m in ("grpo", "sdpo")}
    names = iter([*world.ARMS] * 2)
    monkeypatch.setattr(world, "run_all", lambda claims, *_: started.update(claims))
    monkeypatch.setattr(world, "arm_numbers", lambda runs: arms[next(names)])
    claims.main(["world", "--seeds", "2", "--out_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "world.json").read_text())
    unmet = [row["words"] for row in rows if row["met"] is False]
    assert len(unmet) == 2 and "new operators" in unmet[0] and "forced right glance" in unmet[1]
    assert [row["met"] for row in rows].count(None) == 7  # shown, without a bound
    means = {row["words"]: row["mean"] for row in rows}
    assert means["after a forced wrong glance: with the solution minus without it (fraction)"] == (
        pytest.approx(-0.7))
    assert means["change of accuracy behind an opening `wait`: sdpo (fraction)"] == (
        pytest.approx(0.6 - 0.96))
    assert (tmp_path / "world.md").read_text() == capsys.readouterr().out.removesuffix("\n")
    commands = [run.words for runs in started["world"] for run in runs]
    trained = [words for words in commands if words[0] == "train_gpt.py"]
    assert len(set(trained)) == 8
    for words in trained:
        settings, _ = train_gpt.parse(list(words[1:]))
        row = train_gpt.METHODS[settings.run.method]
        assert settings.method == row and settings.run.steps == 60  # its own rate, the whole base
        assert settings.toy.pretrain_steps == train_gpt.Toy.pretrain_steps


def test_what_was_not_measured_is_not_met(tmp_path, monkeypatch, capsys):
    """Catches nan in the file, which JSON has not, and a failed run that is passed over."""
    monkeypatch.setattr(world, "run_all", lambda *_: None)
    monkeypatch.setattr(world, "arm_numbers", lambda runs: {"failed": "loss nan"})
    claims.main(["world", "--seeds", "1", "--out_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "world.json").read_text(), parse_constant=pytest.fail)
    assert {row["met"] for row in rows} == {False, None} and "nan" not in capsys.readouterr().out


@pytest.mark.parametrize("words, said", [
    (["--seeds", "0"], "--seeds: 0; allowed: 1 or more, at most 1000"),
    (["--seed", "3"], "--seed: '3'; allowed: not here"),
    (["--method", "sft"], "--method: 'sft'; allowed: not here"),
])
def test_what_would_make_it_another_table_is_refused(words, said):
    """Catches a flag that makes all arms one method, or that is silently overruled."""
    with pytest.raises(ValueError) as error:
        claims.main(["world", *words])
    assert str(error.value).startswith(said)


def test_words_without_a_flag_are_refused(capsys):
    """Catches a claim behind `world` that is silently left out."""
    with pytest.raises(SystemExit) as stop:
        claims.main(["world", "suppression"])
    assert stop.value.code == 2 and "suppression" in capsys.readouterr().err
