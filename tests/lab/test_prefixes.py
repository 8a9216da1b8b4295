"""Laws of prefix sharing: every beginning is computed once; states and gradients are the same."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from tiny import build_gpt, weights_of

import minisd
import toy_tasks
from lab.distributed import checkpoint_blocks, empty_gpt
from lab.prefixes import SharedRope, SharingGPT, Tokens, first_alike, share_prefixes
from minisd import GPT, GPTConfig, KVCache, Method, Sizes, Teacher

# What a part of a batch may hold: groups with equal prompts, one of them short; the same first
# token (as of a template) before everything; rows that are wholly alike; one row; one token.
ROWS = {
    "groups": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7, 8], [1, 2, 3, 4, 7, 9], [5, 6, 7, 1, 2, 3],
               [5, 6, 7, 2, 2, 3], [5, 6, 7, 2, 2, 4]],
    "template": [[1, 2, 2, 3, 3, 4], [1, 2, 3, 3, 3, 4], [1, 2, 4, 3, 3, 4], [1, 2, 4, 3, 3, 5]],
    "alike": [[1, 2, 3]] * 4,
    "later": [[1, 2, 3, 4], [1, 2, 3, 4], [2, 2, 3, 4], [1, 2, 3, 5]],
    "one token": [[3], [3], [3]],
}
SHAPES = {"plain": {"n_kv_heads": 4}, "grouped": {}, "one key head": {"n_kv_heads": 1},
          "qk_norm and biases": {"qk_norm": True, "qkv_bias": True, "out_bias": True}}


def test_first_alike_by_hand():
    """Tokens that are equal though what stands before them is not."""
    found = first_alike(torch.tensor([[5, 6, 7], [5, 6, 8], [4, 6, 7], [5, 6, 8]]))
    assert found.tolist() == [[0, 1, 2], [0, 1, 5], [6, 7, 8], [0, 1, 5]]


def test_attention_is_split_where_the_least_is_computed():
    """All rows attending to a prompt that one of them stands for, or a template taken for it."""
    prompts = [[1, 1, 1, *[x] * 20] for x in (2, 3)]
    ids = torch.tensor([[*p, i, i] for p in prompts for i in range(4, 10)])
    tokens = Tokens(first_alike(ids))
    assert (tokens.split, tokens.leaders.tolist()) == (23, [0, 6])
    assert len(tokens.once) == 3 + 2 * 20 + 12 * 2


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_states_and_gradients_are_those_of_a_gpt(rows, shape, checkpointed):
    """Tokens in wrong rows, at wrong positions, or that see what comes later."""
    plain, ids = build_gpt(**shape), torch.tensor(rows)
    shared = share_prefixes(copy.deepcopy(plain))
    if checkpointed:
        checkpoint_blocks(shared)
    states, gradients = [], []
    for model in (plain, shared):
        x = model.hidden(ids)
        weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        states.append(x)
        wanted = [p for name, p in model.named_parameters() if name != "lm_head.weight"]
        gradients += [torch.autograd.grad((x * weight).sum(), wanted)]
    torch.testing.assert_close(states[0], states[1], atol=1e-12, rtol=0)
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_products_see_every_beginning_once(rows):
    """Sharing that computes as much as before."""
    model, ids, seen = share_prefixes(build_gpt()), torch.tensor(rows), []
    model.layers[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:2]))
    model.hidden(ids)
    different = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    assert seen == [(1, len(different))]


def test_rows_that_share_nothing_are_left_to_the_gpt():
    """Gathering that costs and saves nothing; other last bits than before."""
    plain, ids = build_gpt(dtype=torch.float32), torch.tensor([[1, 2, 3, 4], [2, 2, 3, 4]])
    shared = share_prefixes(copy.deepcopy(plain))
    shared.layers[0].register_forward_pre_hook(
        lambda _, given: pytest.fail("shared") if isinstance(given[1], SharedRope) else None)
    assert torch.equal(plain.hidden(ids), shared.hidden(ids))


@torch.no_grad()
def test_sampling_is_that_of_a_gpt():
    """A cache whose rows are taken for tokens that stand once."""
    plain, ids = build_gpt(), torch.tensor(ROWS["groups"])
    shared, padding = share_prefixes(copy.deepcopy(plain)), torch.zeros(6, dtype=torch.long)
    found = [m(ids, KVCache(m, padding, 8)) for m in (plain, shared)]
    assert torch.equal(*found)


def test_copies_share_too():
    """A teacher, or the model of a second process, that reads every prompt again."""
    model = share_prefixes(build_gpt())
    checkpoint_blocks(model)
    for twin in (copy.deepcopy(model), empty_gpt(model)):
        assert isinstance(twin, SharingGPT)
        seen = []
        twin.layers[0].register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[1]))
        twin.hidden(torch.tensor(ROWS["groups"]))
        assert isinstance(seen[0], SharedRope)


@pytest.mark.parametrize("micro_batch", [0, 3, 8])
def test_a_step_moves_the_weights_as_without_sharing(micro_batch):
    """Padding, contexts or parts of a batch that sharing mixes up; a teacher with other prompts."""
    shape = GPTConfig(len(toy_tasks.VOCABULARY), width=16, n_heads=2, n_kv_heads=1, head_dim=8,
                      mlp_width=20, head_std=0.5)
    task = toy_tasks.ToyTask(toy_tasks.World(max_operations=2), pool_size=4)
    method = replace(Method(teacher="ema"), context="solution")
    ways = [lambda m: m, share_prefixes, lambda m: checkpoint_blocks(share_prefixes(m)) or m]
    sizes, moved = Sizes(3, 4, 8, micro_batch=micro_batch, chunk_tokens=8), []
    for way in ways:
        student = way(GPT(shape, torch.Generator().manual_seed(0)).double())
        teacher = Teacher(method, student)
        generator = torch.Generator().manual_seed(0)
        batch = minisd.rollout(
            method, task, student, teacher, random.Random(0), generator, sizes)
        minisd.step(method, student, teacher, torch.optim.SGD(student.parameters(), 1.0), batch)
        moved.append(weights_of(student))
    for weights in moved[1:]:
        torch.testing.assert_close(weights, moved[0], atol=1e-10, rtol=0)
