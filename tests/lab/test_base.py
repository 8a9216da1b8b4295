"""What base models read, and their optimiser against the library's."""

import random

import pytest
import torch

import toy_tasks
from lab import base
from lab.base import MUON, Muon, orthogonal
from minisd import GPT, GPTConfig
from toy_tasks import World


@pytest.mark.parametrize("draw", [toy_tasks.draw_practice, toy_tasks.draw_document])
def test_of_a_document_the_completion_and_its_end_are_learnt(draw):
    """Catches a problem that is learnt as well, or an end that is not."""
    pairs = []

    def recorded(rng, world):
        pairs.append(draw(rng, world))
        return pairs[-1]

    batches, found = base.pretrain_batches(recorded, World(), random.Random(0)), []
    for ids in (next(batches) for _ in range(4)):
        learnt = base.written(ids)
        assert ((learnt == ids) | (learnt == toy_tasks.PAD_ID)).all()
        found += [[i for i in row if i != toy_tasks.PAD_ID] for row in learnt.tolist()]
    expected = [[*toy_tasks.encode(completion), toy_tasks.END_ID] for _, completion in pairs]
    assert len(found) > 40 and all(row in expected for row in found)


@pytest.mark.parametrize("share, practice", [(0.0, 0), (0.4, 4), (1.0, 10)])
def test_pretraining_begins_with_its_share_of_practice(share, practice, monkeypatch):
    """Catches practice that cannot be switched off, or that comes last."""
    read = []

    def batches(draw, world, rng):
        while True:
            read.append(draw)
            yield torch.tensor([toy_tasks.encode("1+2 = answer 3")])

    monkeypatch.setattr(base, "pretrain_batches", batches)
    shape = GPTConfig(len(toy_tasks.VOCABULARY), n_layers=1, width=4, head_dim=2)
    base.pretrain(GPT(shape), World(drills_first=share), steps=10, seed=0)
    later = [toy_tasks.draw_document] * (10 - practice)
    assert read == [toy_tasks.draw_practice] * practice + later


def test_muon_is_the_librarys_but_for_its_rounding():
    """Catches a wrong scale, momentum or decay; bfloat16 keeps 8 bits, five steps add up."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=generator) for s in ((6, 6), (6, 6), (9, 4), (4, 9))]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimizers = Muon(ours, **MUON), torch.optim.Muon(theirs, **MUON)
    for _ in range(4):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for x, p, q in zip(start, ours, theirs):
        moved = (q - x).norm()
        assert (p - q).norm() <= 0.03 * moved


def test_orthogonal_brings_singular_values_near_one():
    """Catches a transposed product: a tall matrix would keep its singular values."""
    x = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(x))
    assert ((values > 0.6) & (values < 1.3)).all()


def test_what_a_killed_process_left_goes_with_the_next_base(tmp_path, monkeypatch):
    """Catches a folder that fills with halves of base models, and a neighbour's file removed."""
    monkeypatch.setattr(base, "pretrain", lambda *_: None)
    how = {"steps": 1, "cache_dir": str(tmp_path), "here_made": True, "device": "cpu"}
    base.base_model(World(), 0, **how)
    (made,) = tmp_path.glob("*.pt")
    made.unlink()
    left, other = tmp_path / f".{made.name}.123", tmp_path / ".another.pt.123"
    left.touch(), other.touch()
    base.base_model(World(), 0, **how)
    assert made.exists() and other.exists() and not left.exists()
