"""The arithmetic of a model and nothing else, as it is done here: products, attention, draws.

No strict bound: fewer and larger products are some 5 to 10 % faster, and a program that reads the
prompt of a group once in the loss as well multiplies less.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

import minisd
from minisd import GPTConfig


def product_shapes(config: GPTConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of every matrix product of the model; it multiplies their sum per token."""
    C, M, D, Q = config.width, config.mlp_width, config.head_dim, config.n_heads
    attention = [(C, Q * D), (C, config.n_kv_heads * D), (C, config.n_kv_heads * D), (Q * D, C)]
    block = [*attention, (C, M), (C, M), (M, C)]
    return block * config.n_layers + [(C, config.vocab_size)]


def products(config: GPTConfig, tokens: int, backward: bool) -> Callable[[], None]:
    """A function that computes the model's matrix products for so many tokens, and nothing else."""
    operands = [(torch.randn(tokens, i), torch.randn(o, i), torch.randn(tokens, o))
                for i, o in product_shapes(config)]

    def run() -> None:
        for x, weight, gradient in operands:
            F.linear(x, weight)
            if backward:
                gradient @ weight
                gradient.T @ x

    return run


def decoding(config: GPTConfig, rows: int, length: int, dtype: torch.dtype) -> Callable[[], None]:
    """One token of so many texts: products, attention to `length` positions, the draw alone."""
    c, like = config, torch.zeros((), dtype=dtype)
    operands = [(like.new_ones(rows, i), like.new_ones(o, i)) for i, o in product_shapes(c)]
    q = like.new_ones(rows, c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim)
    # Each block has a cache of its own: they do not fit into the processor's.
    kv = like.new_ones(2, c.n_layers, rows, c.n_kv_heads, length, c.head_dim)
    bias, chance = like.new_zeros(rows, 1, 1, length), torch.full((rows,), 0.5)
    logits = torch.zeros(rows, c.vocab_size)

    @torch.no_grad()
    def run() -> None:
        for x, weight in operands:
            F.linear(x, weight)
        for k, v in zip(*kv):
            F.scaled_dot_product_attention(q, k, v, bias)
        minisd.pick_token(logits, chance, 1.0)

    return run


def rest_of_decoding(config: GPTConfig, rows: int, dtype: torch.dtype) -> Callable[[], None]:
    """What a token of so many texts needs besides `decoding`, each operation called once.

    Norms, rotations, what is written into the cache, SwiGLU, sums, embedding, the log-probability
    of what was drawn. Without fused kernels no program spends less.
    """
    c, like = config, torch.zeros((), dtype=dtype)
    x, inner = like.new_ones(rows, 1, c.width), like.new_ones(rows, 1, c.mlp_width)
    q, k = (like.new_ones(rows, heads, 1, c.head_dim) for heads in (c.n_heads, c.n_kv_heads))
    cache, rope = k.repeat(1, 1, 2, 1), like.new_ones(2, 1, c.head_dim)
    weight, table = like.new_ones(c.width), like.new_ones(c.vocab_size, c.width)
    ids, logits = torch.zeros(rows, 1, dtype=torch.long), torch.zeros(rows, c.vocab_size)

    @torch.no_grad()
    def run() -> None:
        F.embedding(ids, table)
        for _ in range(c.n_layers):
            for _ in range(2):
                F.rms_norm(x, (c.width,), weight, c.norm_eps)
                cache[:, :, 1:] = k
                torch.add(x, x)
            minisd.rotate(q, *rope)
            minisd.rotate(k, *rope)
            F.silu(inner) * inner
        F.rms_norm(x, (c.width,), weight, c.norm_eps)
        F.log_softmax(logits, dim=-1).gather(1, ids)

    return run
