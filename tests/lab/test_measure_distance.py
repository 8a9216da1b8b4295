"""Laws of the distance of a student from its teacher at the base model's own completions."""

import dataclasses
import json
import random

import pytest
import torch
from tiny import build_gpt, plain_log_probs

from lab import storage
from lab.measures import __main__ as command
from lab.measures.distance import measure_distance
from lab.measures.probe import Probe, Settings
from toy_tasks import END_ID, VOCABULARY, Toy, encode

SIZE = {"vocab_size": len(VOCABULARY), "dtype": torch.float32}
TOY = Toy(world="operators=+,max_operations=2")
TINY = Settings(toy=TOY, eval_problems=3, max_new_tokens=5, train_problems=4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run whose student is model 1, of base model 2."""
    monkeypatch.setattr(Settings, "base", lambda settings: build_gpt(2, **SIZE))
    storage.save_student(tmp_path / "student.pt", build_gpt(1, **SIZE))
    return tmp_path


def test_the_distance_is_the_mean_kl_of_plain_forward_passes(folder):
    """Catches a student that sees the solution, a teacher that has moved, the other direction,
    and tokens that are the student's own."""
    found = measure_distance(TINY, folder)
    base, student, task = build_gpt(2, **SIZE), build_gpt(1, **SIZE), TINY.task()
    examples = task.evaluation("train", 3, random.Random("distance-0"))
    probe = Probe.draw(TINY, "distance", [e.problem for e in examples])
    values = {"before": [], "after": []}
    for example, text in zip(examples, probe.texts):
        ids = [*encode(text), END_ID]
        hint = task.context(example, "solution", random.Random(0))
        q = plain_log_probs(base, encode(hint + example.prompt), ids)
        for when, model in (("before", base), ("after", student)):
            p = plain_log_probs(model, encode(example.prompt), ids)
            values[when] += (q.exp() * (q - p)).sum(-1).tolist()
    for when, kl in values.items():
        assert found[f"forward KL {when}"] == pytest.approx(sum(kl) / len(kl), abs=1e-5)


def test_an_untrained_student_has_not_moved(folder):
    """Catches other tokens, or another teacher, before than after."""
    storage.save_student(folder / "student.pt", build_gpt(2, **SIZE))
    found = measure_distance(TINY, folder)
    assert found["forward KL before"] == found["forward KL after"] > 0.01


def test_the_command_measures_a_run_without_rules(folder):
    """Catches a run that is refused for having none."""
    run = {"seed": 0, "train_problems": 4, "eval_problems": 2, "max_new_tokens": 5, "threads": 1}
    groups = {"run": run | {"cache_dir": ""}, "toy": dataclasses.asdict(TOY), "method": {}}
    storage.write_json(folder / "config.json", {"settings": groups | {"checkpoint": {}}})
    command.main(["distance", "--run", str(folder), "--out", str(folder / "x.json")])
    found = json.loads((folder / "x.json").read_text())
    assert found.keys() == {"forward KL before", "forward KL after", "seconds"}
