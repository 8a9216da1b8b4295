"""Weights as they come from files: whether they are numbers, and a row for each token."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minisd import GPT

NOT_FINITE = "has values that are NaN or infinite; allowed: finite numbers"


def not_finite(weights: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with a NaN or an infinite value; empty if there is none."""
    for name, x in weights.items():
        # The least and the largest value, NaN if there is one: needs no second tensor of this size.
        if x.numel() and not all(edge.isfinite() for edge in x.detach().aminmax()):
            return name
    return ""


@torch.no_grad()
def with_rows(model: GPT, rows: int) -> GPT:
    """The model, changed in place, with so many rows of embedding and head.

    For checkpoints of one tokenizer that are padded to different sizes: rows behind the last token
    belong to nobody. Surplus ones go. Missing ones are 0, so that their logits are 0, about what
    the untrained padding of published checkpoints gives.
    """
    have, tied = model.config.vocab_size, model.lm_head.weight is model.embed_tokens.weight
    for part in (model.embed_tokens, model.lm_head) if rows != have else ():
        new = part.weight.new_zeros(rows, part.weight.shape[1])
        new[: min(rows, have)] = part.weight[:rows]
        part.weight = nn.Parameter(new)
    if rows != have:
        model.embed_tokens.num_embeddings = model.lm_head.out_features = rows
        model.config = dataclasses.replace(model.config, vocab_size=rows)
        if tied:
            model.lm_head.weight = model.embed_tokens.weight
    return model
