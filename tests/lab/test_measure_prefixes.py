"""Laws of the accuracy of a teacher from prefixes: which prefixes, and which of them are sound."""

from types import SimpleNamespace

import pytest
import torch

from lab.measures import prefixes
from lab.measures.probe import Probe, Settings
from toy_tasks import Example, Problem, Toy, ToyTask

TINY = Settings(toy=Toy(world="operators=+,max_operations=4"), train_problems=0)
PROBLEM = Problem.parse("3+7+4+1")
# 29 tokens, cut at 7, 14 and 21, the wrong one is number 6; 20, cut at 5, 10 and 15, and number 10.
CHECKED = "3+7+4=9; wait 3+7=0; 0+4=4; 4+1=5; answer 5"
SLIP = "3+7=0; 0+4=5; 5+1=6; answer 6"
OWN = "answer 5"


@pytest.fixture
def asked(monkeypatch) -> list:
    """What is continued: (context, prefix) by call. The student writes CHECKED and SLIP."""
    calls = []

    def go_on(probe, model, examples, contexts=None, prefixes=None, **options):
        if prefixes is None:
            return [OWN] * len(examples), torch.zeros(len(examples))
        calls.append([(c, ToyTask.decode(p)) for c, p in zip(contexts, prefixes)])
        return [], torch.tensor([float(ToyTask.decode(p) != "") for p in prefixes])

    def draw(settings, name, problems, repeats=1):
        probe = Probe.of(settings, name, SimpleNamespace())
        probe.examples = [Example(PROBLEM)] * 2
        probe.texts, probe.rewards = [CHECKED, SLIP], torch.ones(2)
        return probe

    monkeypatch.setattr(Probe, "go_on", go_on)
    monkeypatch.setattr(Probe, "draw", draw)
    monkeypatch.setattr(prefixes, "long_problems", lambda *_: [])
    return calls


def test_prefixes_are_sound_up_to_the_first_wrong_token(asked):
    """Catches a wrong glance that counts as right because it is checked, an error that counts a
    token too early or too late, and own prefixes of other problems than the student's."""
    found = prefixes.measure_prefixes(TINY)
    unaided, teacher, own, sound, own_sound = asked
    assert [c for c, _ in unaided] == [""] * 8 and all(c.startswith("sol") for c, _ in teacher)
    steps = ["", "3+7=0", "3+7=0; 0+4=", "3+7=0; 0+4=5; 5+1"]
    glance = ["", "3+7+4=9", "3+7+4=9; wait 3+7=0", "3+7+4=9; wait 3+7=0; 0+4=4; "]
    assert [text for _, text in teacher] == glance + steps == [text for _, text in unaided]
    assert [text for _, text in own] == ["", "", "answer ", "answer "] * 2
    assert [text for _, text in sound] == ["", *steps[:3]]
    assert [text for _, text in own_sound] == ["", "", "", "answer "]
    assert found["sound_counts"] == [2, 1, 1, 0]
    assert found["teacher_student_prefix"] == [0, 1, 1, 1]
    assert found["teacher_student_prefix_sound"] == [0, 1, 1, None]


def test_shares_are_counted_in_tokens(asked):
    """Catches shares of characters: a marker counts as five of them."""
    probe = Probe.of(TINY, "x", SimpleNamespace())
    assert prefixes.cuts_of(probe, [CHECKED, OWN]) == [[0, 7, 14, 21], [0, 0, 1, 1]]
