"""Laws of --activation_checkpointing: less is kept, and the gradient is the same."""

import dataclasses
import random

import torch
from tiny import weights_of

import minisd
import toy_tasks
from lab.distributed import checkpoint_blocks
from minisd import GPT, GPTConfig, KVCache, Method, Sizes, Teacher

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])  # B=2, T=7


def test_checkpointed_blocks_keep_less_and_have_the_same_gradient(make_gpt):
    """Blocks that are computed again with other inputs, or a flag that does nothing."""
    model = make_gpt(n_layers=5)
    gradients, kept = [], []
    for checkpointed in (False, True):
        sizes = []
        if checkpointed:
            checkpoint_blocks(model)

        def keep(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = model(IDS).square().mean()
        kept.append(sum(sizes))
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert kept[1] < kept[0] / 4


@torch.no_grad()
def test_checkpointed_blocks_work_with_a_cache(make_gpt):
    """A block that is run again over a cache in which its keys already stand."""
    model = make_gpt()
    expected = model(IDS)
    checkpoint_blocks(model)
    with torch.enable_grad():
        cache = KVCache(model, torch.zeros(2, dtype=torch.long), 7)
        found = torch.cat([model(piece, cache) for piece in IDS.split(3, dim=1)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_step_of_a_live_teacher_is_the_same_with_checkpointed_blocks():
    """Blocks of the teacher's pass, without gradient, that replace those of the student's."""
    shape = GPTConfig(len(toy_tasks.VOCABULARY), width=16, n_heads=2, n_kv_heads=2, head_dim=8,
                      mlp_width=20, head_std=0.5)
    method, weights = Method(teacher="live"), []
    task = toy_tasks.ToyTask(toy_tasks.World(max_operations=2), pool_size=4)
    for checkpointed in (False, True):
        student = GPT(shape, torch.Generator().manual_seed(0)).double()
        if checkpointed:
            checkpoint_blocks(student)
        teacher = Teacher(method, student)
        batch = minisd.rollout(method, task, student, teacher, random.Random(0),
                               torch.Generator().manual_seed(0), Sizes(2, 3, max_new_tokens=6))
        batch.sizes = dataclasses.replace(batch.sizes, micro_batch=4, chunk_tokens=5)
        before = weights_of(student)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        minisd.step(method, student, teacher, optimizer, batch)
        assert not torch.equal(weights_of(student), before)
        weights.append(weights_of(student))
    torch.testing.assert_close(*weights, atol=0, rtol=0)
