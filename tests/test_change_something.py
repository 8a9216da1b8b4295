"""One function and one row: the eight changes that the README shows, each in under ten lines.

No module's source is touched. Every change trains a few steps and is seen in what came of them.
"""

import dataclasses
import random
from typing import ClassVar

import pytest
import torch

import minisd
import toy_tasks
from minisd import GPT, METHODS, GPTConfig, Method, Sizes, Teacher, rollout, step
from toy_tasks import ToyTask, World

SIZES = Sizes(groups=4, group_size=4, max_new_tokens=12)


def trained(method: Method, task=None, steps=3) -> tuple[list[float], GPT, Teacher]:
    """Losses of a few steps of a model that has learned nothing, the model, and its teacher."""
    task = task or ToyTask(World(), pool_size=8)
    student = GPT(GPTConfig(vocab_size=len(toy_tasks.VOCABULARY)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        student.lm_head.weight.mul_(20)  # far from uniform
    teacher = Teacher(method, student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
    rng, generator, losses = random.Random(0), torch.Generator().manual_seed(0), []
    for n in range(1, steps + 1):
        batch = rollout(method, task, student, teacher, rng, generator, SIZES)
        losses.append(step(method, student, teacher, optimizer, batch)["loss"])
        teacher.update(n)
    return losses, student, teacher


def sdpo(**changes) -> Method:
    return dataclasses.replace(METHODS["sdpo"], **changes)


def test_a_divergence(monkeypatch):
    """Catches a table that is not looked up: until this edition a new loss trained reverse KL."""

    def total_variation(student_logits, teacher_logits):
        return (student_logits.softmax(-1) - teacher_logits.softmax(-1)).abs().sum(-1) / 2

    row = lambda s, t, m: total_variation(s, t)  # noqa: E731
    monkeypatch.setitem(minisd.DIVERGENCES, "total_variation", row)
    losses, _, _ = trained(sdpo(divergence="total_variation"))
    assert losses != trained(sdpo())[0] and all(0 < loss < 1 for loss in losses)


def test_a_credit(monkeypatch):
    """Catches a credit that needs a branch in the loss."""
    monkeypatch.setitem(minisd.CREDITS, "squared", lambda x, m: x["divergence"] ** 2)
    assert trained(sdpo(credit="squared"))[0] != trained(sdpo())[0]


def test_a_token_weight(monkeypatch):
    """Catches weights that do not reach the loss, or scores that are not those of the batch."""
    row = lambda batch, scores, m: scores({})["divergence"] > 0.1  # noqa: E731
    monkeypatch.setitem(minisd.TOKEN_WEIGHTS, "where_they_differ", row)
    assert trained(sdpo(token_weights="where_they_differ"))[0][0] > trained(sdpo())[0][0]


def test_an_advantage(monkeypatch):
    """Catches a policy gradient that sees rewards alone: this one needs none."""
    row = lambda batch, scores, m: torch.full_like(batch.rewards, -1.0)[:, None]  # noqa: E731
    monkeypatch.setitem(minisd.ADVANTAGES, "constant", row)
    grpo = dataclasses.replace(METHODS["grpo"], kl_coef=0.0)  # where no answer is right, it rests
    assert trained(grpo)[0] == pytest.approx([0.0] * 3, abs=1e-6)
    assert trained(dataclasses.replace(grpo, advantage="constant"))[0][0] == pytest.approx(1.0)


def test_a_context(monkeypatch):
    """Catches a context that must be named in five places."""
    backwards = lambda p, rng, attempt, rule: "hint " + "".join(map(str, p.values[::-1]))  # noqa: E731
    monkeypatch.setitem(toy_tasks.CONTEXTS, "backwards", toy_tasks.Context(backwards, 0.5, 0.0))
    losses, _, _ = trained(sdpo(context="backwards"))
    assert losses != trained(sdpo())[0]


def test_the_weights_of_a_teacher(monkeypatch):
    """Catches an unknown name that behaves as another: this one is the mean of all students."""
    monkeypatch.setitem(minisd.TEACHERS, "mean", lambda method, step: 1 / (step + 1))
    _, student, teacher = trained(sdpo(teacher="mean"))
    frozen = trained(sdpo(teacher="frozen"))[2].copies["frozen"].norm.weight
    assert not torch.equal(teacher.copies["mean"].norm.weight, frozen)
    assert not torch.equal(teacher.copies["mean"].norm.weight, student.norm.weight)


def test_a_method(monkeypatch):
    """Catches a row that needs more than a row: contrast to the teacher without the solution."""
    target = ((1.5, "ema", "solution"), (-0.5, "frozen", "none"))
    row = Method("here", target=target, teacher_update_rate=0.01)
    monkeypatch.setitem(METHODS, "contrast", row)
    losses, _, teacher = trained(METHODS["contrast"])
    assert losses != trained(sdpo())[0] and teacher.copies.keys() == {"ema", "frozen"}


class Reverse:
    """Reverse the string: 1234 is answered by 4321, which is the solution as well."""

    pad_id, end_ids, splits = toy_tasks.PAD_ID, (toy_tasks.END_ID,), ("train", "fresh")
    attempts: ClassVar[dict] = {}
    encode, decode = staticmethod(toy_tasks.encode), staticmethod(toy_tasks.decode)

    def draw(self, split, rng):
        return "".join(rng.choices("0123456789", k=4))

    def context(self, example, kind, rng, attempt=""):
        return f"solution {example[::-1]} | "

    def prompt_ids(self, example, context=""):
        return toy_tasks.encode(f"{context}{example} = ")

    def reference(self, example, rng):
        return example[::-1]

    def reward(self, text, example):
        return float(text == example[::-1])

    def measures(self, text, example):
        return {"accuracy_frac": self.reward(text, example)}


def test_a_task(monkeypatch):
    """Catches a loop that knows the toy: a task is a class, and any class will do."""
    monkeypatch.setitem(toy_tasks.TASKS, "reverse", lambda toy, train_problems, seed: Reverse())
    task = toy_tasks.Toy(task="reverse").make_task(train_problems=0, seed=0)
    imitation = dataclasses.replace(METHODS["seq_kd"], off_policy="data")
    losses, _, _ = trained(imitation, task, steps=8)
    assert max(losses[-2:]) < losses[0]  # by far more than four problems differ from four others


@pytest.mark.parametrize("table", ["divergence", "credit", "token_weights", "advantage", "teacher"])
def test_an_unknown_name_is_one_line_that_names_the_flag_and_the_rows(table):
    """Catches a name that falls through to a default and trains something else."""
    with pytest.raises(ValueError, match=f"^--{table}: 'nothing'; allowed: [a-z_, ]+$"):
        sdpo(**{table: "nothing"})
