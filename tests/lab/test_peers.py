"""Laws of the comparisons with other libraries: the same work, and each its own time."""

import importlib.util

import pytest
import torch
from tiny import build_gpt

from lab import bridge, hf, peers, timing
from lab.peers import NOT_INSTALLED, TRL, StepSizes, Writing
from minisd import Prompts

pytest.importorskip("transformers")
LEAST = StepSizes(batch_size=4, group_size=2, max_new_tokens=3)


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers") / "model"
    peers.small_checkpoint(folder)
    return folder


def test_the_small_checkpoint_reads_its_data_in_whole_words(init):
    """Catches a tokenizer of bytes: prompts would be several times as long as those of others."""
    model, tokenizer = hf.load(init)
    text = peers.DATA.read_text().splitlines()[0]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < len(text) / 2
    assert sum(p.numel() for p in model.parameters()) < 200_000


@pytest.mark.filterwarnings("ignore")  # of transformers, on names that will change
@pytest.mark.parametrize("more", [{}, {"cache_implementation": "static"}])
def test_both_write_as_many_tokens_at_temperature_0(more):
    """Catches other weights, padding that is read, or tokens counted behind the end."""
    model = build_gpt(2, torch.float32)
    prompts = Prompts.of([[2, 3, 4, 5], [6], [7, 8]], 0)
    for end_id in (None, 3):
        writing = Writing(prompts, 7, end_id)
        theirs = writing.by_generate(peers.in_transformers(model), do_sample=False, **more)
        ours = writing.by_minisd(model)
        assert theirs() <= 21 and ours() <= 21
        if end_id is None:
            assert theirs() == ours() == 21


def test_speed_is_tokens_over_seconds(monkeypatch):
    """Catches a speed by the tokens of another writer, or of the call that is not timed."""
    tokens = {"a": iter([99, 10, 20, 30]), "b": iter([99, 5, 5, 5])}
    monkeypatch.setattr(timing, "clock", lambda device: iter_clock)
    ticks = iter(range(1000))

    def iter_clock():
        return 2.0 * next(ticks)

    found = peers.speeds({name: lambda n=n: next(n) for name, n in tokens.items()}, 3)
    assert found == {"a": 10.0, "b": 2.5}


def test_without_trl_the_row_says_so(init, monkeypatch):
    """Catches a row that is missing, a failure without TRL, and a change that is not measured."""
    turned = []
    monkeypatch.setattr(peers, "has_trl", lambda: False)
    change = {"other": lambda model: turned.append(model) or model}
    found = peers.step_seconds(init, peers.DATA, LEAST, 1, change=change)
    assert list(found) == ["minisd", "other"] and min(found.values()) > 0 and len(turned) == 1
    lines = peers.steps_table({"minisd": 0.01, "other": 0.025}).splitlines()
    assert lines[2:] == ["| minisd | 10 | 1.0 |", "| other | 25 | 2.5 |",
                         f"| {TRL} | {NOT_INSTALLED} |  |"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not peers.has_trl(), reason="TRL is not installed")
def test_trl_makes_the_same_steps_in_turns(init, monkeypatch):
    """Catches another batch, a step that is not TRL's own, or ours in its time."""
    order, real = [], peers.bridge_check.imported

    def imported(path):
        module = real(path)
        written, make = module.reward, module.make_trainer
        module.reward = lambda completion_ids, **more: order.append(
            len(completion_ids)) or written(completion_ids, **more)
        module.make_trainer = lambda **changes: make(**changes)
        return module

    monkeypatch.setattr(peers.bridge_check, "imported", imported)
    step = peers.step_of

    def counted(*arguments):
        run = step(*arguments)
        return lambda: (order.append("ours"), run())

    monkeypatch.setattr(peers, "step_of", counted)
    found = peers.step_seconds(init, peers.DATA, LEAST, 2)
    assert set(found) == {TRL, "minisd"} and min(found.values()) > 0
    assert order == [4, "ours"] * 3  # the first step is not counted


def test_trl_is_asked_for_both_of_its_packages(monkeypatch):
    """Catches a TRL without datasets, which the script needs."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "trl" or None)
    assert not peers.has_trl()
    assert bridge.ELSEWHERE["compile"]
