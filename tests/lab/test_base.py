"""The optimiser of the base models, against the library's."""

import torch

from lab.base import MUON, Muon, orthogonal


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
