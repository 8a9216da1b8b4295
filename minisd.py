"""minisd: self-distillation of language models, every loss next to its formula, in one file.

A model is its own teacher: the teacher is shown privileged context (a solution, an answer,
feedback, a rule) before the prompt, the student is not, and the student is trained to match the
teacher on completions that the student sampled itself. This file has the model, the sampling, the
losses, the teachers and the diagnostics; `toy_tasks.py` has a world to try them in, `train_gpt.py`
the loop.

    1 model   2 sampling   3 log-probabilities, masks, means   4 divergences per position
    5 credit: from divergences to losses   6 policy gradient   7 teachers   8 scoring a batch
    9 diagnostics   10 Hugging Face weights

One batch through a step:

    sample(student, prompts) -> completions -> score(student, teacher, the same completions)
        -> a divergence per position (B, T) -> a loss per position (B, T)
        -> weighted_sum, weights from token_weights -> step -> Teacher.update

    method         who samples        teacher weights     it sees    loss
    sft            teacher            frozen              solution   -log p, correct ones only
    seq_kd         teacher            frozen              solution   -log p
    gkd            student and data   larger model        nothing    jensen_shannon
    opd            student            larger model        nothing    sampled_token_surrogate
    opsd           student            frozen              solution   forward_kl
    sdpo           student            EMA                 solution   reverse_kl
    sdft           student            EMA                 sibling    reverse_kl
    sequence_kl    student            frozen              solution   sequence_level_surrogate
    grpo           student            -                   -          clipped_policy_surrogate, k3_kl
    dr_grpo        student            -                   -          clipped_policy_surrogate
    dapo           student            -                   -          clipped_policy_surrogate
    sdpo_grpo      student            EMA                 solution   policy gradient and reverse_kl
    rlvr_teacher   student            adapted by reward   solution   reverse_kl
    sft_then_sdpo  student            EMA                 solution   reverse_kl, after some sft

Shapes: B sequences = P prompts x G completions each, T positions, V vocabulary, C width, H heads,
D head dimension, L layers, S cached positions, K top-k entries, N completion tokens of a batch.
Log-probabilities, divergences, losses and entropies are in nats. p is the student, q the teacher.

Where this differs from the papers
 1. sdpo: the context is the worked solution, the setting that [15] examines and whose cost [1]
    table 6 reports; [1] by default shows a successful sibling, else feedback (`--context sibling`).
    Divergence and teacher rate are those of its section 4 (rich feedback), not of section 3; the
    divergence is over the whole vocabulary: with so few tokens no top k is needed.
 2. opsd: without the clip of v3 (`--loss clipped_forward_kl` has it); a completion may be as long
    as it likes, since here all are short.
 3. sdft: the demonstration is a successful completion of the student's own group, not an expert's.
 4. sft: the correct samples of the context-conditioned model are drawn anew at every step instead
    of once; on a pool of problems this is the same set seen through more samples.
 5. gkd, opd: the larger teacher differs in size and in the seed of its documents, not in their
    kind; gkd's data are reference documents.
 6. grpo: one update per batch by default, so that the clip never acts; `--updates_per_batch`.
    dapo has neither overlong shaping nor an unlimited number of resampling rounds.
 7. sdpo_grpo weighs two losses, which equals the weighted advantages of [1] for one update a batch.
 8. sequence_kl divides by a constant: a mean over tokens would change with the sampled lengths.
 9. sft_then_sdpo: the supervised samples are those of `sft`; [10] does not say how many it takes.
    The EMA teacher starts as the warm-started student.
10. rlvr_teacher: reward adapts the base model itself with the context in its prompt, for as many
    steps as --adapt_steps says; [10] takes a public checkpoint that was trained with rewards.

References: [1] SDPO arXiv:2601.20802. [2] OPSD arXiv:2601.18734. [3] GRPO arXiv:2402.03300.
[4] Dr. GRPO arXiv:2503.20783. [5] DAPO arXiv:2503.14476. [6] GKD arXiv:2306.13649.
[7] grouped-query attention arXiv:2305.13245. [8] rotary positions arXiv:2104.09864.
[9] SwiGLU arXiv:2002.05202. [10] Zhu et al. arXiv:2605.11182. [11] Fu et al. arXiv:2603.25562.
[12] PPO arXiv:1707.06347. [13] joschu.net/blog/kl-approx.html. [14] Li et al. arXiv:2604.13016.
[15] Kim et al. arXiv:2603.24472.
"""

import contextlib
import copy
import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# 1. Model -----------------------------------------------------------------------------------------

ROPE_SCALINGS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class GPTConfig:
    """Everything that determines the shape and the arithmetic of the model."""

    vocab_size: int
    n_layers: int = 2
    width: int = 64
    n_heads: int = 4
    n_kv_heads: int = 4  # fewer than n_heads: grouped-query attention [7]
    head_dim: int = 16
    mlp_width: int = 160
    tied_embeddings: bool = False
    # Off in the toy; checkpoints of other families need them, see section 10.
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every query and key head before the rotation
    rope_theta: float = 10_000.0  # [8]
    rope_scaling: dict | None = None  # "rope_type" and its numbers, see rope_frequencies
    norm_eps: float = 1e-6
    init_std: float = 0.1  # at width 64; the 0.02 of GPT-2, for widths near 1000, learns far slower
    head_std: float = 0.02  # GPT-2; small, so that an untrained model's loss is log(vocab_size)
    # The longest sequence that the weights are meant for; callers check, the model does not.
    context_window: int = 2048
    # The checkpoint's own JSON files by name, so that a saved one has the same fields.
    hf_files: dict | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self):
        # A config.json may hold anything, and some of it would fail only in the middle of a run.
        for field in dataclasses.fields(self):
            value, number = getattr(self, field.name), type(getattr(self, field.name))
            if field.type is int and not (number is int and 1 <= value < 2**31):
                raise ValueError(f"{field.name}: {value!r}; allowed: a whole number, 1 to 2^31 - 1")
            if field.type is float and not (number in (int, float) and 0 <= value < math.inf):
                raise ValueError(f"{field.name}: {value!r}; allowed: a number, 0 or more")
            if field.type is bool and number is not bool:
                raise ValueError(f"{field.name}: {value!r}; allowed: true or false")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_kv_heads: {self.n_kv_heads}; allowed: a divisor of n_heads {self.n_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim: {self.head_dim}; allowed: an even number (rotary pairs)")
        if self.rope_scaling and self.rope_scaling["rope_type"] not in ROPE_SCALINGS:
            kind, allowed = self.rope_scaling["rope_type"], ", ".join(ROPE_SCALINGS)
            raise ValueError(f"rope_type: {kind!r}; allowed: {allowed}")


class KVCache:
    """Keys and values of all earlier positions, allocated once; `length` positions are filled."""

    def __init__(self, config: GPTConfig, pad_count: Tensor, capacity: int, like: Tensor):
        B = pad_count.shape[0]
        shape = (config.n_layers, B, config.n_kv_heads, capacity, config.head_dim)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0
        hidden = torch.arange(capacity, device=like.device) < pad_count[:, None]  # (B, S)
        # Added to the scores of every later step, so that left padding is never attended to.
        self.key_bias = like.new_zeros(B, 1, 1, capacity)
        self.key_bias.masked_fill_(hidden[:, None, None], torch.finfo(like.dtype).min)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, Hkv, T, D) behind the filled positions; returns all filled ones of a layer."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but those with the given indices."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.key_bias = self.key_bias[rows]


class RMSNorm(nn.RMSNorm):
    """x / rms(x) in float32, rounded to the dtype of x, then times weight, as checkpoints expect.

    nn.RMSNorm multiplies before it rounds: in bfloat16 that differs in the last bit at each norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, None, self.eps) * self.weight


class Attention(nn.Module):
    """Causal self-attention with rotary positions and, optionally, fewer key heads than heads."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        self.head_dim = config.head_dim
        # One product for queries, keys and values: at small widths a call costs more than its work.
        self.qkv = nn.Linear(config.width, sum(self.heads) * self.head_dim, bias=config.qkv_bias)
        self.out = nn.Linear(config.n_heads * self.head_dim, config.width, bias=config.out_bias)
        self.q_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None, layer: int
    ) -> Tensor:
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, sum(self.heads), self.head_dim)
        heads = heads.transpose(1, 2)  # (B, H + 2 Hkv, T, D)
        H, Hkv, _ = self.heads
        qk, v = heads.split((H + Hkv, Hkv), dim=1)
        if self.q_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :H]), self.k_norm(qk[:, H:])), dim=1)
        q, k = rotate(qk, *rope).split((H, Hkv), dim=1)
        bias = None
        if cache is not None:
            k, v = cache.append(layer, k, v)
            bias = cache.key_bias[..., : k.shape[2]]
            if T > 1:
                S = k.shape[2]
                future = bias.new_full((T, S), torch.finfo(bias.dtype).min).triu(1 + S - T)
                bias = bias + future  # (B, 1, T, S)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias,
            is_causal=bias is None,
            enable_gqa=self.heads[0] != self.heads[1],
        )
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions [8]: turns the pairs (i, i + D/2) of (B, H, T, D) by cos, sin (T, D).

    The first half of sin is negated beforehand: cheaper than negating half of x at every layer.
    """
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((right, left), dim=-1) * sin


class MLP(nn.Module):
    """SwiGLU [9]: down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.mlp_width, bias=config.mlp_bias)
        self.down = nn.Linear(config.mlp_width, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A decoder-only transformer of today's form: RMSNorm, rotary positions, SwiGLU."""

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # Residual branches start smaller, so that depth does not grow the stream (GPT-2).
                branch = name.endswith(("out.weight", "down.weight"))
                std = config.init_std / math.sqrt(2 * config.n_layers if branch else 1)
                std = config.head_std if weight is self.head.weight else std
                nn.init.normal_(weight, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        self.rope: tuple[Tensor, Tensor] | None = None
        # True: training keeps the input of each block alone, the backward pass runs it again.
        self.activation_checkpointing = False

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Final normalised states (B, T, C) of ids (B, T); padding, if any, stands on the right.

        With a cache, ids are the next T positions, and left padding is as the cache was told.
        """
        T, start = ids.shape[1], cache.length if cache is not None else 0
        x = self.embedding(ids)  # (B, T, C)
        if (
            self.rope is None
            or self.rope[0].shape[0] < start + T
            or self.rope[0].device != ids.device
            or self.rope[0].dtype != x.dtype
        ):
            cos, sin = rope_table(self.config, max(256, 2 * (start + T)), x)
            left, right = sin.chunk(2, dim=-1)
            self.rope = cos, torch.cat((-left, right), dim=-1)
        rope = self.rope[0][start : start + T], self.rope[1][start : start + T]
        again = self.activation_checkpointing and torch.is_grad_enabled() and cache is None
        for layer, block in enumerate(self.blocks):
            arguments = (x, rope, cache, layer)
            x = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the next token at every position."""
        return self.head(self.hidden(ids, cache))

    def parts(self) -> list[tuple["GPT", float]]:
        """A model is the mixture of itself alone; see `Teacher.parts`."""
        return [(self, 1.0)]


def rope_table(config: GPTConfig, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, D) of position times frequency, each frequency twice.

    Computed in float32 whatever the weights are: bfloat16 cannot tell position 257 from 256.
    """
    frequencies, factor = rope_frequencies(config, like.device)
    positions = torch.arange(length, device=like.device, dtype=torch.float32)
    angles = positions[:, None] * frequencies  # (length, D/2)
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * factor).to(like.dtype), (angles.sin() * factor).to(like.dtype)


def rope_frequencies(config: GPTConfig, device: torch.device) -> tuple[Tensor, float]:
    """Radians per position (D/2,), and what cosines and sines are multiplied by.

    linear: every frequency divided by a factor. llama3: only slow ones, with a smooth step between.
    yarn: a ramp over the pairs instead of over wavelengths, and sharper attention. The order of the
    operations is that of transformers, which makes the tables equal to the last bit.
    """
    D, theta, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    powers = theta ** (torch.arange(0, D, 2, device=device, dtype=torch.float32) / D)
    frequencies = 1.0 / powers
    if scaling is None:
        return frequencies, 1.0
    factor = scaling["factor"]
    if scaling["rope_type"] == "linear":
        return frequencies / factor, 1.0
    window = scaling["original_max_position_embeddings"]
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        wavelength = 2 * math.pi / frequencies
        smooth = (window / wavelength - low) / (high - low)
        between = (1 - smooth) * frequencies / factor + smooth * frequencies
        slow = torch.where(wavelength > window / low, frequencies / factor, between)
        return torch.where(wavelength < window / high, frequencies, slow), 1.0
    # yarn: the pair that turns `rotations` times within the original window
    rotations = (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1)
    low, high = (
        D * math.log(window / (r * 2 * math.pi)) / (2 * math.log(theta)) for r in rotations
    )
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    ramp = (torch.arange(D // 2, device=device, dtype=torch.float32) - low) / (
        high - low if high != low else 0.001
    )
    keep = 1 - ramp.clamp(0, 1)
    return 1.0 / (factor * powers) * (1 - keep) + frequencies * keep, yarn_attention(scaling)


def yarn_attention(scaling: dict) -> float:
    """The factor of cosines and sines that yarn asks for, if the checkpoint does not name it."""

    def grown(by: float) -> float:
        return 0.1 * by * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return grown(over) / grown(under) if over and under else grown(1)


# 2. Sampling --------------------------------------------------------------------------------------


@dataclass
class Completions:
    """Sampled completions: all tensors (B, T), right-padded; mask is True up to the end token."""

    ids: Tensor
    mask: Tensor
    token_log_probs: Tensor  # at temperature 1, whatever the sampling temperature was, in nats

    @classmethod
    def from_rows(cls, rows: list[list[int]], pad_id: int, device: str = "cpu") -> "Completions":
        """Completions that somebody else wrote: token ids with their end token, log-probs 0."""
        T = max(map(len, rows))
        ids = torch.tensor([row + [pad_id] * (T - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(T, device=device) < lengths[:, None]
        return cls(ids, mask, torch.zeros(ids.shape, device=device))

    def take(self, rows: Tensor) -> "Completions":
        """Those of the given row indices."""
        return Completions(self.ids[rows], self.mask[rows], self.token_log_probs[rows])

    def join(self, other: "Completions", pad_id: int) -> "Completions":
        """The rows of both, one below the other."""
        T = max(self.ids.shape[1], other.ids.shape[1])

        def stack(name: str, fill: int) -> Tensor:
            parts = (getattr(x, name) for x in (self, other))
            return torch.cat([F.pad(x, (0, T - x.shape[1]), value=fill) for x in parts])

        return Completions(stack("ids", pad_id), stack("mask", 0), stack("token_log_probs", 0))


def pad_left(rows: list[list[int]], pad_id: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Prompt ids (B, P) with padding on the left, and pad_count (B,)."""
    if not all(rows):
        raise ValueError("prompt: empty; allowed: at least one token (it predicts the first)")
    P = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (P - len(row)) + row for row in rows], device=device)
    return ids, torch.tensor([P - len(row) for row in rows], device=device)


CHECK_EVERY = 4  # tokens between looks at who has finished; each look waits for the device


@torch.no_grad()
def sample(
    model: "GPT | Teacher",
    prompt_ids: Tensor,
    pad_count: Tensor,
    *,
    max_new_tokens: int,
    end_id: int | tuple[int, ...],
    pad_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
) -> Completions:
    """Completions of left-padded prompts (B, P), each row until an end token or the length limit.

    temperature 0 is greedy; top_p < 1 samples from the smallest set of tokens with that mass.
    One uniform number per row and position, (B, max_new_tokens), is drawn in advance if not given,
    so a row's text does not depend on which other rows have ended.
    Raises ValueError for a temperature or top_p out of range.
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature {temperature}, top_p {top_p}; allowed: >= 0, and above 0 to 1"
        )
    B, P = prompt_ids.shape
    device = prompt_ids.device
    if uniforms is None:
        uniforms = torch.rand(B, max_new_tokens, generator=generator, device=device)
    # The factor keeps u * total below total in float32; it moves no probability by more than 1e-6.
    uniforms = uniforms * (1 - 1e-6)
    ids = torch.full((B, max_new_tokens), pad_id, device=device)
    log_probs = torch.zeros(B, max_new_tokens, device=device)
    end_ids = torch.tensor([end_id] if isinstance(end_id, int) else end_id, device=device)
    rows = torch.arange(B, device=device)  # those still being written
    done = torch.zeros(B, dtype=torch.bool, device=device)
    models, weights = zip(*model.parts())
    like = models[0].embedding.weight[0]
    if torch.is_autocast_enabled(device.type):
        like = like.to(torch.get_autocast_dtype(device.type))
    caches = [KVCache(m.config, pad_count, P + max_new_tokens, like) for m in models]
    inputs = prompt_ids
    for t in range(max_new_tokens):
        states = [m.hidden(inputs, cache)[:, -1] for m, cache in zip(models, caches)]  # (B, C)
        logits = geometric_mixture([m.head(s) for m, s in zip(models, states)], weights).float()
        token = pick_token(logits, uniforms[rows, t], temperature, top_p)
        ids[rows, t] = token
        log_probs[rows, t] = F.log_softmax(logits, dim=-1).gather(1, token[:, None])[:, 0]
        done |= torch.isin(token, end_ids)
        if t % CHECK_EVERY == CHECK_EVERY - 1 or t == max_new_tokens - 1:
            active = (~done).nonzero()[:, 0]
            if len(active) == 0 or t == max_new_tokens - 1:
                break
            if len(active) <= 0.75 * len(rows):
                for cache in caches:
                    cache.keep(active)
                rows, done, token = rows[active], done[active], token[active]
        inputs = token[:, None]
    # A finished row goes on until it is dropped; what it wrote behind its end token goes here.
    ends = torch.isin(ids, end_ids)
    mask = ends.cumsum(1) - ends.long() == 0
    ids, log_probs = ids.masked_fill(~mask, pad_id), log_probs.masked_fill(~mask, 0.0)
    used = int(mask.sum(1).max())
    return Completions(ids[:, :used], mask[:, :used], log_probs[:, :used])


def pick_token(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Token ids (B,) by inverting the cumulative distribution of logits (B, V) at uniform (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    probs = F.softmax(logits / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the first token is never outside
        probs = probs.scatter(1, order, ordered.masked_fill(outside, 0.0))
    cumulative = probs.cumsum(-1)
    chosen = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    # Without a distribution (nan) the position found is V. The loss of that token will tell.
    return chosen[:, 0].clamp(max=logits.shape[-1] - 1)


# 3. Log-probabilities, masks and reductions -------------------------------------------------------

LOG_PROB_FLOOR = -1e5  # nats; stands for log 0, so that 0 * log 0 is 0 and its gradient is finite


class NonFiniteError(ValueError):
    """A number that must be finite is not."""


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities (..., V) in nats, in float32 or better, never below LOG_PROB_FLOOR."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if logits.numel() and not logits.amax(-1).isfinite().all():
        raise NonFiniteError("logits: nan, inf or only -inf in a row; allowed: a finite entry")
    return F.log_softmax(logits, dim=-1).clamp(min=LOG_PROB_FLOOR)


def token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token, (B, T), in nats.

    Args:
        logits: (B, T, V); position t is the prediction *of* token t (see `completion_hidden`).
        ids: (B, T) token ids. Gradient flows to the logits.
    """
    B, T, V = logits.shape
    if ids.shape != (B, T):
        raise ValueError(f"ids: expected {(B, T)}, got {tuple(ids.shape)}")
    return log_softmax(logits).gather(-1, ids[..., None])[..., 0]  # (B, T)


def completion_hidden(
    model: "GPT", prompt_ids: Tensor, pad_count: Tensor, completion_ids: Tensor
) -> Tensor:
    """Final states (B, T, C) from which the T completion tokens are predicted.

    This is the only place that shifts targets: state t predicts completion token t. Left padding is
    moved behind the completion first, where a causal model cannot see it, so no mask is needed.

    Args:
        prompt_ids: (B, P), left-padded; pad_count: (B,) how much of it is padding.
        completion_ids: (B, T), right-padded.
    """
    B, T = completion_ids.shape
    rows = torch.cat((prompt_ids, completion_ids), dim=1)  # (B, P + T)
    steps = torch.arange(rows.shape[1], device=rows.device)
    rows = rows.gather(1, (steps + pad_count[:, None]) % rows.shape[1])
    hidden = model.hidden(rows[:, :-1])  # (B, P + T - 1, C)
    first = (
        prompt_ids.shape[1] - pad_count - 1
    )  # the last prompt token predicts the first of the completion
    index = first[:, None] + steps[:T]  # (B, T)
    return hidden.gather(1, index[..., None].expand(B, T, hidden.shape[-1]))


def token_weights(mask: Tensor, reduction: str, max_tokens: int | None = None) -> Tensor:
    """The weight (B, T) of each token in a mean; weights of masked-out tokens are 0.

    token_mean: every token of the batch alike (DAPO [5]). sequence_mean: the mean within each
    completion, then over completions (GRPO [3]). constant: the sum over tokens divided by
    B * max_tokens, so that a long completion weighs as much as its length (Dr. GRPO [4]).
    Slices of these weights make micro-batches and several processes exact.
    """
    B, T = mask.shape
    if reduction == "token_mean":
        return mask / mask.sum().clamp(min=1)
    if reduction == "sequence_mean":
        return mask / mask.sum(1, keepdim=True).clamp(min=1) / mask.any(1).sum().clamp(min=1)
    if reduction == "constant":
        if not max_tokens or max_tokens < 1:
            raise ValueError(
                f"max_tokens: {max_tokens}; allowed: 1 or more with reduction constant"
            )
        return mask / (B * max_tokens)
    raise ValueError(f"reduction: {reduction!r}; allowed: token_mean, sequence_mean, constant")


def masked_mean(
    values: Tensor, mask: Tensor, reduction: str = "token_mean", max_tokens: int | None = None
) -> Tensor:
    """Mean of values (B, T) where mask (B, T) is True; see `token_weights` for the reductions.

    An empty mask gives 0 with a gradient path. What stands at masked-out positions, even nan, does
    not matter. Raises ValueError for other shapes or an unknown reduction.
    """
    if values.shape != mask.shape:
        raise ValueError(f"mask: expected {tuple(values.shape)}, got {tuple(mask.shape)}")
    return weighted_sum(values, token_weights(mask, reduction, max_tokens))


TOKEN_PARTS = ("first", "last", "spread")


def token_part(mask: Tensor, share: float, part: str) -> Tensor:
    """The first, last or evenly spread `share` (0-1, rounded up) of each row's tokens, (B, T) bool.

    The tokens of mask (B, T) must stand together. Share 1 gives the mask itself.
    """
    rank, length = mask.cumsum(1) - 1, mask.sum(1, keepdim=True)  # of a token in its row; (B, 1)
    # Rounded, since 0.3 * 10 in float32 is a little above 3.
    kept = (length * share).round(decimals=4).ceil()
    if part == "first":
        inside = rank < kept
    elif part == "last":
        inside = rank >= length - kept
    elif part == "spread":
        length = length.clamp(min=1)
        # Half a distance in, since the first token often decides on all others.
        inside = (rank * kept + length // 2) % length < kept
    else:
        raise ValueError(f"token_part: {part!r}; allowed: {', '.join(TOKEN_PARTS)}")
    return mask & inside


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of values times `token_weights`, (B, T) each; where the weight is 0 no value matters."""
    return (values.masked_fill(weights == 0, 0.0) * weights.to(values.dtype)).sum()


# 4. Divergences: one value per position -----------------------------------------------------------
# All take student and teacher logits (B, T, V) and return (B, T), in nats. Gradient flows to the
# student alone. p is the student's and q the teacher's distribution over the next token.


def student_and_teacher(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log q (B, T, V) of equal shape; the teacher's is detached."""
    B, T, V = student_logits.shape
    if teacher_logits.shape != (B, T, V):
        raise ValueError(f"teacher_logits: expected {(B, T, V)}, got {tuple(teacher_logits.shape)}")
    return log_softmax(student_logits), log_softmax(teacher_logits.detach())


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) = sum_v a(v) (log a(v) - log b(v)) over the last axis, from log-probabilities."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) per position, (B, T), in nats: sum_v q(v) log(q(v) / p(v)).

    Mass-covering: the student must give mass wherever the teacher does. Averaged over contexts, its
    minimiser is the arithmetic mixture of the teachers. Source: [2] v3; in GKD [6] beta = 0.
    """
    log_p, log_q = student_and_teacher(student_logits, teacher_logits)
    return kl(log_q, log_p)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher) per position, (B, T), in nats: sum_v p(v) log(p(v) / q(v)).

    Mode-seeking: the student must avoid what the teacher avoids. Averaged over contexts, its
    minimiser is the normalised geometric mean of the teachers. Source: [1] eq. 1; GKD [6] beta = 1.
    """
    log_p, log_q = student_and_teacher(student_logits, teacher_logits)
    return kl(log_p, log_q)


def jensen_shannon(
    student_logits: Tensor, teacher_logits: Tensor, teacher_weight: float = 0.5
) -> Tensor:
    """w KL(teacher || m) + (1-w) KL(student || m) per position, (B, T), in nats, m = w q + (1-w) p.

    w is teacher_weight, strictly between 0 and 1 (both ends are identically 0: use forward_kl or
    reverse_kl). Divided by w it tends to forward_kl for w -> 0, by 1-w to reverse_kl for w -> 1.
    Source: [2] eq. 7; differs: [1] and [6] write the weights the other way round.
    """
    if not 0 < teacher_weight < 1:
        raise ValueError(f"teacher_weight: {teacher_weight}; allowed: strictly between 0 and 1")
    log_p, log_q = student_and_teacher(student_logits, teacher_logits)
    log_m = torch.logaddexp(log_q + math.log(teacher_weight), log_p + math.log(1 - teacher_weight))
    return teacher_weight * kl(log_q, log_m) + (1 - teacher_weight) * kl(log_p, log_m)


def clipped_forward_kl(student_logits: Tensor, teacher_logits: Tensor, clip: float) -> Tensor:
    """sum_v min(q(v) log(q(v) / p(v)), clip) per position, (B, T), in nats: not a divergence.

    Each vocabulary entry's term is clamped from above; negative terms stay. A clamped entry gives
    no gradient: tokens on which teacher and student differ most (style) stop dominating. Source:
    [2] v3.
    """
    if clip <= 0:
        raise ValueError(f"clip: {clip}; allowed: above 0")
    log_p, log_q = student_and_teacher(student_logits, teacher_logits)
    return (log_q.exp() * (log_q - log_p)).clamp(max=clip).sum(-1)


SUPPORTS = ("student", "teacher", "union", "intersection")
TAILS = ("naive", "stop_gradient", "renormalised", "bucket")


def top_k_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    k: int,
    *,
    support: str = "student",
    tail: str = "bucket",
) -> Tensor:
    """KL(student || teacher) per position, (B, T), in nats, on the support S of k likely tokens.

    support: S is the top k of the student, the teacher, their union, or their intersection (which
    may be empty: then the value is 0). What is done about the tokens outside S:
      naive          sum_S p log(p/q). Its gradient has an extra term, the gradient of the support's
                     mass sum_S p: descent lowers the logits in S and mass leaks out of it [10].
      stop_gradient  sum_S p (sg[log p] - log q): the same value without that extra term [10].
      renormalised   KL of p and q, each divided by its mass in S; blind to the mass outside. With
                     one token it is identically 0, so k = 1 is refused.
      bucket         adds (1-p_S) log((1-p_S)/(1-q_S)): the KL of a coarsened distribution [1].
    Raises ValueError for an unknown name or a k that is not in 1..V.
    """
    B, T, V = student_logits.shape
    if not 1 <= k <= V:
        raise ValueError(f"top_k: {k}; allowed: 1 to the vocabulary size {V}")
    if tail == "renormalised" and k == 1 and support != "union":
        raise ValueError("top_k: 1 with tail renormalised is identically 0; allowed: 2 or more")
    log_p, log_q = student_and_teacher(student_logits, teacher_logits)
    inside = top_k_support(log_p.detach(), log_q, k, support)  # (B, T, V) bool
    if tail == "naive":
        return (log_p.exp() * (log_p - log_q)).masked_fill(~inside, 0.0).sum(-1)
    if tail == "stop_gradient":
        return (log_p.exp() * (log_p.detach() - log_q)).masked_fill(~inside, 0.0).sum(-1)
    if tail == "renormalised":
        # Far below the floor, so that a distribution that is 0 in all of S does not leak out of S.
        log_p, log_q = (x.masked_fill(~inside, 2 * LOG_PROB_FLOOR) for x in (log_p, log_q))
        value = kl(F.log_softmax(log_p, dim=-1), F.log_softmax(log_q, dim=-1))
        return value.masked_fill(~inside.any(-1), 0.0)
    if tail == "bucket":
        outside_p, outside_q = (log_mass(x, ~inside) for x in (log_p, log_q))  # (B, T)
        inner = (log_p.exp() * (log_p - log_q)).masked_fill(~inside, 0.0).sum(-1)
        return inner + outside_p.exp() * (outside_p - outside_q)
    raise ValueError(f"tail: {tail!r}; allowed: {', '.join(TAILS)}")


def top_k_support(log_p: Tensor, log_q: Tensor, k: int, support: str) -> Tensor:
    """Which tokens belong to the support, (B, T, V) bool; see `top_k_reverse_kl`."""
    student, teacher = (
        torch.zeros_like(x, dtype=torch.bool).scatter(-1, x.topk(k, dim=-1).indices, True)
        for x in (log_p, log_q)
    )
    supports = {
        "student": student,
        "teacher": teacher,
        "union": student | teacher,
        "intersection": student & teacher,
    }
    if support not in supports:
        raise ValueError(f"support: {support!r}; allowed: {', '.join(SUPPORTS)}")
    return supports[support]


def log_mass(log_probs: Tensor, inside: Tensor) -> Tensor:
    """log of the probability mass where inside is True, (B, T); LOG_PROB_FLOOR for none."""
    return log_probs.masked_fill(~inside, LOG_PROB_FLOOR).logsumexp(-1).clamp(min=LOG_PROB_FLOOR)


# 5. Credit: from values per position to a loss per position ---------------------------------------


def sampled_token_surrogate(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Only its gradient is right: per position (B, T), on average that of KL(student || teacher).

    sg[log p(y_t) - log q(y_t)] * log p(y_t) for a token y_t that the student sampled. The value is
    no KL. Needs one number a token instead of a vocabulary. Source: [1] code; on-policy
    distillation of Lu et al. 2025, where -(log p - log q) is the advantage.

    Args: log-probabilities (B, T) of the sampled tokens; gradient flows to the student's.
    """
    return (student_log_probs - teacher_log_probs).detach() * student_log_probs


def future_sum(values: Tensor, mask: Tensor, discount: float) -> Tensor:
    """sum_{t' > t} discount^(t'-t) values_t' over the masked tokens of each row, (B, T)."""
    total, sums = torch.zeros_like(values[:, 0]), []
    values = values.masked_fill(~mask, 0.0)
    for t in reversed(range(values.shape[1])):
        sums.append(total)
        total = discount * (values[:, t] + total)
    return torch.stack(sums[::-1], dim=1)


def sequence_level_surrogate(
    divergence: Tensor, student_log_probs: Tensor, mask: Tensor, discount: float
) -> Tensor:
    """Only its gradient is right: per position (B, T); summed over a row, that of the sequence KL.

    KL_t + sg[sum_{t'>t} discount^(t'-t) KL_t'] * log p(y_t), KL_t = KL(student || teacher) at t.
    discount 1: unbiased for the gradient of KL(student || teacher) of *sequence* distributions.
    discount 0: the token-level gradient, which drops E sum_t sum_{t'>t} KL_t' grad log p(y_t), the
    effect of a token on the prefixes that follow. Between: the interpolation of [11].

    Args:
        divergence: (B, T) `reverse_kl` with gradient; student_log_probs: (B, T) of sampled tokens.
        mask: (B, T) bool. discount: 0 to 1. Source: [1] v2 app. A.1, [11].
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: {discount}; allowed: 0 to 1")
    return divergence + future_sum(divergence.detach(), mask, discount) * student_log_probs


def averaged_advantage_surrogate(
    student_log_probs: Tensor, teacher_log_probs: Tensor, mask: Tensor
) -> Tensor:
    """Only its gradient matters: one advantage per completion, spread over its tokens, (B, T).

    -A log p(y_t), A = sg[mean over t of (log q(y_t) - log p(y_t))]. This is what the ablation of
    [1] calls sequence level; it is *not* the sequence KL: no token is told from its neighbours.
    """
    gap = (teacher_log_probs - student_log_probs).detach().masked_fill(~mask, 0.0)
    advantage = gap.sum(1) / mask.sum(1).clamp(min=1)  # (B,)
    return -advantage[:, None] * student_log_probs


# 6. Policy gradient -------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, *, normalise: str = "std") -> Tensor:
    """Advantage (P, G) of each completion within the group of its prompt, from rewards (P, G).

    std: (r - mean) / std, GRPO [3]; mean: r - mean, Dr. GRPO [4] and [1]. A group with equal
    rewards gets 0: it teaches nothing.
    """
    P, G = rewards.shape
    if G < 2:
        raise ValueError(f"group_size: {G}; allowed: 2 or more (one completion has no advantage)")
    # Rounding of the mean must not become an advantage: equal rewards give exactly 0.
    equal = equal_reward_groups(rewards)[:, None]
    centred = (rewards - rewards.mean(1, keepdim=True)).masked_fill(equal, 0.0)
    if normalise == "mean":
        return centred
    if normalise == "std":
        # The floor only guards 0 / 0: rewards that differ at all have a far larger deviation.
        return centred / rewards.std(1, keepdim=True).clamp(min=1e-6)
    raise ValueError(f"normalise: {normalise!r}; allowed: std, mean")


def equal_reward_groups(rewards: Tensor) -> Tensor:
    """Which groups (P,) of rewards (P, G) are all alike, so that their advantages are all 0."""
    return (rewards == rewards[:, :1]).all(1)


MAX_LOG_RATIO = 20.0  # nats; the exponential of more overflows on the way back, and 0 * inf is nan


def clipped_policy_surrogate(
    student_log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """Only its gradient is right: the negated clipped objective of PPO per token, (B, T).

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = p(y_t) / p_old(y_t).
    Source: [12] eq. 7; clip_high > clip_low is DAPO's clip-higher [5].

    Args: log-probabilities (B, T) of the sampled tokens; advantages (B,) or (B, T), detached here.
    """
    advantages = advantages.detach()
    advantages = advantages[:, None] if advantages.dim() == 1 else advantages
    ratio = (student_log_probs - old_log_probs.detach()).clamp(max=MAX_LOG_RATIO).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def k3_kl(student_log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Estimate of KL(student || reference) from sampled tokens, (B, T), in nats, never negative.

    ref/p - log(ref/p) - 1, unbiased for tokens that the student sampled; its *gradient* is that of
    the forward KL(reference || student) instead. Source: [3] eq. 4, [13].
    """
    log_ratio = (reference_log_probs.detach() - student_log_probs).clamp(max=MAX_LOG_RATIO)
    return log_ratio.exp() - log_ratio - 1


def truncated_importance_weight(
    student_log_probs: Tensor, old_log_probs: Tensor, cap: float = 2.0
) -> Tensor:
    """min(p(y_t) / p_old(y_t), cap) per token, (B, T), without gradient. Source: [1] code."""
    return (student_log_probs - old_log_probs).detach().exp().clamp(max=cap)


# 7. Teachers --------------------------------------------------------------------------------------

TEACHERS = ("frozen", "live", "ema", "trust_region", "external", "snapshot")


class Teacher:
    """The weights that score the student's completions under the privileged context.

    frozen        the initial student.
    live          the student itself, at every step.
    ema           teacher = (1 - r) * teacher + r * student after every step, r = update_rate.
    trust_region  log q = (1 - r) log q_initial + r log q_live, normalised; both see the context.
    external      another checkpoint, never changed.
    snapshot      a copy of the student, taken again every `every` steps.
    """

    def __init__(
        self,
        kind: str,
        student: GPT,
        *,
        update_rate: float = 0.0,
        every: int = 1,
        external: GPT | None = None,
        copied: Callable[[GPT], GPT] = copy.deepcopy,
    ):
        if kind not in TEACHERS:
            raise ValueError(f"teacher: {kind!r}; allowed: {', '.join(TEACHERS)}")
        if not 0 <= update_rate <= 1:
            raise ValueError(f"teacher_update_rate: {update_rate}; allowed: 0 to 1")
        if every < 1:
            raise ValueError(f"teacher_every: {every}; allowed: 1 or more")
        if (kind == "external") != (external is not None):
            raise ValueError("teacher: external needs a checkpoint, and no other kind takes one")
        self.kind, self.student, self.update_rate, self.every = kind, student, update_rate, every
        self.model = student
        if kind != "live":  # live needs no second copy of the weights
            self.model = (external or copied(student)).requires_grad_(False)

    def parts(self) -> list[tuple[GPT, float]]:
        """The models whose log-probabilities are mixed, with their weights (sum 1)."""
        if self.kind == "trust_region":
            return [(self.model, 1 - self.update_rate), (self.student, self.update_rate)]
        return [(self.model, 1.0)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after optimiser step number `step`, counted from 1."""
        if self.kind == "ema":
            for ours, theirs in zip(self.model.parameters(), self.student.parameters()):
                ours.lerp_(theirs, self.update_rate)
        elif self.kind == "snapshot" and step % self.every == 0:
            self.model.load_state_dict(self.student.state_dict())


def geometric_mixture(logits: list[Tensor], weights: list[float]) -> Tensor:
    """Unnormalised log of prod_i q_i^w_i, (B, T, V); one distribution is returned as it is."""
    if len(logits) == 1:
        return logits[0]
    return sum(w * log_softmax(x) for x, w in zip(logits, weights))


# 8. Scoring a batch: student and teacher on the same completions ----------------------------------


@dataclass
class Prompts:
    """Left-padded prompts of a batch: ids (B, P) and how much of each row is padding (B,)."""

    ids: Tensor
    pad_count: Tensor

    def take(self, rows: Tensor) -> "Prompts":
        """Those of the given row indices."""
        return Prompts(self.ids[rows], self.pad_count[rows])

    def join(self, other: "Prompts", pad_id: int) -> "Prompts":
        """The rows of both, one below the other."""
        P = max(self.ids.shape[1], other.ids.shape[1])
        ids = [F.pad(x.ids, (P - x.ids.shape[1], 0), value=pad_id) for x in (self, other)]
        counts = [x.pad_count + P - x.ids.shape[1] for x in (self, other)]
        return Prompts(torch.cat(ids), torch.cat(counts))


SLICE_ROWS = 16  # of a batch of 64 or less; a larger one makes four slices


def hidden_by_length(model: GPT, prompts: Prompts, completions: Completions) -> Tensor:
    """`completion_hidden` of a batch, rows of like length together: padding costs as much as text.

    Returns (B, T, C) in the order of the batch; what stands behind a completion is arbitrary.
    """
    B, T = completions.ids.shape
    order = (completions.mask.sum(1) - prompts.pad_count).argsort()
    parts = []
    for rows in order.split(max(SLICE_ROWS, math.ceil(B / 4))):
        # Without the padding that all of them have: prompts (b, P - p), completions (b, t).
        p, t = prompts.pad_count[rows].min(), completions.mask[rows].sum(1).max()
        ids, pad_count = prompts.ids[rows, p:], prompts.pad_count[rows] - p
        states = completion_hidden(model, ids, pad_count, completions.ids[rows, :t])
        parts.append(F.pad(states, (0, 0, 0, T - int(t))))
    return torch.cat(parts)[order.argsort()]


def score(
    student: GPT,
    prompts: Prompts,
    completions: Completions,
    terms: Callable[..., dict[str, Tensor]],
    *,
    teacher: Teacher | None = None,
    teacher_prompts: Prompts | None = None,
    chunk_tokens: int = 0,
) -> dict[str, Tensor]:
    """What `terms(student_logits, teacher_logits, ids)` returns for every completion token, (B, T).

    Only positions inside the mask are computed; the rest is 0. With chunk_tokens > 0 the logits of
    that many tokens exist at a time and are computed again in the backward pass: with a large
    vocabulary they, not the weights, fill the memory. teacher_logits is None without a teacher.
    """
    mask = completions.mask
    hidden = [hidden_by_length(student, prompts, completions)[mask]]  # (N, C)
    heads, weights = [student.head], []
    if teacher is not None:
        with torch.no_grad():
            for model, weight in teacher.parts():
                states = hidden_by_length(model, teacher_prompts, completions)
                hidden.append(states[mask])
                heads.append(model.head)
                weights.append(weight)

    def on_chunk(ids: Tensor, *states: Tensor) -> dict[str, Tensor]:
        student_logits = heads[0](states[0])[None]  # (1, n, V)
        with torch.no_grad():
            others = [head(s)[None] for head, s in zip(heads[1:], states[1:])]
            teacher_logits = geometric_mixture(others, weights) if others else None
        return terms(student_logits, teacher_logits, ids[None])

    ids = completions.ids[mask]  # (N,)
    if not chunk_tokens or len(ids) <= chunk_tokens:
        chunks = [on_chunk(ids, *hidden)]
    else:
        pieces = zip(ids.split(chunk_tokens), *(h.split(chunk_tokens) for h in hidden))
        chunks = [checkpoint(on_chunk, *piece, use_reentrant=False) for piece in pieces]
    values = {name: torch.cat([c[name] for c in chunks], 1) for name in chunks[0]}  # (1, N) each
    return {n: v.new_zeros(mask.shape).masked_scatter(mask, v) for n, v in values.items()}


# 9. Diagnostics -----------------------------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    """-sum_v p(v) log p(v) per position, (B, T), in nats."""
    log_p = log_softmax(logits)
    return -(log_p.exp() * log_p).sum(-1)


def top_k_overlap(student_logits: Tensor, teacher_logits: Tensor, k: int) -> Tensor:
    """|top k of student and teacher in common| / k per position, (B, T), fraction. Source: [14]."""
    both = top_k_support(student_logits, teacher_logits, k, "intersection")
    return both.sum(-1) / k


def comparison_metrics(
    student_logits: Tensor, teacher_logits: Tensor, k: int = 4
) -> dict[str, Tensor]:
    """Detached (B, T) values that are logged for every method that has a teacher."""
    student_logits = student_logits.detach()
    return {
        "forward_kl": forward_kl(student_logits, teacher_logits),
        "reverse_kl": reverse_kl(student_logits, teacher_logits),
        "teacher_entropy": entropy(teacher_logits),
        "top_k_overlap": top_k_overlap(
            student_logits, teacher_logits, min(k, student_logits.shape[-1])
        ),
    }


@torch.no_grad()
def enumerated_entropy(
    model: GPT, prompt_ids: Tensor, *, max_new_tokens: int, end_id: int, least_mass: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy (B,) of whole completions, by going through them, and how far off it can be.

    H = sum over prefixes of P(prefix) H(next token | prefix). Prefixes less likely than least_mass
    are not followed; each can add at most P(prefix) log V per token that may still come.

    Args: prompt_ids (B, P) without padding; other arguments as in `sample`.
    Returns: entropies (B,) of the prefixes followed, and bounds (B,) of what is missing, in nats;
        the mass (B,) of the completions that were followed to their end, a fraction.
    """
    B, _ = prompt_ids.shape
    rows, owner = prompt_ids, torch.arange(B, device=prompt_ids.device)
    # P(prefix) of each row; float64, since thousands of small ones are added up.
    mass = torch.ones(B, dtype=torch.float64, device=prompt_ids.device)
    total, bound, ended = (torch.zeros_like(mass) for _ in range(3))
    for left in reversed(range(max_new_tokens)):
        states = torch.cat([model.hidden(part)[:, -1] for part in rows.split(1024)])  # (R, C)
        logits = model.head(states).double()
        total.index_add_(0, owner, mass * entropy(logits[None])[0])
        next_mass = mass[:, None] * log_softmax(logits).exp()  # (R, V)
        follow = next_mass > least_mass if left else torch.zeros_like(next_mass, dtype=torch.bool)
        stop = torch.zeros_like(follow)
        stop[:, end_id] = True
        follow = follow & ~stop
        ended.index_add_(0, owner, (next_mass * (stop | (left == 0))).sum(1))
        dropped = (next_mass * ~(follow | stop)).sum(1)
        bound.index_add_(0, owner, dropped * left * math.log(next_mass.shape[1]))
        row, token = follow.nonzero(as_tuple=True)
        if len(row) == 0:
            break
        rows = torch.cat((rows[row], token[:, None]), dim=1)
        owner, mass = owner[row], next_mass[row, token]
    return total, bound, ended


def mutual_information_bounds(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Per completion y, (B,) each, in nats: on average below and above I(y; c), for random c.

    log pi(y|c_1) - log mean_m pi(y|c_m), y drawn from pi(.|c_1). With c_1 in the mean the estimate
    is at most log M and on average too low; with the others alone it is on average too high.

    Args: log_probs (B, M) of y given M >= 2 independent contexts; column 0 is the one that y saw.
    """
    B, M = log_probs.shape
    own, others = log_probs[:, 0], log_probs[:, 1:]
    lower = own - (log_probs.logsumexp(1) - math.log(M))
    return lower, own - (others.logsumexp(1) - math.log(M - 1))


def binned_means(values: Tensor, bins: Tensor, count: int) -> tuple[list[float | None], list[int]]:
    """Mean of the values in each of `count` bins, and how many there are; None for an empty one.

    Args: values and bins of one shape; a bin below 0 leaves its value out.
    """
    picked = [values[bins == b] for b in range(count)]
    return [v.mean().item() if len(v) else None for v in picked], [len(v) for v in picked]


def flat_gradients(values: list[Tensor], model: nn.Module) -> list[Tensor]:
    """Gradient of each of some numbers in all weights of a model, as one vector each."""
    weights, last = list(model.parameters()), len(values) - 1
    gradients = [
        torch.autograd.grad(value, weights, retain_graph=i < last) for i, value in enumerate(values)
    ]
    return [torch.cat([part.flatten() for part in gradient]) for gradient in gradients]


def norm_and_cosine(vectors: Tensor) -> tuple[float, float]:
    """Mean norm of the rows (B, N), B >= 2, and mean cosine between two different ones."""
    B, _ = vectors.shape
    unit = F.normalize(vectors, dim=1)
    cosines = unit @ unit.T  # (B, B)
    mean_cosine = (cosines.sum() - cosines.trace()) / (B * (B - 1))
    return vectors.norm(dim=1).mean().item(), mean_cosine.item()


def estimator_laws(
    estimates: Tensor,
    probability: Tensor,
    truth: Tensor,
    counts: list[int],
    generator: torch.Generator,
    repeats: int = 128,
) -> dict[str, float | list[float]]:
    """How far an estimator of a gradient is from the truth, in units of the norm of the truth.

    bias: ||E g - truth||. std: sqrt(trace Cov g) of one sample. error: sqrt(bias^2 + std^2 / n) for
    every n in counts, the root of the expected squared error of the mean of n samples. cosine: its
    expected cosine to the truth, from `repeats` draws; limit_cosine: that of E g. All are exact but
    the cosine.

    Args: estimates (N, D), all that can occur; their probability (N,), sum 1; truth (D,), not 0.
    """
    mean = probability @ estimates  # (D,)
    scale = truth.norm()
    bias = ((mean - truth).norm() / scale).item()
    variance = (probability @ (estimates - mean).square().sum(1) / scale**2).item()
    cosines = []
    for n in counts:
        drawn = torch.multinomial(probability, repeats * n, True, generator=generator)
        shares = torch.zeros(repeats, len(probability), dtype=estimates.dtype)
        shares.scatter_add_(1, drawn.view(repeats, n), torch.full((repeats, n), 1 / n).to(shares))
        cosines.append(F.cosine_similarity(shares @ estimates, truth, dim=-1).mean().item())
    return {
        **{"bias": bias, "std": math.sqrt(variance), "cosine": cosines},
        "error": [math.sqrt(bias**2 + variance / n) for n in counts],
        "limit_cosine": F.cosine_similarity(mean, truth, dim=0).item(),
    }


def signal_and_noise(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """||E g||^2 and trace Cov g, both unbiased, from n >= 2 independent estimates (n, D) of g.

    The squared norm of a mean of n holds 1/n of the trace, which is taken off: a signal that
    drowns in noise may come out below 0.
    """
    noise = gradients.var(0).sum()
    return gradients.mean(0).square().sum() - noise / len(gradients), noise


def cosine_of_means(a: Tensor, b: Tensor) -> float:
    """Cosine of the true means of independent estimates a (n, D) and b (m, D), noise corrected.

    Noise makes the cosine of two sample means too small, by the roots of their shares of signal. A
    share counts as at least 1/2: where less is known the correction would be noise itself.
    """
    cosine = F.cosine_similarity(a.mean(0), b.mean(0), dim=0)
    for gradients in (a, b):
        signal, noise = signal_and_noise(gradients)
        total = signal + noise / len(gradients)  # the squared norm of the sample mean
        cosine = cosine / (signal / total.clamp(min=1e-30)).clamp(min=0.5).sqrt()
    return cosine.item()


# 10. Hugging Face weights -------------------------------------------------------------------------

HF_FAMILIES = {  # architecture: model_type. SmolLM2 is a Llama, the R1 distillations Llama or Qwen2
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
HF_NAMES = {  # ours: theirs; several stand behind one another in one fused product
    "embedding": ("model.embed_tokens",),
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "attention.out": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}
HF_FIELDS = {  # of GPTConfig: of config.json
    "vocab_size": "vocab_size",
    "n_layers": "num_hidden_layers",
    "width": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "tied_embeddings": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
    "context_window": "max_position_embeddings",
}
# No pickles, no code, no second copy of the weights in another layout.
HF_DOWNLOADS = ["*.json", "model*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.jinja"]


def load_hf(
    folder_or_name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[GPT, "PreTrainedTokenizerBase"]:
    """Model and tokenizer of a checkpoint: a local folder, or a name to download from the hub.

    Reads config.json and safetensors, single or sharded; runs no code and opens no pickle of the
    checkpoint. Weights are converted to dtype, rotary tables are computed in float32.
    Raises ValueError, one line: whatever is missing, surplus, broken, or would change the numbers.
    """
    folder = Path(folder_or_name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        with named_errors(f"{folder_or_name}: no such folder, and no download of that name"):
            folder = Path(snapshot_download(str(folder_or_name), allow_patterns=HF_DOWNLOADS))
    config = hf_config(folder)
    tokenizer = hf_tokenizer(folder, config.vocab_size)
    model = empty_gpt(config, dtype=dtype, device=device)
    copy_hf_weights(folder, hf_tensors(config, model.state_dict()))
    return model, tokenizer


def empty_gpt(
    config: GPTConfig, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> GPT:
    """A model to load weights into; until then they are what happened to be in memory."""
    with torch.device("meta"):  # no time and memory for initial weights
        model = GPT(config)
    model = model.to(dtype).to_empty(device=device)
    if config.tied_embeddings:
        model.head.weight = model.embedding.weight  # to_empty has made two of the one
    return model


@contextlib.contextmanager
def named_errors(what: str) -> Iterator[None]:
    """Any error inside becomes a ValueError of one line that begins with `what`.

    For calls into libraries that meet broken input with a dozen classes of page-long errors.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} ({' '.join(str(error).split())[:300]})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming the file."""
    with named_errors(f"{path}: not readable as JSON"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {type(value).__name__}; allowed: a JSON object")
    return value


def hf_config(folder: Path) -> GPTConfig:
    """The configuration of a checkpoint; transformers fills in what its config.json leaves out.

    Raises ValueError naming file, field, value and what is allowed, for every field that would
    change the numbers in a way that GPT does not know.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    files = {"config.json": read_json(path)}
    if (folder / "generation_config.json").exists():
        files["generation_config.json"] = read_json(folder / "generation_config.json")

    def require(field: str, value: Any, allowed: tuple) -> None:
        if value not in allowed:
            raise ValueError(
                f"{path}: {field} {value!r}; allowed: {' or '.join(map(repr, allowed))}"
            )

    raw = files["config.json"]
    require("architectures", raw.get("architectures"), tuple([name] for name in HF_FAMILIES))
    family = HF_FAMILIES[raw["architectures"][0]]
    require("model_type", raw.get("model_type"), (family,))
    require("quantization_config", raw.get("quantization_config"), (None,))
    layers = raw.get("num_hidden_layers")
    if isinstance(layers, int) and layers > 1000:  # transformers makes a list of that length
        raise ValueError(f"{path}: num_hidden_layers {layers}; allowed: up to 1000")
    with named_errors(f"{path}: refused by transformers"):
        c = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    require("hidden_act", c.hidden_act, ("silu", "swish"))
    require("sliding_window", getattr(c, "sliding_window", None), (None,))
    for layer_type in getattr(c, "layer_types", None) or ():
        require("layer_types", layer_type, ("full_attention",))
    rope = dict(c.rope_parameters)
    require("rope_type", rope.get("rope_type"), ("default", *ROPE_SCALINGS))
    require("partial_rotary_factor", rope.pop("partial_rotary_factor", None), (None, 1.0))
    if rope["rope_type"] == "yarn" and rope["factor"] is None:
        rope["factor"] = c.max_position_embeddings / rope["original_max_position_embeddings"]
    theta = rope.pop("rope_theta")
    scaling = None if rope["rope_type"] == "default" else rope
    with named_errors(f"{path}: refused"):
        config = gpt_config(c, family, rope_theta=theta, rope_scaling=scaling, hf_files=files)
    with named_errors(f"{path}: rope parameters {rope} with rope_theta {theta}"):
        cosines, sines = rope_table(config, 2, torch.zeros(1))
        if not (cosines.isfinite().all() and sines.isfinite().all()):
            raise ValueError("not finite")
    return config


def gpt_config(c: Any, family: str, **rest: Any) -> GPTConfig:
    """Our names for the fields of a configuration object of transformers."""
    attention_bias = family in ("llama", "qwen3") and c.attention_bias
    return GPTConfig(
        head_dim=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        qkv_bias=attention_bias or family == "qwen2",
        out_bias=attention_bias,
        mlp_bias=family == "llama" and c.mlp_bias,
        qk_norm=family == "qwen3",
        **{ours: getattr(c, theirs) for ours, theirs in HF_FIELDS.items()},
        **rest,
    )


def hf_tokenizer(folder: Path, vocab_size: int) -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder. Raises ValueError if an id of it has no row in the embedding."""
    from transformers import AutoTokenizer

    # Without these files transformers hands out an empty tokenizer of the family.
    known = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).exists() for name in known):
        raise ValueError(f"{folder}: no tokenizer; allowed: a folder with {' or '.join(known)}")
    with named_errors(f"{folder}: no usable tokenizer"):
        options = {"trust_remote_code": False, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"{folder}: tokenizer id {largest}; allowed: below vocab_size {vocab_size}"
        )
    return tokenizer


def hf_end_ids(config: GPTConfig, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's own first, then those of the checkpoint.

    Chat models often have several, in generation_config.json or else config.json, and write any.
    """
    files = config.hf_files or {}
    fields = files.get("generation_config.json") or files.get("config.json", {})
    ids = fields.get("eos_token_id")
    listed = ids if isinstance(ids, list) else [ids]
    return tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *listed) if i is not None))


def hf_tensors(config: GPTConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of GPT under the names of transformers: views, fused products in their parts.

    Writing into the views loads a checkpoint, reading them saves one. A tied head is left out.
    """
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    sizes = {"attention.qkv": [queries, keys, keys], "mlp.gate_up": [config.mlp_width] * 2}
    tensors = {}
    for name, tensor in weights.items():
        layer, module, kind = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(\w+)", name).groups()
        if module == "head" and config.tied_embeddings:
            continue
        prefix = f"model.layers.{layer}." if layer else ""
        parts = tensor.split(sizes.get(module, [len(tensor)]))
        tensors |= {
            f"{prefix}{part}.{kind}": rows
            for part, rows in zip(HF_NAMES[module], parts, strict=True)
        }
    return tensors


def hf_weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises ValueError if one, or all, are missing."""
    files, index = [folder / "model.safetensors"], folder / "model.safetensors.index.json"
    if not files[0].exists() and index.exists():
        with named_errors(f"{index}: broken"):
            files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    if missing := [file.name for file in files if not file.exists()]:
        advice = (
            "; .bin files are pickles, which can run code, and are not opened: convert what you"
            " trust with AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
        advice = advice if list(folder.glob("*.bin")) else ""
        raise ValueError(f"{folder}: no {', '.join(missing)}{advice}")
    return files


def copy_hf_weights(folder: Path, into: dict[str, Tensor]) -> None:
    """Fills the tensors from the safetensors files of a folder.

    Raises ValueError naming the file if one is broken, and every tensor that is missing, surplus,
    of another shape, or of a type that is not a plain floating-point number.
    """
    from safetensors import safe_open

    missing, wrong, head = set(into), [], None
    for path in hf_weight_files(folder):
        with named_errors(f"{path}: not a complete safetensors file"):
            file = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118 (not a dict)
            with named_errors(f"{path}: {name} is not readable"):
                tensor = file.get_tensor(name)
            target = into.get(name)
            if target is None and name == "lm_head.weight":
                head = tensor  # stored although tied; compared below
            elif target is None and not name.endswith("rotary_emb.inv_freq"):  # of early Llamas
                wrong.append(f"{name} is surplus")
            elif target is not None:
                missing.discard(name)
                if tensor.shape != target.shape:
                    wrong.append(f"{name} is {tuple(tensor.shape)}, not {tuple(target.shape)}")
                elif tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                    wrong.append(f"{name} is {tensor.dtype}")
                else:
                    target.copy_(tensor)
    wrong += [f"{name} is missing" for name in sorted(missing)]
    if head is not None and not wrong:
        embedding = into["model.embed_tokens.weight"]
        if not torch.equal(head.to(embedding), embedding):
            wrong.append("lm_head.weight is not the embedding, but tie_word_embeddings is true")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{folder}: tensors do not fit: {'; '.join(wrong[:8])}{more}")


def save_hf(model: GPT, tokenizer: "PreTrainedTokenizerBase | None", folder: str | Path) -> None:
    """Writes a checkpoint that transformers, vLLM and lm-eval load, in place of one in `folder`.

    All is written to a scratch folder beside it and renamed at the end: a save that fails leaves
    what was there; one that is killed between two renames leaves it as `old` in the scratch folder.
    Raises ValueError if `folder` holds something that is no checkpoint, OSError if writing fails.
    """
    from safetensors.torch import save_file

    folder = Path(folder).resolve()
    if folder.is_file() or (any(folder.glob("*")) and not any(folder.glob("model*.safetensors"))):
        raise ValueError(f"{folder}: allowed: a new folder, an empty one, or an older checkpoint")
    files = hf_files(model, tokenizer)
    tensors = hf_tensors(model.config, model.state_dict())
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True
    ) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        try:
            save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
            for name, fields in files.items():
                (new / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(new)
        except Exception as error:  # of three libraries, of as many classes
            raise OSError(f"{folder}: not saved, nothing there was changed ({error})") from error
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:  # an interrupt as well
            if old.exists():
                old.rename(folder)
            raise


def hf_files(model: GPT, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, dict[str, Any]]:
    """The JSON files to save: those it was loaded with, or a description of our own block."""
    config = model.config
    files = dict(config.hf_files or {"config.json": hf_fields(config, tokenizer)})
    fields = {k: v for k, v in files["config.json"].items() if k not in ("dtype", "torch_dtype")}
    # The older of the two names is read by old and new releases.
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    files["config.json"] = fields | {"torch_dtype": dtype}
    ids = {k: fields[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in fields}
    return {"generation_config.json": {"_from_model_config": True} | ids} | files


def hf_fields(config: GPTConfig, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
    """config.json of a model that was not loaded from one: the family that has this block."""
    plain = config.qkv_bias == config.out_bias
    family = "qwen3" if config.qk_norm else "llama" if plain else "qwen2"
    if config.out_bias > config.qkv_bias or (
        family != "llama" and (config.mlp_bias or (family == "qwen3" and not plain))
    ):
        raise ValueError("biases: no family has this mix; allowed: that of Llama, Qwen2 or Qwen3")
    token_ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "architectures": [name for name, kind in HF_FAMILIES.items() if kind == family],
        "model_type": family,
        "hidden_act": "silu",
        "head_dim": config.head_dim,
        "attention_bias": config.out_bias,
        "mlp_bias": config.mlp_bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        **{theirs: getattr(config, ours) for ours, theirs in HF_FIELDS.items()},
        **{name: getattr(tokenizer, name, None) for name in token_ids},
    }
