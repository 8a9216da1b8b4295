"""Laws of the floor of the forward KL to teachers with different rules."""

import dataclasses
import json
import math
import random

import pytest
import torch
from tiny import build_gpt, finished_run

import toy_tasks
from lab.measures import __main__ as command
from lab.measures.floor import loss_and_floor
from lab.measures.probe import Settings
from toy_tasks import Example, Toy, encode

SIZE = {"vocab_size": len(toy_tasks.VOCABULARY), "dtype": torch.float32}
TOY = Toy(world="operators=+,max_operations=2", rules="2,2,7")
TINY = Settings(toy=TOY, eval_problems=3, max_new_tokens=5, train_problems=4)


def measured(toy: Toy) -> tuple[torch.Tensor, torch.Tensor, int]:
    settings = dataclasses.replace(TINY, toy=toy)
    return loss_and_floor(settings, settings.task(), build_gpt(1, **SIZE), build_gpt(2, **SIZE))


def test_the_floor_is_below_the_loss_and_vanishes_with_one_rule():
    """Catches odds that go to the wrong teacher: then the mixture is no minimiser."""
    loss, floor, completions = measured(TOY)
    assert completions == 3 and loss.shape == floor.shape
    assert (floor > 1e-4).all() and (loss > floor).all()
    # What a bit of news at odds 2:1 can be at most, at every token.
    assert floor.max() < -(2 * math.log(2 / 3) + math.log(1 / 3)) / 3
    loss, floor, _ = measured(dataclasses.replace(TOY, rules="3"))
    assert loss.min() > 1e-4
    torch.testing.assert_close(floor, torch.zeros_like(floor), rtol=0, atol=1e-5)


def test_loss_and_floor_by_plain_forward_passes():
    """Catches teachers that see the rule of the example, prefixes of another row, a reverse KL."""
    loss, floor, _ = measured(TOY)
    student, base, task = build_gpt(1, **SIZE), build_gpt(2, **SIZE), TINY.task()
    examples = task.evaluation("fresh", 3, random.Random("floor-0"))
    first = examples[0].problem
    p = student(torch.tensor([encode(first.prompt)]))[0, -1].softmax(-1)
    q = []
    for rule in (2, 7):
        ids = encode(f"rule +{rule} | {Example(first, rule).prompt}")
        q.append(base(torch.tensor([ids]))[0, -1].softmax(-1))
    mixture = (2 * q[0] + q[1]) / 3
    for target, found in ((p, loss), (mixture, floor)):
        expected = sum(w * (x * (x / target).log()).sum() for w, x in zip((2 / 3, 1 / 3), q))
        torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)


def test_the_command_measures_the_base_model_and_the_student(tmp_path, monkeypatch):
    """Catches the base model in the student's place, and sums that are called means."""
    monkeypatch.setattr(Settings, "base", lambda settings: build_gpt(2, **SIZE))
    finished_run(tmp_path, build_gpt(1, **SIZE), TOY, eval_problems=3, max_new_tokens=5)
    command.main(["floor", "--run", str(tmp_path), "--out", str(tmp_path / "floor.json")])
    found = json.loads((tmp_path / "floor.json").read_text())
    for when in ("before", "after"):
        assert 0 < found[f"floor {when}"] < found[f"forward KL {when}"]
        tokens = found[f"floor {when}"] / found[f"floor per token {when}"]
        assert 1 <= tokens < 5.01
        total = found[f"forward KL {when}"] / found[f"forward KL per token {when}"]
        assert total == pytest.approx(tokens)
    assert found["forward KL before"] != found["forward KL after"]
