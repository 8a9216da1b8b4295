"""The written-out SDPO is the one of `step`."""

import copy
import random

import pytest
import torch

import minisd
import toy_tasks
from lab import sdpo_by_hand
from lab.sdpo_by_hand import GROUP, TOKENS, step_by_hand, train
from toy_tasks import ToyTask, World


def far_from_uniform() -> minisd.GPT:
    config = minisd.GPTConfig(vocab_size=len(toy_tasks.VOCABULARY))
    student = minisd.GPT(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        student.lm_head.weight.mul_(20)
    return student


def test_its_loss_and_gradient_are_those_of_step(monkeypatch):
    """Catches a lecture that explains another algorithm than the program runs."""
    monkeypatch.setattr(sdpo_by_hand, "PROBLEMS", 3)
    student, task = far_from_uniform(), ToyTask(World(), pool_size=8)
    teacher = copy.deepcopy(student).requires_grad_(False)
    loss = step_by_hand(student, teacher, task, random.Random(3), torch.Generator().manual_seed(3))
    loss.backward()
    expected = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()

    method = minisd.METHODS["sdpo"]
    teacher = minisd.Teacher(method, student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    sizes = minisd.Sizes(groups=3, group_size=GROUP, max_new_tokens=TOKENS)
    rng, generator = random.Random(3), torch.Generator().manual_seed(3)
    batch = minisd.rollout(method, task, student, teacher, rng, generator, sizes)
    kept = []
    optimizer.step = lambda: kept.extend(p.grad.clone() for p in student.parameters())
    found = minisd.step(method, student, teacher, optimizer, batch, grad_clip=1e9)["loss"]
    assert found == pytest.approx(loss.item(), abs=1e-6)
    for ours, theirs in zip(kept, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_it_trains(capsys, monkeypatch):
    """Catches a script that only looks as if it learned."""
    monkeypatch.setattr(sdpo_by_hand, "PROBLEMS", 1)
    monkeypatch.setattr(sdpo_by_hand, "TOKENS", 8)
    student = far_from_uniform()
    start = student.lm_head.weight.clone()
    train(student, ToyTask(World(), pool_size=8), steps=10)
    assert not torch.equal(start, student.lm_head.weight)
    assert "step  10" in capsys.readouterr().out
