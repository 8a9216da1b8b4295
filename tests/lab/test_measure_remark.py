"""Laws of the remark that a teacher expects after an answer."""

import json

import pytest
import torch
from tiny import build_gpt

import toy_tasks
from lab.measures import remark
from lab.measures.probe import Probe, Settings
from toy_tasks import Example, Problem, Toy, encode

TINY = Settings(toy=Toy(world="operators=+,max_operations=3"), eval_problems=3, train_problems=4)
PROBLEM = Problem.parse("3+4+2")
TEXTS = ["answer 9", "3+4=7; 7+2=8; answer 8 demo", "wait 3+4=7"]


@pytest.fixture
def student(monkeypatch):
    """A model, and a probe that finds these completions of its own."""
    model = build_gpt(dtype=torch.float32, vocab_size=len(toy_tasks.VOCABULARY))

    def draw(settings, name, problems) -> Probe:
        task, generator = settings.task(), torch.Generator()
        examples = [Example(PROBLEM)] * len(TEXTS)
        rewards = torch.tensor([task.reward(t, e) for t, e in zip(TEXTS, examples)])
        return Probe(settings, task, model, None, generator, examples, TEXTS, rewards)

    monkeypatch.setattr(Probe, "draw", draw)
    return model


def test_the_probability_is_that_right_after_the_answer(student):
    """Catches wrong and right exchanged, a remark that stands already, a missing solution."""
    found = remark.measure_remark(TINY)
    assert found["answers"] == {"wrong": 1, "right": 1}
    for name, context in (("without", ""), ("with the solution", "solution 3+4=7+2=9 | ")):
        for kind, text in (("right", "answer 9"), ("wrong", "3+4=7; 7+2=8; answer 8")):
            ids = encode(f"{context}3+4+2 = {text}")
            p = student(torch.tensor([ids]))[0, -1].softmax(-1)[toy_tasks.TOKEN_ID[" demo"]]
            assert found[name][kind] == pytest.approx(p.item(), abs=1e-6)


def test_a_model_without_answers_has_no_number(student, monkeypatch):
    """Catches a crash where an untrained model never answers."""
    monkeypatch.setattr(f"{__name__}.TEXTS", ["wait 3+4=7"])
    assert json.dumps(remark.measure_remark(TINY)) == "{}"
