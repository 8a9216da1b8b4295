"""Sampling whose decoding step is compiled, and on a GPU one CUDA graph (--compile).

A graph repeats the same kernels on the same memory. So nothing in a step may have another shape
than in the last one: the cache has its full capacity from the start, the position is a tensor, and
rows that have ended go on until all have. What is computed is that of `minisd.GPT.hidden`; the sums
of the attention run over empty positions as well, whose weight is 0.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lab import distributed
from lab.prefixes import SharingGPT
from minisd import GPT, Block, KVCache, Rope, rope_table

BACKEND = "inductor"  # of torch.compile; tests take eager, which compiles nothing
# Shapes and precisions that one process may meet; beyond them PyTorch refuses to go on.
MOST_COMPILATIONS = 64


class CompiledGPT(GPT):
    """A GPT that reads prompts as ever and decodes by compiled blocks; `compile_sampling` makes it.

    It holds nothing else: copies, saved weights and training are those of a GPT.
    """

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        if cache is None:
            return super().hidden(ids)
        if cache.length > 0:
            return cache.decode(ids)
        model = decoding_twin(self, cache.keys.dtype)
        states = model.hidden(ids, cache)
        cache.__class__, cache.model = FixedCache, model
        return states


class CompiledSharingGPT(CompiledGPT, SharingGPT):
    """The same of a loaded checkpoint, which goes on to share prefixes in training."""


@dataclass
class LayerCache:
    """What a block sees of a FixedCache: all S positions; the bias hides those not yet written."""

    keys: Tensor  # (B, Hkv, S, D)
    values: Tensor  # (B, Hkv, S, D)
    key_bias: Tensor  # (B, 1, 1, S), of all blocks
    position: Tensor  # (1,), of all blocks

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[:, :, self.position] = keys.to(self.keys.dtype)
        self.values[:, :, self.position] = values.to(self.values.dtype)
        return self.keys, self.values


class FixedCache(KVCache):
    """A cache of few possible shapes, none of which changes once the first token is decoded."""

    model: GPT  # what decodes, with the weights of this sampling
    rows: Tensor | None = None  # those still asked for; None: only the prompts have been read

    def keep(self, rows: Tensor) -> None:
        """Before the first token repeats rows; later remembers which ones are asked for."""
        if self.rows is not None:
            self.rows = self.rows[rows]
            return
        weight, filled, capacity = self.model.embed_tokens.weight, self.length, self.keys.shape[3]
        B, S = rounded_up(len(rows)), rounded_up(capacity)

        def fixed(x: Tensor, dim: int, empty: float) -> Tensor:
            """All B rows and S positions of x, whose positions are dim; those to come are empty."""
            shape = [S if i == dim else size for i, size in enumerate((B, *x.shape[1:]))]
            whole = x.new_full(shape, empty)
            whole.narrow(dim, 0, filled)[: len(rows)] = x.narrow(dim, 0, filled)[rows]
            return whole

        self.key_bias = fixed(self.key_bias, 3, torch.finfo(self.key_bias.dtype).min)
        self.position, self.ids = rows.new_zeros(1), rows.new_zeros(B, 1)
        self.rope = rope_table(self.model.config, S, weight.device, weight.dtype)
        # Empty is 0: no bias hides a nan.
        self.layers = [
            LayerCache(fixed(k, 2, 0.0), fixed(v, 2, 0.0), self.key_bias, self.position)
            for k, v in zip(self.keys, self.values)]
        del self.keys, self.values
        self.rows, self.step = torch.arange(len(rows), device=rows.device), None

    def decode(self, ids: Tensor) -> Tensor:
        """Final states (b, 1, C) of the next tokens (b, 1) of the rows that are asked for."""
        self.ids.index_copy_(0, self.rows, ids)
        self.key_bias[..., self.length] = 0.0
        self.position.fill_(self.length)
        self.length += 1
        if self.step is None:  # not before the tensors have the values of a token
            self.step = captured(self.all_rows) if ids.is_cuda else self.all_rows
        return self.step()[self.rows]

    def all_rows(self) -> Tensor:
        """Final states (B, 1, C) of self.ids at self.position; may be repeated."""
        x, block = self.model.embed_tokens(self.ids), compiled_block(BACKEND)
        rope = tuple(table[self.position] for table in self.rope)  # (1, D) each
        for part, cache in zip(self.model.layers, self.layers):
            x = block(part, x, rope, cache)
        return self.model.norm(x)


def block_step(block: Block, x: Tensor, rope: Rope, cache: LayerCache) -> Tensor:
    """NOTE: a Python number here that changes, such as a length, would compile anew each time."""
    return block(x, rope, cache, 0)


@functools.cache
def compiled_block(backend: str) -> Callable[[Block, Tensor, Rope, LayerCache], Tensor]:
    """`block_step`, compiled once for all blocks, and anew for each shape of model and cache."""
    return torch.compile(
        block_step, backend=backend, dynamic=False, fullgraph=True,
        recompile_limit=MOST_COMPILATIONS)


def captured(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The function as a CUDA graph; its result is at the same place after every call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and lets libraries choose their kernels and memory
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def decoding_twin(model: GPT, dtype: torch.dtype) -> GPT:
    """A GPT with the weights that the model has now, those of its projections rounded to dtype.

    Else autocast would round them at every token. Without gradient, so that student and teacher are
    one to the compiler. Weights that have the dtype already are shared.
    """
    with torch.device("meta"):  # no time and memory for initial weights
        twin = GPT(model.config).requires_grad_(False)
    weights = model.state_dict()
    weights |= {name: w.to(dtype) for name, w in weights.items() if "_proj." in name}
    twin.load_state_dict(weights, assign=True)
    return twin


def rounded_up(size: int) -> int:
    """The least 2^k or 3 * 2^k that is not below: few shapes, at most a third of them empty."""
    whole = 1 << (size - 1).bit_length()
    return whole * 3 // 4 if whole >= 4 and size <= whole * 3 // 4 else whole


def compile_sampling(model: GPT) -> GPT:
    """The model as a CompiledGPT. Raises ValueError where that cannot work."""
    device, count = model.norm.weight.device, distributed.processes()
    if count > 1:  # hooks gather the weights, and stand at the `hidden` of a GPT
        raise ValueError(f"--compile: {count} processes; allowed: one, without torchrun")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--compile: device {device.type}; allowed: cpu or cuda")
    check_compiler(BACKEND, device.type)
    model.__class__ = CompiledSharingGPT if isinstance(model, SharingGPT) else CompiledGPT
    return model


@functools.cache
def check_compiler(backend: str, device: str) -> None:
    """Raises ValueError if nothing can be compiled here: now, and not when a token is sampled."""
    try:
        torch.compile(lambda x: x * 2 + 1, backend=backend)(torch.ones(2, device=device))
    except Exception as error:  # whatever a compiler, a linker or a driver has to say
        said = " ".join(str(error).split())[:200]
        words = "where PyTorch finds a C++ compiler, and on a GPU Triton as well"
        raise ValueError(f"--compile: nothing can be compiled ({said}); allowed: {words}") from None
