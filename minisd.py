"""minisd: self-distillation of language models, every loss next to its formula, in one file.

A model is its own teacher. The teacher sees privileged context (a solution, an answer, feedback, a
rule) before the prompt; the student does not, and is trained to match the teacher on completions
that the student sampled itself. `toy_tasks.py` has a world to try this in, `train_gpt.py` the loop.

    1 model   2 sampling   3 log-probabilities and means   4 divergences   5 credit
    6 token weights, advantages   7 policy gradient   8 teachers   9 one batch: `rollout`
    10 one step: `score`, `loss_of`, `step`  <- start here   11 methods

Whatever papers vary is a row of a table: DIVERGENCES, CREDITS, TOKEN_WEIGHTS, ADVANTAGES, TEACHERS,
METHODS. A new idea is one function and one row; `lab/extra_losses.py` has more.

Shapes: B sequences = P prompts x G completions each, T positions, V vocabulary, C width, H heads,
D head dimension, S cached positions, N completion tokens of a batch. Log-probabilities, divergences
and losses are in nats. p is the student, q the teacher.

References (arXiv): [1] SDPO 2601.20802. [2] OPSD 2601.18734. [3] GRPO 2402.03300. [4] Dr. GRPO
2503.20783. [5] DAPO 2503.14476. [6] GKD 2306.13649. [7] grouped-query attention 2305.13245.
[8] rotary positions 2104.09864. [9] SwiGLU 2002.05202. [10] Zhu et al. 2605.11182. [11] Fu et al.
2603.25562. [12] PPO 1707.06347. [13] joschu.net/blog/kl-approx.html.
"""

import copy
import functools
import math
import random
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


# 1. Model -----------------------------------------------------------------------------------------
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
    qkv_bias: bool = False  # biases and qk_norm: for published checkpoints
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of every query and key head before the rotation
    rope_theta: float = 10_000.0  # [8]
    rope_frequencies: tuple[float, ...] | None = None  # instead: radians per position, by pair
    rope_factor: float = 1.0  # of cosines and sines, where a checkpoint scales its positions
    norm_eps: float = 1e-6
    init_std: float = 0.1  # at width 64; the 0.02 of GPT-2, for widths near 1000, learns far slower
    head_std: float = 0.02  # GPT-2; small, so that an untrained model's loss is log(vocab_size)
    context_window: int = 2048  # what the weights are meant for; callers check, the model does not

class KVCache:
    """Keys and values of all earlier positions, allocated once; `length` positions are filled."""
    def __init__(self, model: "GPT", pad_count: Tensor, capacity: int):
        c, like, B = model.config, model.embed_tokens.weight[0], len(pad_count)
        if torch.is_autocast_enabled(like.device.type):
            like = like.to(torch.get_autocast_dtype(like.device.type))
        shape = (c.n_layers, B, c.n_kv_heads, capacity, c.head_dim)
        self.keys, self.values, self.length = like.new_empty(shape), like.new_empty(shape), 0
        padding = torch.arange(capacity, device=like.device) < pad_count[:, None]  # (B, S)
        self.key_bias = like.new_zeros(B, 1, 1, capacity)  # added to the scores: hides the padding
        self.key_bias.masked_fill_(padding[:, None, None], torch.finfo(like.dtype).min)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.key_bias = self.key_bias[rows]

class RMSNorm(nn.RMSNorm):
    """x / rms(x), rounded to the dtype of x, *then* times weight, as checkpoints expect."""
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, None, self.eps) * self.weight

Rope = tuple[Tensor, Tensor]  # cosines and sines (T, D) of `rope_table`

class Attention(nn.Module):
    """Causal self-attention with rotary positions and, optionally, fewer key heads than heads."""
    def __init__(self, config: GPTConfig):
        super().__init__()
        C, D, H, Hkv = config.width, config.head_dim, config.n_heads, config.n_kv_heads
        self.head_dim = D
        self.q_proj = nn.Linear(C, H * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(C, Hkv * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(C, Hkv * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(H * D, C, bias=config.out_bias)
        self.q_norm = RMSNorm(D, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(D, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: Rope, cache: KVCache | None, layer: int) -> Tensor:
        B, T, _ = x.shape
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (f(x).view(B, T, -1, self.head_dim).transpose(1, 2) for f in projections)
        q, k, bias = rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope), None
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, Hkv, S, D)
            S = k.shape[2]
            bias = cache.key_bias[..., :S]
            if T > 1:
                future = bias.new_full((T, S), torch.finfo(bias.dtype).min).triu(1 + S - T)
                bias = bias + future  # (B, 1, T, S)
        if T == 1:  # query heads of one key head become its rows: in bfloat16 5 times faster
            q = q.reshape(B, k.shape[1], -1, self.head_dim)  # (B, Hkv, H / Hkv, D)
        y = F.scaled_dot_product_attention(
            q, k, v, bias, is_causal=bias is None, enable_gqa=q.shape[1] > k.shape[1])  # as q
        return self.o_proj(y.reshape(B, -1, T, self.head_dim).transpose(1, 2).reshape(B, T, -1))

def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions [8]: turns the pairs (i, i + D/2) of (B, H, T, D) by `rope_table` (T, D)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((right, left), dim=-1) * sin

class MLP(nn.Module):
    """SwiGLU [9]: down(silu(gate(x)) * up(x))."""
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); names as in published checkpoints."""
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: Rope, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))

class GPT(nn.Module):
    """A decoder-only transformer of today's form: RMSNorm, rotary positions, SwiGLU."""
    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.width, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                branch = name.endswith(("o_proj.weight", "down_proj.weight"))  # as GPT-2
                std = config.init_std / math.sqrt(2 * config.n_layers if branch else 1)
                std = config.head_std if weight is self.lm_head.weight else std
                nn.init.normal_(weight, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Final states (B, T, C) of ids (B, T), right-padded; with a cache the next T positions."""
        start = cache.length if cache is not None else 0
        x, end = self.embed_tokens(ids), start + ids.shape[1]  # (B, T, C)
        capacity = max(256, 1 << end.bit_length())  # few different tables
        cos, sin = rope_table(self.config, capacity, x.device, x.dtype)
        for layer, block in enumerate(self.layers):
            x = block(x, (cos[start:end], sin[start:end]), cache, layer)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:  # logits (B, T, V)
        return self.lm_head(self.hidden(ids, cache))

@functools.lru_cache(maxsize=8)
def rope_table(config: GPTConfig, length: int, device: torch.device, dtype: torch.dtype) -> Rope:
    """Cosines and sines (length, D) of position times frequency, as `rotate` takes them."""
    # In float32 whatever the weights are: bfloat16 cannot tell position 257 from 256.
    pairs = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (pairs / config.head_dim)  # (D/2,)
    if config.rope_frequencies is not None:
        frequencies = frequencies.new_tensor(config.rope_frequencies)
    angles = torch.arange(length, device=device).float()[:, None] * frequencies
    cos, sin = angles.cos() * config.rope_factor, angles.sin() * config.rope_factor
    # The first half of sin is negated here: cheaper than negating half of x at every layer.
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)

# 2. Sampling --------------------------------------------------------------------------------------
@dataclass
class Prompts:
    """Left-padded prompts of a batch: ids (B, P) and how much of each row is padding (B,)."""
    ids: Tensor
    pad_count: Tensor

    @classmethod
    def of(cls, rows: list[list[int]], pad_id: int, device="cpu") -> "Prompts":
        if not all(rows):
            raise ValueError("prompt: empty; allowed: at least one token (it predicts the first)")
        T = max(map(len, rows))
        padding = [T - len(row) for row in rows]
        ids = [[pad_id] * n + row for n, row in zip(padding, rows)]
        return cls(torch.tensor(ids, device=device), torch.tensor(padding, device=device))

    def take(self, rows: Tensor) -> "Prompts":  # without the padding that all of them have
        padding = self.pad_count[rows].min()
        return Prompts(self.ids[rows, padding:], self.pad_count[rows] - padding)

@dataclass
class Completions:
    """Sampled completions: all tensors (B, T), right-padded; mask is True up to the end token."""
    ids: Tensor
    mask: Tensor
    token_log_probs: Tensor  # at temperature 1, whatever the sampling temperature was, in nats

    @classmethod
    def of(cls, rows: list[list[int]], pad_id: int, device="cpu", log_probs=None) -> "Completions":
        """Completions of token ids with their end token; log_probs: theirs, else 0."""
        T, mask = max(map(len, rows)), [[True] * len(row) for row in rows]
        columns = (rows, pad_id), (mask, False), (log_probs or [[0.0] * len(r) for r in rows], 0.0)
        padded = ([row + [fill] * (T - len(row)) for row in x] for x, fill in columns)
        return cls(*(torch.tensor(x, device=device) for x in padded))

    def take(self, rows: Tensor) -> "Completions":  # without the padding that all of them have
        T = int(self.mask[rows].sum(1).max())
        return Completions(*(x[rows, :T] for x in (self.ids, self.mask, self.token_log_probs)))

# Who writes or teaches: sum_i a_i log p_i, as (a_i, model, prompts); one model has the factor 1.
Terms = list[tuple[float, GPT, Prompts]]
CHECK_EVERY = 4  # tokens between looks at who has finished; each look waits for the device

def pick_token(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Token ids (B,) by inverting the cumulative distribution of logits (B, V) at uniform (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = F.softmax(logits / temperature, dim=-1).cumsum(-1)
    target = uniform * (1 - 1e-6) * cumulative[:, -1]  # below the total in float32, too
    chosen = torch.searchsorted(cumulative, target[:, None], right=True)
    return chosen[:, 0].clamp(max=logits.shape[-1] - 1)  # nan leads to V; the loss will tell

@torch.no_grad()
def sample(
    terms: Terms, *, max_new_tokens: int, end_ids: tuple[int, ...], pad_id: int,
    temperature: float = 1.0, generator: torch.Generator | None = None,
    uniforms: Tensor | None = None, pick=pick_token,
) -> Completions:
    """Completions of the terms' prompts, each row until an end token or the length limit.

    temperature 0 is greedy. The uniforms (B, max_new_tokens) are drawn in advance: no row depends
    on which others have ended. pick: chooses the tokens, such as `lab.evaluation.nucleus(0.9)`.
    """
    if temperature < 0:
        raise ValueError(f"temperature: {temperature}; allowed: 0 or more")
    coefficients, models, prompts = zip(*terms)
    B, device = len(prompts[0].ids), prompts[0].ids.device
    if uniforms is None:
        uniforms = torch.rand(B, max_new_tokens, generator=generator, device=device)
    ids = torch.full((B, max_new_tokens), pad_id, device=device)
    log_probs = torch.zeros(B, max_new_tokens, device=device)
    ends = torch.tensor(end_ids, device=device)
    rows = torch.arange(B, device=device)  # those still being written
    done = rows < 0
    states, caches = [], []
    for m, p in zip(models, prompts):  # the prompt of a group is read once
        once, of = torch.cat((p.pad_count[:, None], p.ids), 1).unique(dim=0, return_inverse=True)
        caches.append(KVCache(m, once[:, 0], p.ids.shape[1] + max_new_tokens))
        states.append(m.hidden(once[:, 1:], caches[-1])[of, -1])
        caches[-1].keep(of)
    for t in range(max_new_tokens):
        logits = log_linear([m.lm_head(x) for m, x in zip(models, states)], coefficients).float()
        token = pick(logits, uniforms[rows, t], temperature)  # (b,)
        ids[rows, t] = token
        log_probs[rows, t] = F.log_softmax(logits, dim=-1).gather(1, token[:, None])[:, 0]
        done |= torch.isin(token, ends)
        if t % CHECK_EVERY == CHECK_EVERY - 1:
            active = (~done).nonzero()[:, 0]
            if len(active) == 0:
                break
            if len(active) <= 0.75 * len(rows):
                for cache in caches:
                    cache.keep(active)
                rows, done, token = rows[active], done[active], token[active]
        if t + 1 < max_new_tokens:
            states = [m.hidden(token[:, None], cache)[:, -1] for m, cache in zip(models, caches)]
    # A finished row goes on until it is dropped; what it wrote behind its end token goes here.
    mask = F.pad(torch.isin(ids, ends), (1, -1)).cumsum(1) == 0
    ids, log_probs = ids.masked_fill(~mask, pad_id), log_probs.masked_fill(~mask, 0.0)
    return Completions(ids, mask, log_probs).take(torch.arange(B, device=device))

def log_linear(logits: list[Tensor], coefficients: tuple[float, ...]) -> Tensor:
    """Logits (..., V) of the distribution proportional to prod_i q_i^a_i; one term is as it is."""
    if len(logits) == 1 and coefficients[0] == 1:
        return logits[0]
    return sum(a * log_softmax(x) for a, x in zip(coefficients, logits))

# 3. Log-probabilities and means -------------------------------------------------------------------
LOG_PROB_FLOOR = -1e5  # nats; stands for log 0, so that 0 * log 0 is 0 and its gradient is finite

def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities (..., V) in nats, in float32 or better, never below LOG_PROB_FLOOR."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if logits.numel() and not logits.amax(-1).isfinite().all():
        raise FloatingPointError("logits: nan, inf or only -inf in a row; allowed: a finite entry")
    return F.log_softmax(logits, dim=-1).clamp(min=LOG_PROB_FLOOR)

def token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of each token, (B, T), in nats; logits (B, T, V) at t predict token t."""
    if ids.shape != logits.shape[:2]:
        raise ValueError(f"ids: expected {tuple(logits.shape[:2])}, got {tuple(ids.shape)}")
    return log_softmax(logits).gather(-1, ids[..., None])[..., 0]  # (B, T)

def entropy(logits: Tensor) -> Tensor:
    """-sum_v p(v) log p(v) per position, (B, T), in nats."""
    log_p = log_softmax(logits)
    return -(log_p.exp() * log_p).sum(-1)

# (how much each token counts (B, T), length limit) -> (weights (B, T), total): a mean is
# sum(values * weights) / total. Rows of the weights make micro-batches exact.
REDUCTIONS = {
    "token_mean": lambda counts, limit: (counts, counts.sum()),  # DAPO [5]
    "sequence_mean": lambda counts, limit: (  # of the means within each completion: GRPO [3]
        counts / counts.sum(1, keepdim=True).clamp(min=1e-12), counts.any(1).sum().float()),
    "constant": lambda counts, limit: (counts, counts.new_tensor(len(counts) * limit)),  # [4]
}

def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of values times weights, (B, T) each; where the weight is 0 no value matters."""
    return (values.masked_fill(weights == 0, 0.0) * weights.to(values.dtype)).sum()

# 4. Divergences: logits (B, T, V) -> a value per position (B, T), gradient for the student alone --
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

    The student must give mass wherever the teacher does. Over several contexts its minimiser is the
    arithmetic mixture of the teachers. Source: [2] v3; GKD [6] beta = 0.
    """
    log_p, log_q = student_and_teacher(student_logits, teacher_logits)
    return kl(log_q, log_p)

def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher) per position, (B, T), in nats: sum_v p(v) log(p(v) / q(v)).

    The student must avoid what the teacher avoids. Over several contexts its minimiser is the
    normalised geometric mean of the teachers. Source: [1] eq. 1; GKD [6] beta = 1.
    """
    log_p, log_q = student_and_teacher(student_logits, teacher_logits)
    return kl(log_p, log_q)

def jensen_shannon(student_logits: Tensor, teacher_logits: Tensor, teacher_weight=0.5) -> Tensor:
    """w KL(teacher || m) + (1-w) KL(student || m) per position, (B, T), in nats, m = w q + (1-w) p.

    w = teacher_weight: divided by w it tends to forward_kl for w -> 0, divided by 1-w to reverse_kl
    for w -> 1. Source: [2] eq. 7; [1] and [6] write the weights the other way round.
    """
    w = teacher_weight
    if not 0 < w < 1:
        raise ValueError(f"teacher_weight: {w}; allowed: strictly between 0 and 1")
    log_p, log_q = student_and_teacher(student_logits, teacher_logits)
    log_m = torch.logaddexp(log_q + math.log(w), log_p + math.log(1 - w))
    return w * kl(log_q, log_m) + (1 - w) * kl(log_p, log_m)

def is_top(logits: Tensor, k: int) -> Tensor:  # which tokens are the k likeliest, (B, T, V) bool
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(k).indices, True)

def bucket(log_p: Tensor, log_q: Tensor, S: Tensor) -> Tensor:
    """All tokens outside S (B, T, V) as a single one: the KL of a coarsened distribution [1]."""
    outside = (x.masked_fill(S, LOG_PROB_FLOOR).logsumexp(-1) for x in (log_p, log_q))
    rest_p, rest_q = (x.clamp(min=LOG_PROB_FLOOR) for x in outside)
    inside = (log_p.exp() * (log_p - log_q)).masked_fill(~S, 0.0).sum(-1)
    return inside + rest_p.exp() * (rest_p - rest_q)

SUPPORTS = {  # S, from the k likeliest tokens of student and teacher, (B, T, V) bool each
    "student": lambda p, q: p, "teacher": lambda p, q: q,
    "union": torch.logical_or, "intersection": torch.logical_and,
}
TAILS = {"bucket": bucket}  # (log p, log q, S) -> (B, T); lab/extra_losses.py adds three others

def top_k_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, k: int, *, support="student", tail="bucket"
) -> Tensor:
    """KL(student || teacher) per position, (B, T), in nats, from k likely tokens S; see TAILS."""
    for name, value, known in (("support", support, SUPPORTS), ("tail", tail, TAILS)):
        if value not in known:
            raise ValueError(f"{name}: {value!r}; allowed: {', '.join(known)}")
    if not 1 <= k <= student_logits.shape[-1]:
        raise ValueError(f"top_k: {k}; allowed: 1 to the vocabulary {student_logits.shape[-1]}")
    log_p, log_q = student_and_teacher(student_logits, teacher_logits)
    return TAILS[tail](log_p, log_q, SUPPORTS[support](is_top(log_p, k), is_top(log_q, k)))

DIVERGENCES = {  # (student logits, teacher logits, method) -> (B, T)
    "forward_kl": lambda s, t, m: forward_kl(s, t),
    "reverse_kl": lambda s, t, m: reverse_kl(s, t),
    "jensen_shannon": lambda s, t, m: jensen_shannon(s, t, m.teacher_weight),
    "top_k_reverse_kl": lambda s, t, m: top_k_reverse_kl(
        s, t, m.top_k, support=m.top_k_support, tail=m.top_k_tail),
}

# 5. Credit: from values per position to a loss per position ---------------------------------------
def sampled_token_surrogate(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Only its gradient is right, (B, T): on average, over student samples, that of the reverse KL.
    sg[log p(y_t) - log q(y_t)] * log p(y_t). Source: Lu et al. 2025, as an advantage."""
    return (student_log_probs - teacher_log_probs).detach() * student_log_probs

def sequence_level_surrogate(
    divergence: Tensor, student_log_probs: Tensor, mask: Tensor, discount: float
) -> Tensor:
    """Only its gradient is right: per position (B, T); summed over a row, that of the sequence KL.

    KL_t + sg[sum_{t'>t} discount^(t'-t) KL_t'] * log p(y_t), KL_t the divergence at t. discount 1:
    unbiased; 0: without what a token does to later prefixes. Source: [1] v2 app. A.1, [11].
    """
    return divergence + future_sum(divergence.detach(), mask, discount) * student_log_probs

def future_sum(values: Tensor, mask: Tensor, discount: float) -> Tensor:
    """sum_{t' > t} discount^(t'-t) values_t' over the masked tokens of each row, (B, T)."""
    steps = torch.arange(values.shape[1], device=values.device)
    ahead = (steps - steps[:, None]).clamp(min=0).to(values.dtype)  # (T, T): t' - t
    return values.masked_fill(~mask, 0.0) @ (discount**ahead).triu(1).T

CREDITS = {  # (x: what `score` returns, (B, T) each; method) -> (B, T)
    "token": lambda x, m: x["divergence"],
    "sequence": lambda x, m: sequence_level_surrogate(
        x["divergence"], x["student_log_probs"], x["mask"], m.discount),
    "sampled": lambda x, m: sampled_token_surrogate(x["student_log_probs"], x["teacher_log_probs"]),
    "imitation": lambda x, m: -x["student_log_probs"],
}

# 6. Token weights and advantages of a Batch; scores(readings) gives its `score`, if called --------
def group_advantages(rewards: Tensor, *, normalise: str = "std") -> Tensor:
    """(r - mean) / std, GRPO [3], or r - mean, Dr. GRPO [4], in each group of rewards (P, G)."""
    G = rewards.shape[1]
    if G < 2 or normalise not in ("std", "mean"):
        raise ValueError(f"group_size: {G}, normalise: {normalise!r}; allowed: above 1; std, mean")
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)  # exactly 0, whatever is rounded
    centred = (rewards - rewards.mean(1, keepdim=True)).masked_fill(equal, 0.0)
    std = rewards.std(1, keepdim=True).clamp(min=1e-6)  # the floor guards 0 / 0 alone
    return centred / std if normalise == "std" else centred

TOKEN_WEIGHTS = {  # (batch, scores, method) -> (B, T) or (B, 1): weight in the distillation
    "all": lambda batch, scores, m: batch.completions.mask,
    "correct_only": lambda batch, scores, m: (batch.rewards == 1)[:, None],
}
ADVANTAGES = {  # (batch, scores, method) -> (B, T) or (B, 1)
    "group": lambda batch, scores, m: group_advantages(batch.by_group()).view(-1, 1),
    "group_without_std": lambda batch, scores, m: group_advantages(
        batch.by_group(), normalise="mean").view(-1, 1),
}

# 7. Policy gradient -------------------------------------------------------------------------------
MAX_LOG_RATIO = 20.0  # nats; the exponential of more overflows on the way back, and 0 * inf is nan

def clipped_policy_surrogate(
    student_log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_low=.2, clip_high=.2
) -> Tensor:
    """Only its gradient is right: the negated clipped objective of PPO per token, (B, T).

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = p(y_t) / p_old(y_t), advantages A (B, T)
    or (B, 1). Source: [12] eq. 7; clip_high > clip_low is DAPO's clip-higher [5].
    """
    A = advantages.detach()
    ratio = (student_log_probs - old_log_probs.detach()).clamp(max=MAX_LOG_RATIO).exp()
    return -torch.minimum(ratio * A, ratio.clamp(1 - clip_low, 1 + clip_high) * A)

def k3_kl(student_log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """ref/p - log(ref/p) - 1, an estimate of KL(student || reference) (B, T), nats, never negative.
    Its *gradient* is that of the forward KL(reference || student). Source: [3] eq. 4, [13]."""
    log_ratio = (reference_log_probs.detach() - student_log_probs).clamp(max=MAX_LOG_RATIO)
    return log_ratio.exp() - log_ratio - 1

def truncated_importance_weight(log_probs: Tensor, old: Tensor, cap: float = 2.0) -> Tensor:
    """min(p(y_t) / p_old(y_t), cap) (B, T), without gradient. Source: [1] code."""
    return (log_probs - old).detach().exp().clamp(max=cap)

# 8. Teachers --------------------------------------------------------------------------------------
TEACHERS = {  # whose weights: the rate r of copy = (1 - r) * copy + r * student after every step
    "frozen": lambda method, step: 0.0,
    "ema": lambda method, step: method.teacher_update_rate,
    "snapshot": lambda method, step: float(step % method.teacher_every == 0),
    "external": lambda method, step: 0.0,  # another checkpoint instead of a copy
    "live": None,  # the student itself, without a copy
}
TARGETS = {"trust_region": lambda m: (  # teachers of several terms
    (1 - m.teacher_update_rate, "frozen", m.context), (m.teacher_update_rate, "live", m.context))}

class Teacher:
    """The student's target: log Q = sum_i a_i log pi_i(. | context_i, prompt) + const.

    Its terms are `method.terms`, its own weights `copies`: all that a saved state must hold.
    """
    def __init__(self, method: "Method", student: GPT, *, external=None, copied=copy.deepcopy):
        self.method, self.student = method, student
        names = {weights for _, weights, _ in method.terms if TEACHERS[weights] is not None}
        if ("external" in names) != (external is not None):
            raise ValueError("teacher: external needs a checkpoint, and no other kind takes one")
        self.copies = {n: external if n == "external" else copied(student) for n in sorted(names)}
        for model in self.copies.values():
            model.requires_grad_(False)

    def terms(self, shown: dict[str, Prompts]) -> Terms:
        return [(a, self.copies.get(weights, self.student), shown[context])
                for a, weights, context in self.method.terms]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after the optimiser's step number `step`, counted from 1."""
        for name, model in self.copies.items():
            if rate := TEACHERS[name](self.method, step):
                for ours, theirs in zip(model.parameters(), self.student.parameters()):
                    ours.lerp_(theirs, rate)

# 9. One batch: problems, completions, rewards, and what the teacher sees --------------------------
@dataclass(frozen=True)
class Method:
    """What a paper decides. Raises ValueError, naming the flag, for what would teach nothing."""
    source: str = ""
    learning_rate: float = 3e-4  # of AdamW; in METHODS the best of three, `python -m lab.rates`
    student_frac: float = 1.0  # share of the groups that the student writes (GKD)
    off_policy: str = "teacher"  # who writes the others: teacher, or data (references)
    student_context: str = "none"  # what the student is shown, too (to adapt a teacher)
    teacher: str = "frozen"  # whose weights: frozen, ema, snapshot, external, live; or trust_region
    context: str = "solution"  # what only the teacher sees, a kind that the task knows
    target: tuple = ()  # instead of these two: several terms (coefficient, whose weights, context)
    teacher_update_rate: float = 0.0  # r of ema and trust_region, 0 to 1
    teacher_every: int = 25  # steps between the copies of a snapshot
    external_teacher: str = "larger"  # or other_style, adapted (by reward), or a run's folder
    adapt_steps: int = 60  # GRPO steps, context shown, that adapt an adapted teacher
    warm_start_steps: int = 0  # supervised steps on the teacher's correct samples, before
    # Distillation
    divergence: str = "reverse_kl"  # a row of DIVERGENCES
    credit: str = "token"  # a row of CREDITS
    token_weights: str = "all"  # a row of TOKEN_WEIGHTS
    token_share: float = 0.3  # of a completion's tokens, for token weights first, last and spread
    teacher_weight: float = 0.5  # w of jensen_shannon
    clip: float = 0.05  # of clipped_forward_kl, nats
    top_k: int = 8  # tokens in the support of top_k_reverse_kl
    top_k_support: str = "student"  # whose top k: student, teacher, union or intersection
    top_k_tail: str = "bucket"  # the other tokens: naive, stop_gradient, renormalised or bucket
    discount: float = 1.0  # of future divergences in credit sequence; 0: token level, 1: unbiased
    importance_cap: float = 0.0  # cap of SDPO's importance weight; 0: no weight
    # Reward
    reward_weight: float = 0.0  # 0: pure distillation, 1: pure policy gradient
    advantage: str = "group"  # a row of ADVANTAGES
    clip_low: float = 0.2  # the policy ratio is clipped below at 1 - clip_low
    clip_high: float = 0.2  # and above at 1 + clip_high
    kl_coef: float = 0.0  # weight of the k3 penalty to the initial model
    resample: int = 0  # times that groups with equal rewards are drawn anew (DAPO)
    reduction: str = "token_mean"  # a row of REDUCTIONS

    def __post_init__(self):
        tables = {"divergence": DIVERGENCES, "credit": CREDITS, "token_weights": TOKEN_WEIGHTS,
                  "top_k_support": SUPPORTS, "top_k_tail": TAILS, "advantage": ADVANTAGES,
                  "reduction": REDUCTIONS, "off_policy": ("teacher", "data"),
                  "teacher": (*TEACHERS, *TARGETS)}
        for name, known in tables.items():
            self.require(getattr(self, name) in known, name, ", ".join(known))
        for name in ("student_frac", "teacher_update_rate", "discount", "reward_weight"):
            self.require(0 <= getattr(self, name) <= 1, name, "0 to 1")
        self.require(all(t[1] in TEACHERS for t in self.terms), "target", ", ".join(TEACHERS))
        if self.student_frac < 1:
            for name in ("reward_weight", "importance_cap", "kl_coef", "resample"):
                self.require(not getattr(self, name), name, "0 unless --student_frac is 1")
            known = self.credit in ("token", "imitation")
            self.require(known, "credit", "token, imitation unless --student_frac is 1")
        if self.reward_weight < 1 and self.credit == "imitation":
            self.require(self.student_frac == 0, "student_frac", "0 with --credit imitation")
        elif self.reward_weight < 1:
            differ = any(w == "external" or c != self.student_context for _, w, c in self.terms)
            self.require(differ, "context", "another: else teacher and student are one, the loss 0")

    def require(self, condition: bool, name: str, allowed: str) -> None:
        if not condition:
            raise ValueError(f"--{name}: {getattr(self, name)!r}; allowed: {allowed}")

    @property
    def terms(self) -> tuple[tuple[float, str, str], ...]:  # (coefficient, whose weights, context)
        several = self.target or (TARGETS[self.teacher](self) if self.teacher in TARGETS else ())
        return several or ((1.0, self.teacher, self.context),)

    @property
    def contexts(self) -> list[str]:  # all that are shown, the student's first
        return list(dict.fromkeys((self.student_context, *(c for _, _, c in self.terms))))

class Task(Protocol):
    """What training asks of a task, such as `toy_tasks.ToyTask`; it chooses what an example is."""
    pad_id: int
    end_ids: tuple[int, ...]  # each ends a completion; references end with the first
    splits: tuple[str, ...]  # what is evaluated, such as train and fresh
    attempts: dict[str, str]  # contexts made of a completion: its "own", or a right "sibling" of it

    def draw(self, split: str, rng: random.Random): ...
    def context(self, example, kind: str, rng: random.Random, attempt: str = "") -> str: ...
    def prompt_ids(self, example, context: str = "") -> list[int]: ...
    def reference(self, example, rng: random.Random) -> str: ...
    def reward(self, text: str, example) -> float: ...
    def measures(self, text: str, example) -> dict[str, float]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...

@dataclass(frozen=True)
class Sizes:
    """How much is drawn at a step, and how much of it is computed at a time (same gradient)."""
    groups: int = 16  # problems
    group_size: int = 8  # completions of each
    max_new_tokens: int = 64
    temperature: float = 1.0
    micro_batch: int = 0  # completions per pass; 0: a quarter of them, but at least 16
    chunk_tokens: int = 0  # tokens whose logits exist at a time; 0: all
    dtype: str = "float32"  # or bfloat16: autocast around float32 weights

    def autocast(self, device: torch.device):
        """NOTE: it keeps rounded weights until it ends: it must end before the optimiser's step."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

@dataclass
class Row:
    """One completion of one problem."""
    example: object
    contexts: dict[str, str]  # by kind, what stands before the prompt; empty: there is none
    ids: list[int] | None = None  # of the completion, with its end token, if any
    log_probs: list[float] | None = None  # of these when they were sampled, nats
    text: str = ""
    reward: float = 0.0

@dataclass
class Batch:
    """Rows are grouped by problem; tensors are (B, T), rewards (B,)."""
    rows: list[Row]
    shown: dict[str, Prompts]  # prompts behind each kind of context, the student's first
    completions: Completions
    rewards: Tensor
    sizes: Sizes
    equal_groups_frac: float = 0.0  # of the groups first drawn, those whose rewards are all alike
    weights: dict[str, Tensor] = field(default_factory=dict)  # by `weigh`: distillation, policy
    totals: dict[str, Tensor] = field(default_factory=dict)  # a mean: sum(values * weights) / total

    def by_group(self) -> Tensor:  # rewards (P, G)
        return self.rewards.view(-1, self.sizes.group_size)

    def parts(self):
        """Yields row indices and the batch of their tensors: similar lengths together."""
        size = self.sizes.micro_batch or max(16, math.ceil(len(self.rewards) / 4))
        lengths = self.completions.mask.sum(1) - next(iter(self.shown.values())).pad_count
        for rows in lengths.argsort(stable=True).split(size):
            completions = self.completions.take(rows)
            T = completions.ids.shape[1]
            yield rows, replace(
                self, rows=[], completions=completions, rewards=self.rewards[rows],
                shown={kind: prompts.take(rows) for kind, prompts in self.shown.items()},
                weights={name: w[rows, :T] for name, w in self.weights.items()})

def rollout(
    method: Method, task: Task, student: GPT, teacher: Teacher, rng: random.Random,
    generator: torch.Generator, sizes: Sizes,
) -> Batch:
    """Problems, completions, rewards, the teacher's prompts, and how much each token counts."""
    write = functools.partial(write_groups, method, task, student, teacher, rng, generator, sizes)
    groups = write(sizes.groups)
    told = [group for group in groups if len({row.reward for row in group}) > 1]
    equal_groups_frac = 1 - len(told) / len(groups)
    for _ in range(method.resample):  # equal rewards tell a policy gradient nothing
        groups = told + write(sizes.groups - len(told))
        told = [group for group in groups if len({row.reward for row in group}) > 1]
    rows, device = [row for group in groups for row in group], generator.device
    batch = Batch(
        rows, {kind: prompts_of(task, rows, kind, device) for kind in method.contexts},
        Completions.of([r.ids for r in rows], task.pad_id, device, [r.log_probs for r in rows]),
        torch.tensor([r.reward for r in rows], device=device), sizes, equal_groups_frac)
    weigh(method, student, teacher, batch)
    return batch

def write_groups(
    method: Method, task: Task, student: GPT, teacher: Teacher, rng: random.Random,
    generator: torch.Generator, sizes: Sizes, count: int,
) -> list[list[Row]]:
    """`count` problems with group_size completions each, their rewards and their contexts."""
    G, device, kinds = sizes.group_size, generator.device, method.contexts
    examples = [task.draw("train", rng) for _ in range(count)]
    rows = [Row(example, {"none": ""}) for example in examples for _ in range(G)]
    for kind in kinds:
        for row in rows if kind != "none" and kind not in task.attempts else ():
            row.contexts[kind] = task.context(row.example, kind, rng)
    split = round(method.student_frac * count) * G
    for part, author in ((rows[:split], "student"), (rows[split:], method.off_policy)):
        if part and author != "data":
            shown = {kind: prompts_of(task, part, kind, device) for kind in part[0].contexts}
            alone = [(1.0, student, shown[method.student_context])]
            terms = alone if author == "student" else teacher.terms(shown)
            with sizes.autocast(device):
                written = sample(
                    terms, max_new_tokens=sizes.max_new_tokens, temperature=sizes.temperature,
                    end_ids=task.end_ids, pad_id=task.pad_id, generator=generator)
            tensors = (written.ids, written.token_log_probs, written.mask.sum(1))
            for row, ids, log_probs, length in zip(part, *(x.tolist() for x in tensors)):
                row.ids, row.log_probs = ids[:length], log_probs[:length]
    for row in rows:
        if row.ids is None:  # written by nobody yet: the data's own reference
            row.ids = [*task.encode(task.reference(row.example, rng)), task.end_ids[0]]
            row.log_probs = [0.0] * len(row.ids)
        row.text = task.decode(row.ids)
        row.reward = task.reward(row.text, row.example)
    groups = [rows[i : i + G] for i in range(0, len(rows), G)]
    for kind in (kind for kind in kinds if kind in task.attempts):
        for i, row in enumerate(rows):
            right = [other for other in groups[i // G] if other is not row and other.reward == 1]
            seen = row if task.attempts[kind] == "own" else rng.choice(right) if right else None
            row.contexts[kind] = task.context(row.example, kind, rng, seen.text) if seen else ""
    return groups

def prompts_of(task: Task, rows: list[Row], kind: str, device: torch.device) -> Prompts:
    ids = [task.prompt_ids(row.example, row.contexts[kind]) for row in rows]
    return Prompts.of(ids, task.pad_id, device)

def weigh(method: Method, student: GPT, teacher: Teacher, batch: Batch) -> None:
    """Sets how much each token of the batch counts in the distillation and the policy gradient."""
    mask, limit = batch.completions.mask, batch.sizes.max_new_tokens

    def scores(readings: dict) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for rows, part in batch.parts():
            with torch.no_grad(), batch.sizes.autocast(mask.device):
                x = score(method, student, teacher.terms(part.shown), part, readings)
            for name, values in x.items():
                empty = values.new_zeros(mask.shape)
                whole.setdefault(name, empty)[rows, : values.shape[1]] = values
        return whole

    # A completion without its context has nothing to learn from the teacher.
    seen = [all(c == "none" or row.contexts[c] for _, _, c in method.terms) for row in batch.rows]
    counts = mask * mask.new_tensor(seen)[:, None]  # (B, T)
    counts = counts * TOKEN_WEIGHTS[method.token_weights](batch, scores, method)
    for name, x in (("distillation", counts), ("policy", mask)):
        batch.weights[name], batch.totals[name] = REDUCTIONS[method.reduction](x.float(), limit)
    if method.reward_weight > 0:
        advantages = ADVANTAGES[method.advantage](batch, scores, method)
        batch.weights["advantages"] = advantages.expand(mask.shape)

# 10. One step: score, loss, gradient --------------------------------------------------------------
def step(
    method: Method, student: GPT, teacher: Teacher, optimizer: torch.optim.Optimizer, batch: Batch,
    *, reference: GPT | None = None, grad_clip: float = 1.0, readings: dict | None = None,
) -> dict[str, float]:
    """One step of the optimiser; returns loss, grad_norm and the token means of the readings.

    reference: the initial model, for kl_coef. Raises FloatingPointError before the weights change.
    """
    tokens, numbers = batch.completions.mask.sum(), dict.fromkeys(("loss", *(readings or ())), 0.0)
    optimizer.zero_grad(set_to_none=True)
    for _, part in batch.parts():
        with batch.sizes.autocast(batch.rewards.device):
            terms = teacher.terms(part.shown) if readings or method.reward_weight < 1 else []
            x = score(method, student, terms, part, readings)
            if method.kl_coef:
                with torch.no_grad():
                    initial = score(method, reference, [], part)
                x["reference_log_probs"] = initial["student_log_probs"]
        loss = loss_of(method, x, part)  # in float32
        loss.backward()
        numbers["loss"] += loss.item()
        for name in readings or ():
            numbers[name] += (x[name].sum() / tokens).item()
    norm = nn.utils.clip_grad_norm_(student.parameters(), grad_clip).item()
    if not math.isfinite(numbers["loss"] + norm):
        raise FloatingPointError(f"loss {numbers['loss']}, gradient norm {norm}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return numbers | {"grad_norm": norm}

def score(
    method: Method, student: GPT, terms: Terms, batch: Batch, readings: dict | None = None
) -> dict[str, Tensor]:
    """Student and teacher on the same completion tokens; values (B, T), 0 outside the mask.

    readings: further functions of the logits of both, by name. With chunk_tokens the logits of so
    many tokens exist at a time and are computed again in the backward pass: they fill the memory.
    """
    mask, ids = batch.completions.mask, batch.completions.ids
    states = [completion_hidden(student, batch.shown[method.student_context], ids)[mask]]  # (N, C)
    with torch.no_grad():
        states += [completion_hidden(model, shown, ids)[mask] for _, model, shown in terms]
    used = differentiated(method) if torch.is_grad_enabled() else ()

    def on_chunk(ids: Tensor, *states: Tensor) -> dict[str, Tensor]:
        s = student.lm_head(states[0])[None]  # (1, n, V)
        with torch.set_grad_enabled("student_log_probs" in used):
            values = {"student_log_probs": token_log_probs(s, ids)}
        if terms:
            with torch.no_grad():
                logits = [model.lm_head(x)[None] for (_, model, _), x in zip(terms, states[1:])]
                t = log_linear(logits, [a for a, _, _ in terms])
                values["teacher_log_probs"] = token_log_probs(t, ids)
                values |= {name: read(s, t) for name, read in (readings or {}).items()}
            with torch.set_grad_enabled("divergence" in used):
                values["divergence"] = DIVERGENCES[method.divergence](s, t, method)
        return values

    ids, chunk = ids[mask][None], batch.sizes.chunk_tokens  # (1, N)
    size = chunk or max(1, ids.shape[1])
    run = functools.partial(checkpoint, on_chunk, use_reentrant=False) if chunk else on_chunk
    chunks = [run(*x) for x in zip(ids.split(size, 1), *(x.split(size) for x in states))]
    flat = {name: torch.cat([c[name] for c in chunks], 1) for name in chunks[0]}  # (1, N) each
    values = {n: v.new_zeros(mask.shape).masked_scatter(mask, v) for n, v in flat.items()}
    return values | {"mask": mask}

def completion_hidden(model: GPT, prompts: Prompts, completion_ids: Tensor) -> Tensor:
    """Final states (B, T, C): state t predicts completion token t. Nothing else shifts targets.

    Each row is rotated, so that its left padding stands behind the completion, where a causal model
    cannot see it and no mask is needed:  [. . p p | c c c]  ->  [p p c c c . .]
    """
    B, T = completion_ids.shape
    rows = torch.cat((prompts.ids, completion_ids), dim=1)  # (B, P + T)
    steps = torch.arange(rows.shape[1], device=rows.device)
    rows = rows.gather(1, (steps + prompts.pad_count[:, None]) % rows.shape[1])
    hidden = model.hidden(rows[:, :-1])  # (B, P + T - 1, C)
    # The last token of the prompt predicts the first of the completion.
    index = (prompts.ids.shape[1] - prompts.pad_count - 1)[:, None] + steps[:T]  # (B, T)
    return hidden.gather(1, index[..., None].expand(B, T, hidden.shape[-1]))

def loss_of(method: Method, x: dict[str, Tensor], batch: Batch) -> Tensor:
    """The loss of a batch from its scores x; over the parts of a batch it adds up."""
    def mean(values: Tensor, name: str) -> Tensor:
        return weighted_sum(values, batch.weights[name]) / batch.totals[name].clamp(min=1e-12)

    p, old, w = x["student_log_probs"], batch.completions.token_log_probs, method.reward_weight
    loss = p.new_zeros(())
    if w < 1:
        values = CREDITS[method.credit](x, method)  # (B, T)
        if method.importance_cap:
            values = values * truncated_importance_weight(p, old, method.importance_cap)
        loss = loss + (1 - w) * mean(values, "distillation")
    if w > 0:
        clips = method.clip_low, method.clip_high
        values = clipped_policy_surrogate(p, old, batch.weights["advantages"], *clips)
        loss = loss + w * mean(values, "policy")
    if method.kl_coef:  # stay near the initial model
        loss = loss + method.kl_coef * mean(k3_kl(p, x["reference_log_probs"]), "policy")
    return loss

def differentiated(method: Method) -> set[str]:
    """The scores that the loss has a gradient through: autograd would keep the logits of others."""
    names, one = ("student_log_probs", "divergence"), torch.ones(1, 1)
    x = {name: torch.ones(1, 1, requires_grad=True) for name in names}
    x |= {"teacher_log_probs": one, "reference_log_probs": one, "mask": one > 0}
    weights = dict.fromkeys(("distillation", "policy", "advantages"), one)
    batch = Batch([], {}, Completions(one, one > 0, one), one, Sizes(), 0.0, weights, weights)
    loss_of(method, x, batch).sum().backward()
    return {name for name in names if x[name].grad is not None}

# 11. Methods: source, learning rate (lab/rates.py), what differs from the defaults of `Method` ----
EMA = {"teacher": "ema", "teacher_update_rate": 0.01}
BY_TEACHER = {"student_frac": 0.0, "credit": "imitation"}  # samples are drawn anew at every step
METHODS = {
    "sft": Method("Kim et al. 2603.24472", 1e-3, **BY_TEACHER, token_weights="correct_only"),
    "seq_kd": Method("Kim and Rush 1606.07947", 1e-3, **BY_TEACHER),
    # The larger teacher differs in its size and the seed of its documents; data are references.
    "gkd": Method("Agarwal et al. 2306.13649", 1e-4, teacher="external", context="none",
                  divergence="jensen_shannon", student_frac=0.5, off_policy="data"),
    "opd": Method("Lu et al. 2025", 1e-4, teacher="external", context="none", credit="sampled"),
    "opsd": Method("Zhao et al. 2601.18734 v3", 1e-3, divergence="forward_kl",
                   reduction="sequence_mean"),  # its clip is --divergence clipped_forward_kl
    # The solution as context, as in [1] table 6; its default is a sibling, else feedback.
    "sdpo": Method("Huebotter et al. 2601.20802", **EMA, divergence="reverse_kl"),
    # The demonstration is a right completion of the student's own group, not an expert's.
    "sdft": Method("Shenfeld et al. 2601.19897", **EMA, context="sibling"),
    "sequence_kl": Method("Fu et al. 2603.25562", credit="sequence", reduction="constant"),
    # One update per batch, so that the clip never acts (--updates_per_batch).
    "grpo": Method("Shao et al. 2402.03300", reward_weight=1.0, reduction="sequence_mean",
                   kl_coef=0.04),
    "dr_grpo": Method("Liu et al. 2503.20783", reward_weight=1.0, advantage="group_without_std",
                      reduction="constant"),
    # Without overlong shaping, and with a limit to the rounds of drawing anew.
    "dapo": Method("Yu et al. 2503.14476", reward_weight=1.0, clip_high=0.28, resample=2),
    # Two weighted losses: with one update a batch the weighted advantages of [1].
    "sdpo_grpo": Method("Huebotter et al. 2601.20802, hybrid", 1e-4, **EMA, reward_weight=0.9,
                        advantage="group_without_std"),
    # Reward adapts the base model with the context in its prompt; [10] takes a public checkpoint.
    "rlvr_teacher": Method("Zhu et al. 2605.11182", teacher="external", external_teacher="adapted"),
    # The EMA teacher starts as the warm student; [10] does not say how many samples it takes.
    "sft_then_sdpo": Method("Zhu et al. 2605.11182", **EMA, warm_start_steps=50),
}
