"""Prefix sharing in training: what rows begin with alike is computed once, above all prompts.

In causal attention the state of a token depends on the tokens up to it alone. So rows that begin
alike have equal states there, and products with weights, norms and rotations see every different
beginning once. Values and gradients are those of `minisd.GPT.hidden`, up to rounding. `lab.hf.load`
turns it on; the toy, whose prompts are a few tokens long, does without.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd import GPT, Attention, KVCache, Rope, rope_table, rotate

WORTH = 0.9  # of the tokens: where more of them are different, finding them saves nothing


class SharingGPT(GPT):
    """A GPT that computes the states of equal beginnings once; with a cache it is a GPT."""

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        if cache is not None:
            return super().hidden(ids, cache)
        tokens = Tokens(first_alike(ids))
        if len(tokens.once) > WORTH * ids.numel():
            return super().hidden(ids)
        x, T = self.embed_tokens(ids.flatten()[tokens.once])[None], ids.shape[1]  # (1, N, C)
        tables = rope_table(self.config, max(256, 1 << T.bit_length()), x.device, x.dtype)
        rope = SharedRope(tokens, *(table[tokens.once % T] for table in tables))
        for layer, block in enumerate(self.layers):
            x = block(x, rope, None, layer)
        return self.norm(x)[0][tokens.at]


def share_prefixes(model: GPT) -> GPT:
    """The model, which from now on computes equal beginnings once."""
    model.__class__ = SharingGPT
    for block in model.layers:
        block.self_attn.__class__ = SharingAttention
    return model


def first_alike(ids: Tensor) -> Tensor:
    """Where in the flattened ids (B, T) a row that is alike up to this token stands first, (B, T).

    Two rows [5 6 7] and [5 6 8] give [0 1 2] and [0 1 5].
    """
    T, pairs = ids.shape[1], ids[:, None] == ids[None]  # (B, B, T): this row, another, where
    alike = pairs.cumprod(-1, dtype=torch.uint8)  # up to where: B * B * T bytes
    return alike.argmax(1) * T + torch.arange(T, device=ids.device)


class Tokens:
    """The N tokens of rows (B, T) that differ in their beginnings, and how attention takes them.

    Attention needs whole rows. Up to `split` it is computed for a few rows, the leaders, which hold
    all that there is; behind it for all rows, whether or not some of them are still alike.
    """

    def __init__(self, first: Tensor):
        (B, T), device = first.shape, first.device
        self.once = first.unique()  # (N,), places in the flattened rows
        self.at = torch.searchsorted(self.once, first)  # (B, T), which of the N stands there
        own = first == torch.arange(B * T, device=device).view(B, T)
        leads = F.pad(own.cumsum(1) > 0, (1, 0))  # (B, T + 1): by split
        places = torch.arange(T + 1, device=device)
        work = leads.sum(0) * places**2 + B * (T - places) * T  # pairs of queries and keys
        self.split = s = int(work.argmin())
        self.leaders = leads[:, s].nonzero()[:, 0]  # (L,)
        # Where the N stand among the results, which are those of the leaders and then of all rows.
        place, L = torch.empty_like(first), len(self.leaders)
        place[self.leaders, :s] = torch.arange(L * s, device=device).view(L, s)
        place[:, s:] = L * s + torch.arange(B * (T - s), device=device).view(B, T - s)
        self.results = place.flatten()[self.once]
        self.future = torch.ones(T - s, T, dtype=torch.bool, device=device).triu(1 + s)


class SharedRope:
    """A Rope with a row for each of N tokens, which tells attention where in the rows they stand.

    NOTE: neither a tuple nor a dataclass: fully_shard would make a new one, and lose the tokens.
    """

    def __init__(self, tokens: Tokens, cos: Tensor, sin: Tensor):  # (N, D)
        self.tokens, self.cos, self.sin = tokens, cos, sin

    def __iter__(self):
        return iter((self.cos, self.sin))


class SharingAttention(Attention):
    """Attention within rows whose different tokens, and only they, are given: x (1, N, C)."""

    def forward(self, x: Tensor, rope: Rope, cache: KVCache | None, layer: int) -> Tensor:
        if not isinstance(rope, SharedRope):
            return super().forward(x, rope, cache, layer)
        tokens, s, D = rope.tokens, rope.tokens.split, self.head_dim
        q, k, v = (f(x)[0].unflatten(-1, (-1, D)).transpose(0, 1)  # (H, N, D)
                   for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope)
        H, Hkv, leading, late = len(q), len(k), tokens.at[tokens.leaders, :s], tokens.at[:, s:]
        early = F.scaled_dot_product_attention(
            *(in_rows(y, leading) for y in (q, k, v)), is_causal=True, enable_gqa=len(q) > len(k))

        # Query heads of one key head become its rows: faster, and no copies of keys and values.
        queries = in_rows(q, late).reshape(len(late), Hkv, -1, D)  # (B, Hkv, H / Hkv * (T - s), D)
        bias = queries.new_zeros(tokens.future.shape)
        bias = bias.masked_fill(tokens.future, torch.finfo(bias.dtype).min).repeat(H // Hkv, 1)
        y = F.scaled_dot_product_attention(
            queries, in_rows(k, tokens.at), in_rows(v, tokens.at), bias)
        y = y.reshape(len(late), H, -1, D)  # (B, H, T - s, D)
        y = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in (early, y)])  # (..., H, D)
        return self.o_proj(y.index_select(0, tokens.results).flatten(1)[None])


def in_rows(x: Tensor, at: Tensor) -> Tensor:
    """Rows (B, H, T, D) of the tokens x (H, N, D) at indices (B, T)."""
    return x.index_select(1, at.flatten()).unflatten(1, at.shape).transpose(0, 1)
