"""Laws of the transformer: what it computes, what it must not see, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from minisd import GPT, GPTConfig, KVCache, rotate

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])  # B=2, T=7


def norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(vector, position, theta):
    """Rotary embedding of one head vector, pair by pair."""
    D = len(vector)
    out = vector.clone()
    for i in range(D // 2):
        angle = position * theta ** (-2 * i / D)
        a, b = vector[i], vector[i + D // 2]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + D // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def plain_forward(model, row):
    """Logits (T, V) of one row with loops over positions and heads."""
    c, T = model.config, len(row)
    H, K, D = c.n_heads, c.n_kv_heads, c.head_dim
    x = model.embedding.weight[row]
    for block in model.blocks:
        y = norm(x, block.attention_norm.weight, c.norm_eps) @ block.attention.qkv.weight.T
        y = y.view(T, H + 2 * K, D)
        mixed = torch.zeros(T, H, D, dtype=x.dtype)
        for t in range(T):
            for h in range(H):
                q = turned(y[t, h], t, c.rope_theta)
                own = h // (H // K)  # heads share keys in consecutive groups
                keys = [turned(y[s, H + own], s, c.rope_theta) for s in range(t + 1)]
                weights = torch.stack([q @ k / math.sqrt(D) for k in keys]).softmax(0)
                mixed[t, h] = weights @ y[: t + 1, H + K + own]
        x = x + mixed.view(T, -1) @ block.attention.out.weight.T
        gate, up = block.mlp.gate_up.weight.chunk(2)
        y = norm(x, block.mlp_norm.weight, c.norm_eps)
        x = x + (F.silu(y @ gate.T) * (y @ up.T)) @ block.mlp.down.weight.T
    return norm(x, model.norm.weight, c.norm_eps) @ model.head.weight.T


@torch.no_grad()
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_forward_equals_a_plain_loop(make_gpt, n_kv_heads):
    """A wrong scale, key group, rotary pair, norm or mask in the fast forward."""
    model = make_gpt(n_kv_heads=n_kv_heads)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norm weights start at 1, where a forgotten one is invisible
            parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(5))
    plain = torch.stack([plain_forward(model, row) for row in IDS])
    # 1e-5: the rotary table is made in float32, the loop's angles in float64.
    torch.testing.assert_close(model(IDS), plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_future_tokens_do_not_change_the_past(make_gpt):
    """A causal mask that is off by one or missing."""
    model = make_gpt()
    logits = model(IDS)
    for t in range(1, IDS.shape[1]):
        changed = IDS.clone()
        changed[:, t:] = (changed[:, t:] + 4) % 11
        torch.testing.assert_close(model(changed)[:, :t], logits[:, :t], atol=1e-12, rtol=0)
        assert (model(changed)[:, t] - logits[:, t]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(7,), (1,) * 7, (3, 1, 3), (2, 5)])
def test_cached_pieces_equal_the_whole(make_gpt, pieces):
    """Wrong positions or a wrong mask when the cache already holds tokens."""
    model = make_gpt()
    cache = KVCache(model.config, torch.zeros(2, dtype=torch.long), 9, model.embedding.weight)
    logits = torch.cat([model(piece, cache) for piece in IDS.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(logits, model(IDS), atol=1e-12, rtol=0)
    assert cache.length == 7


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_left_padding_is_never_seen_through_the_cache(make_gpt, dtype):
    """A row's states that depend on how much padding, or what token, stands before it."""
    model = make_gpt(dtype=dtype)
    expected = model(IDS[:, :4])[0]
    for pad_id in (0, 10):
        padded = torch.tensor([[pad_id] * 3 + IDS[0, :4].tolist(), IDS[1].tolist()])
        cache = KVCache(model.config, torch.tensor([3, 0]), 7, model.embedding.weight)
        logits = model(padded, cache)
        assert logits.isfinite().all()
        # 1e-4: rotary angles of shifted positions differ by float32 rounding.
        torch.testing.assert_close(logits[0, 3:], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dropped_rows_leave_the_others_as_they_are(make_gpt):
    """Keys kept for one row and the padding mask for another."""
    model = make_gpt()
    rows = torch.cat((IDS, IDS.flip(1)[:1]))  # B=3
    pad_count = torch.tensor([0, 2, 1])
    caches = [KVCache(model.config, pad_count, 8, model.embedding.weight) for _ in range(2)]
    for cache in caches:
        model(rows[:, :6], cache)
    keep = torch.tensor([0, 2])
    caches[1].keep(keep)
    whole, kept = model(rows[:, 6:], caches[0]), model(rows[keep, 6:], caches[1])
    torch.testing.assert_close(kept, whole[keep], atol=1e-12, rtol=0)


def test_rotate_turns_one_pair_by_its_angle():
    """Pairs taken as neighbours instead of (i, i + D/2), or a turn the wrong way round."""
    angles = torch.tensor([[0.0, 0.5, 0.0, 0.5]])  # T=1, D=4: pairs (0, 2) by 0, (1, 3) by 0.5
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    # 2 cos 0.5 - 4 sin 0.5 = -0.162537, 4 cos 0.5 + 2 sin 0.5 = 4.469181
    expected = torch.tensor([1.0, -0.162537, 3.0, 4.469181])
    signed = angles.sin() * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    torch.testing.assert_close(
        rotate(x, angles.cos(), signed)[0, 0, 0], expected, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_positions_beyond_the_first_rotary_table_work(make_gpt):
    """A table that is not grown, or grown with other angles."""
    model = make_gpt()
    ids = torch.arange(300)[None] % 11
    short = model(ids[:, :5])
    long = model(ids)
    torch.testing.assert_close(long[:, :5], short, atol=1e-12, rtol=0)
    torch.testing.assert_close(make_gpt()(ids), long, atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_used_model_can_change_its_precision(make_gpt):
    """A rotary table kept in the old dtype: an error in bfloat16, lost digits in float64."""
    model = make_gpt(dtype=torch.float32)
    before = model(IDS)
    after = model.bfloat16()(IDS)
    assert after.dtype == torch.bfloat16
    # 0.1: bfloat16 has 8 bits, logits here reach 5.
    assert (after.float() - before).abs().mean() < 0.1
    assert model.double()(IDS).dtype == torch.float64


def test_untrained_loss_is_log_of_the_vocabulary_size():
    """Initial weights so large that training starts by unlearning."""
    model = GPT(GPTConfig(vocab_size=29), torch.Generator().manual_seed(0))
    ids = torch.randint(29, (5, 13), generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(29)) < 0.1 * math.log(29)  # the margin of a start-up check


def test_tied_embeddings_are_one_weight(make_gpt):
    """A copy in place of a shared weight: it would drift apart in training."""
    tied, untied = make_gpt(tied_embeddings=True), make_gpt(tied_embeddings=False)
    assert tied.head.weight is tied.embedding.weight
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    assert count(untied) - count(tied) == 11 * 12


def test_same_generator_seed_gives_same_weights():
    """Weights drawn from the global generator, so that --seed does not decide the run."""
    config = GPTConfig(vocab_size=7)
    a, b, c = (GPT(config, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.embedding.weight, c.embedding.weight)


@pytest.mark.parametrize(
    "change, named",
    [({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads: 3"), ({"head_dim": 5}, "head_dim: 5")],
)
def test_impossible_shapes_are_refused_by_name(change, named):
    """A shape error deep inside the first forward instead of a word about the setting."""
    with pytest.raises(ValueError, match=named):
        GPTConfig(vocab_size=7, **change)
