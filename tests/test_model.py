"""Laws of the transformer: what it computes, what it must not see, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from minisd import GPT, GPTConfig, KVCache, rope_table, rotate

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])  # B=2, T=7


def norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(vector, position, config):
    """Rotary embedding of one head vector, pair by pair."""
    D = len(vector)
    out = vector.clone()
    for i in range(D // 2):
        frequency = config.rope_theta ** (-2 * i / D)
        if config.rope_frequencies is not None:
            frequency = config.rope_frequencies[i]
        angle = position * frequency
        a, b = vector[i], vector[i + D // 2]
        out[i] = (a * math.cos(angle) - b * math.sin(angle)) * config.rope_factor
        out[i + D // 2] = (b * math.cos(angle) + a * math.sin(angle)) * config.rope_factor
    return out


def linear(layer, x):
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def plain_forward(model, row):
    """Logits (T, V) of one row with loops over positions and heads."""
    c, T = model.config, len(row)
    H, K, D = c.n_heads, c.n_kv_heads, c.head_dim
    x = model.embed_tokens.weight[row]
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp
        y = norm(x, block.input_layernorm.weight, c.norm_eps)
        queries = linear(attention.q_proj, y).view(T, H, D)
        keys = linear(attention.k_proj, y).view(T, K, D)
        values = linear(attention.v_proj, y).view(T, K, D)
        if c.qk_norm:
            queries = norm(queries, attention.q_norm.weight, c.norm_eps)
            keys = norm(keys, attention.k_norm.weight, c.norm_eps)
        mixed = torch.zeros(T, H, D, dtype=x.dtype)
        for t in range(T):
            for h in range(H):
                q = turned(queries[t, h], t, c)
                own = h // (H // K)  # heads share keys in consecutive groups
                seen = [turned(keys[s, own], s, c) for s in range(t + 1)]
                weights = torch.stack([q @ k / math.sqrt(D) for k in seen]).softmax(0)
                mixed[t, h] = weights @ values[: t + 1, own]
        x = x + linear(attention.o_proj, mixed.view(T, -1))
        y = norm(x, block.post_attention_layernorm.weight, c.norm_eps)
        x = x + linear(mlp.down_proj, F.silu(linear(mlp.gate_proj, y)) * linear(mlp.up_proj, y))
    return norm(x, model.norm.weight, c.norm_eps) @ model.lm_head.weight.T


@torch.no_grad()
@pytest.mark.parametrize("config", [
    {"n_kv_heads": 1}, {"n_kv_heads": 2}, {"n_kv_heads": 4}, {"qk_norm": True},
    {"qkv_bias": True, "out_bias": True, "mlp_bias": True}, {"norm_eps": 0.1},
    {"rope_frequencies": (0.9, 0.3, 0.01)}, {"rope_factor": 1.3}, {"rope_theta": 50.0},
], ids=str)
def test_forward_equals_a_plain_loop(make_gpt, config):
    """A wrong scale, key group, rotary pair, norm, bias or mask in the fast forward."""
    model = make_gpt(**config)
    for parameter in model.parameters():
        # Weights of norms start at 1 and biases at 0, where a forgotten one is invisible.
        if parameter.dim() == 1:
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
    cache = KVCache(model, torch.zeros(2, dtype=torch.long), 9)
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
        logits = model(padded, KVCache(model, torch.tensor([3, 0]), 7))
        assert logits.isfinite().all()
        # 1e-4: rotary angles of shifted positions differ by float32 rounding.
        torch.testing.assert_close(logits[0, 3:], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dropped_rows_leave_the_others_as_they_are(make_gpt):
    """Keys kept for one row and the padding mask for another."""
    model = make_gpt()
    rows = torch.cat((IDS, IDS.flip(1)[:1]))  # B=3
    caches = [KVCache(model, torch.tensor([0, 2, 1]), 8) for _ in range(2)]
    for cache in caches:
        model(rows[:, :6], cache)
    keep = torch.tensor([0, 2])
    caches[1].keep(keep)
    whole, kept = model(rows[:, 6:], caches[0]), model(rows[keep, 6:], caches[1])
    torch.testing.assert_close(kept, whole[keep], atol=1e-12, rtol=0)


def test_rotate_turns_one_pair_by_its_angle():
    """Pairs taken as neighbours instead of (i, i + D/2), or a turn the wrong way round."""
    config = GPTConfig(vocab_size=7, head_dim=4, rope_frequencies=(0.0, 0.5))
    # T=2, D=4: pairs (0, 2) by 0, (1, 3) by 0.5
    cos, sin = rope_table(config, 2, torch.device("cpu"), torch.float32)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 1, 2, 4)
    # 2 cos 0.5 - 4 sin 0.5 = -0.162537, 4 cos 0.5 + 2 sin 0.5 = 4.469181
    expected = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, -0.162537, 3.0, 4.469181]])
    torch.testing.assert_close(rotate(x, cos, sin)[0, 0], expected, atol=1e-5, rtol=0)


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


def test_rotary_angles_do_not_depend_on_the_precision_of_the_weights():
    """Positions counted in bfloat16, which cannot tell 257 from 256."""
    config = GPTConfig(vocab_size=7)
    exact, rounded = (rope_table(config, 300, torch.device("cpu"), dtype)
                      for dtype in (torch.float32, torch.bfloat16))
    for a, b in zip(exact, rounded):
        assert torch.equal(a.bfloat16(), b)
    assert not torch.equal(rounded[0][256], rounded[0][257])


def test_untrained_loss_is_log_of_the_vocabulary_size():
    """Initial weights so large that training starts by unlearning."""
    model = GPT(GPTConfig(vocab_size=29), torch.Generator().manual_seed(0))
    ids = torch.randint(29, (5, 13), generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(29)) < 0.1 * math.log(29)  # the margin of a start-up check


def test_tied_embeddings_are_one_weight(make_gpt):
    """A copy in place of a shared weight: it would drift apart in training."""
    tied, untied = make_gpt(tied_embeddings=True), make_gpt(tied_embeddings=False)
    assert tied.lm_head.weight is tied.embed_tokens.weight
    sizes = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert sizes[1] - sizes[0] == 11 * 12


def test_weights_are_named_as_in_published_checkpoints(make_gpt):
    """A renamed module: no checkpoint could be loaded, and none that is saved could be used."""
    model = make_gpt(n_layers=1, qk_norm=True, qkv_bias=True)
    attention, mlp = "layers.0.self_attn", "layers.0.mlp"
    expected = {"embed_tokens.weight", "norm.weight", "lm_head.weight"}
    expected |= {f"layers.0.{n}_layernorm.weight" for n in ("input", "post_attention")}
    expected |= {f"{attention}.{n}_proj.{w}" for n in "qkv" for w in ("weight", "bias")}
    expected |= {f"{attention}.{n}.weight" for n in ("o_proj", "q_norm", "k_norm")}
    expected |= {f"{mlp}.{n}_proj.weight" for n in ("gate", "up", "down")}
    assert set(model.state_dict()) == expected


def test_same_generator_seed_gives_same_weights():
    """Weights drawn from the global generator, so that --seed does not decide the run."""
    config = GPTConfig(vocab_size=7)
    a, b, c = (GPT(config, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.embed_tokens.weight, c.embed_tokens.weight)
