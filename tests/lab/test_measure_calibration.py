"""Laws of confidence and accuracy on fresh problems."""

import json
import math

import pytest
import torch
from tiny import build_gpt, finished_run

from lab.measures import __main__ as command
from lab.measures import calibration
from lab.measures.probe import Settings
from minisd import Completions
from toy_tasks import VOCABULARY, Example, Problem, Toy, encode

SIZE = {"vocab_size": len(VOCABULARY), "dtype": torch.float32}
TOY = Toy(world="operators=+,max_operations=2")
TINY = Settings(toy=TOY, eval_problems=4, max_new_tokens=8, train_problems=4)


def test_confidence_is_that_of_the_digit_behind_the_last_answer(monkeypatch):
    """Catches another token's probability, log-probabilities, and an answer that is none."""
    texts = ["answer 9", "3+4=7; 7+2=8; answer 8", "answer 4; answer 9", "wait 3+4=7", "answer 12"]
    ids = [encode(text) for text in texts]
    wanted = {0: 0.5, 1: 0.8, 2: 0.2}  # row -> probability of its last digit, all others 0.9
    log_probs = [[math.log(0.9)] * len(row) for row in ids]
    for i, p in wanted.items():
        log_probs[i][-1] = math.log(p)
    completions = Completions.of(ids, 0, log_probs=log_probs)
    examples = [Example(Problem.parse("3+4+2"))] * len(texts)
    given = (examples, None, completions)
    monkeypatch.setattr(calibration, "fresh_completions", lambda *_: given)
    found = calibration.calibration(TINY, TINY.task(), None)
    assert found["all"]["share"] == 3 / 5
    assert found["all"]["confidence"] == pytest.approx(0.5)
    assert found["all"]["accuracy"] == pytest.approx(2 / 3)
    assert found["direct"]["confidence"] == pytest.approx(0.35)
    assert found["direct"]["overconfidence"] == pytest.approx(0.35 - 1)
    assert found["steps"]["overconfidence"] == pytest.approx(0.8)


def test_the_command_measures_a_run_without_rules(tmp_path, monkeypatch):
    """Catches a run that is refused for having none, and nan where nobody has answered."""
    student = build_gpt(**SIZE)
    monkeypatch.setattr(Settings, "base", lambda settings: build_gpt(**SIZE))
    with torch.no_grad():
        student.lm_head.weight.zero_()  # every token equally likely
    finished_run(tmp_path, student, TOY, eval_problems=256, max_new_tokens=8)
    command.main(["calibration", "--run", str(tmp_path), "--out", str(tmp_path / "x.json")])
    found = json.loads((tmp_path / "x.json").read_text())
    share = 1 / len(VOCABULARY)
    assert found["after"]["all"]["confidence"] == pytest.approx(share, abs=1e-6)
    assert {"all", "direct", "steps"} == found["before"].keys()
