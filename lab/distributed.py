"""Several processes of torchrun, one GPU to each; in a single process every function does nothing.

Each process draws its own problems with its own generator. fully_shard averages the gradients, and
`share_totals` makes the denominators those of all: a step is that of the union of their batches.
"""

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.checkpoint import checkpoint

from lab.memory import hand_back, hand_back_at_once
from lab.prefixes import SharingGPT, share_prefixes
from minisd import GPT, Batch, Block, KVCache, Rope, Teacher


def processes() -> int:
    """How many share each step; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if processes() > 1 else 0


@contextlib.contextmanager
def process_group(
    device: torch.device, shard: bool, groups: int, student_frac: float
) -> Iterator[None]:
    """Joins the processes that torchrun has started; all but the first are silent.

    groups: the problems of a step, student_frac: the share that the student writes. Raises
    ValueError for settings that do not fit the processes.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        if shard:
            raise ValueError("--shard: True; allowed: only with several processes (torchrun)")
        yield
        return
    for name, number in (("batch_size", groups), ("student_frac", groups * student_frac)):
        if number % count:
            words = f"a multiple of {count}, the number of processes"
            raise ValueError(f"--{name}: {number:g} problems; allowed: {words}")
    if str(device) not in ("cpu", "cuda"):
        raise ValueError(f"--device: {str(device)!r}; allowed: auto, cpu or cuda with torchrun")
    if device.type == "cuda":
        local, cards = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= cards:
            raise ValueError(f"--device: cuda; allowed: cpu, or at most {cards} processes")
        torch.cuda.set_device(local)
    distributed.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as silence:
        nowhere.reconfigure(errors="replace")  # takes any character
        if rank() > 0:
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        yield
    distributed.destroy_process_group()


def on_first(function: Callable[[], Any]) -> Any:
    """What the function returns, or raises, in the first process, in all of them; called there."""
    if processes() == 1:
        return function()
    outcome = [None]
    if rank() == 0:
        try:
            outcome = [function()]
        except (ValueError, OSError) as error:
            outcome = [error]
    distributed.broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def gather(value: Any) -> list:
    """The value of every process, by rank."""
    values = [value]
    if processes() > 1:
        values = [None] * processes()
        distributed.all_gather_object(values, value)
    return values


def share_totals(batch: Batch) -> None:
    """Divides by the mean of the processes' totals: averaged gradients are those of the union."""
    for total in batch.totals.values() if processes() > 1 else ():
        distributed.all_reduce(total)
        total /= processes()


def mean(numbers: dict[str, float]) -> dict[str, float]:
    """The mean of each number over the processes."""
    rows = gather(numbers)
    return {name: sum(row[name] for row in rows) / len(rows) for name in numbers}


def spread(model: GPT, device: torch.device, *, shard: bool = False, dtype: str = "float32") -> GPT:
    """The model over the processes: one copy in each, or with shard a part in each.

    fully_shard does both: it gathers weights where they are needed, block by block, and makes the
    mean of the gradients. Its hooks stand at `hidden`, the way into the model.
    """
    if processes() == 1:
        return model.to(device)
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = MixedPrecisionPolicy()
    if shard and dtype == "bfloat16":  # what travels and is held takes half as much
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for part in (*model.layers, model):
        fully_shard(part, mesh=process_mesh(device.type, shard), mp_policy=policy)
    register_fsdp_forward_method(model, "hidden")
    model.spread = functools.partial(spread, device=device, shard=shard, dtype=dtype)
    return model


@functools.cache
def process_mesh(device_type: str, shard: bool):
    """The processes as fully_shard wants them: copies of the weights x parts of one copy."""
    shape = (1, processes()) if shard else (processes(), 1)
    return distributed.init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def copied(model: GPT) -> GPT:
    """A second model with the same weights, as spread as the first."""
    if processes() == 1:
        return copy.deepcopy(model)
    twin = model.spread(empty_gpt(model))
    twin.load_state_dict(model.state_dict())
    return twin


def empty_gpt(model: GPT) -> GPT:
    """A model of that shape on the CPU, to load weights into."""
    with torch.device("meta"):  # no time and memory for initial weights
        twin = GPT(model.config)
    twin = twin.to(model.norm.weight.dtype).to_empty(device="cpu")
    if model.config.tied_embeddings:
        twin.lm_head.weight = twin.embed_tokens.weight  # to_empty has made two of the one
    if isinstance(model.layers[0], CheckpointedBlock):
        checkpoint_blocks(twin)
    return share_prefixes(twin) if isinstance(model, SharingGPT) else twin


class CheckpointedBlock(Block):
    """Keeps its input alone; the backward pass runs it again.

    Before each pass over whole texts, and behind a backward pass, freed memory is handed back: the
    pieces of one pass do not fit the next, and what is kept adds up to a fifth of the peak.
    """

    def forward(self, x: Tensor, rope: Rope, cache: KVCache | None, layer: int) -> Tensor:
        if cache is None and layer == 0:
            hand_back()
            if x.requires_grad:
                x.register_hook(lambda gradient: hand_back())
        if cache is not None or not torch.is_grad_enabled():
            return super().forward(x, rope, cache, layer)
        return checkpoint(super().forward, x, rope, cache, layer, use_reentrant=False)


def checkpoint_blocks(model: GPT) -> None:
    """Less memory in training: every block is computed twice (--activation_checkpointing)."""
    hand_back_at_once()
    for block in model.layers:
        block.__class__ = CheckpointedBlock


@contextlib.contextmanager
def gathered(*authors: GPT | Teacher) -> Iterator[None]:
    """Inside, every process has all weights of the authors.

    Else every token would wait for weights, and all processes would have to write equally long.
    """
    models = [model for author in authors for model in models_of(author)] if processes() > 1 else []
    for model in models:
        for part in (*model.layers, model):
            part.unshard()
        for block in model.layers:
            block.set_reshard_after_forward(False)
    yield
    for model in models:
        for block in model.layers:
            block.set_reshard_after_forward(True)
            block.reshard()
    release(*authors)


def models_of(author: GPT | Teacher | None) -> list[GPT]:
    if isinstance(author, Teacher):
        return [*author.copies.values(), author.student]
    return [author] if author else []


def release(*authors: GPT | Teacher | None) -> None:
    """Drops embedding and head, which stay gathered behind `hidden` until a backward pass ends."""
    for author in authors if processes() > 1 else ():
        for model in models_of(author):
            model.reshard()


def whole(model: GPT) -> GPT | None:
    """The model with all weights, on the CPU, in the first process; None in the others."""
    if processes() == 1:
        return model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if rank() > 0:
        return None
    alone = empty_gpt(model)
    alone.load_state_dict(state)
    alone.source = getattr(model, "source", None)  # what lab.hf keeps of a loaded checkpoint
    return alone
