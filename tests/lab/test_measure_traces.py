"""Laws of what a model writes with a context in view."""

import torch
from tiny import build_gpt

from lab.measures import traces
from lab.measures.probe import Probe, Settings
from toy_tasks import VOCABULARY, Example, Problem, Toy, final_answer

TINY = Settings(
    toy=Toy(world="operators=+,max_operations=2"), eval_problems=3, max_new_tokens=8,
    train_problems=4,
)
PROBLEM = Problem.parse("3+4+2")


def test_right_and_undoubted_are_asked_of_the_same_completion():
    """Catches a product of two means, a marker in the middle, and a wrong one that has none."""
    probe, example = Probe(TINY, TINY.task(), *[None] * 5, torch.zeros(0)), Example(PROBLEM)
    texts = {
        "3+4+2=9; answer 9": 1, "answer 8": 0, "wait 3+4=7; 7+2=9; answer 9": 0,
        "3+4+2=5; wait 3+4=7; 7+2=9; answer 9": 0,
    }
    for text, wanted in texts.items():
        assert traces.traits(probe, text, example)["right_undoubted_frac"] == wanted
    assert traces.traits(probe, "3+4+2=9; answer 9", example)["completion_tokens"] == 10


def test_each_context_is_shown_to_the_model_that_writes(monkeypatch):
    """Catches a context that is not shown, a sibling that is wrong, and a changed answer."""
    model = build_gpt(vocab_size=len(VOCABULARY), dtype=torch.float32)
    monkeypatch.setattr(Settings, "base", lambda settings: model)
    go_on, shown = Probe.go_on, []

    def noted(probe, model, examples, contexts=None):
        shown.append((examples, contexts))
        return go_on(probe, model, examples, contexts)

    monkeypatch.setattr(Probe, "go_on", noted)
    found = traces.measure_traces(TINY)
    begins = ["hint ", "answer ", "solution ", "peer ", "other ", "solution "]
    assert "none" in found and shown[0][1] is None
    for (examples, contexts), begin in zip(shown[1:], begins, strict=True):
        assert all(c.startswith(begin) and c.endswith(" | ") for c in contexts)
        if begin in ("answer ", "peer "):
            answers = [final_answer(c.removesuffix(" | ")) for c in contexts]
            assert answers == [e.answer for e in examples]
    assert len(found) == len(shown)
    assert all(means["completion_tokens"] <= 8 for means in found.values())
