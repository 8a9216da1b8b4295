"""Lints: what may be wrong with a loss or with two prompts, seen on a batch before any training.

    1 a loss as a function of logits   2 lints of the loss   3 lints of the prompts   4 side by side

A lint is one function and one row of LOSS_LINTS or PROMPT_LINTS. It returns whether it passed
(None: in doubt) and what it read, or None where it has nothing to say. lab/docs/preflight.md adds
one.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import minisd
from lab import templates
from lab.measures.formulas import mean_and_error
from minisd import Batch, Method, Prompts, Row, Teacher

Finding = tuple[bool | None, str] | None  # passed, reading
WHO = ("student", "teacher")
ROUNDING = 1e-6  # of a logit's gradient, for a token that counts as 1

# 1. A loss as a function of logits ----------------------------------------------------------------


class Told:
    """Stands for a model in `minisd.score`: its logits (B, T, V) are given, whatever it reads."""

    lm_head = staticmethod(lambda x: x)

    def __init__(self, logits: Tensor):
        self.logits = logits

    def hidden(self, ids: Tensor) -> Tensor:
        return self.logits


@dataclass
class Loss:
    """What a method makes of the logits of student and teacher (B, T, V) on a batch.

    All goes through `score` and `loss_of`, so a row of the user's own is read as training reads it.
    again: the same logits, of a second reading. models: of whom they are, where there are any.
    """

    method: Method
    batch: Batch
    student: Tensor
    teacher: Tensor
    again: tuple[Tensor, Tensor]
    models: tuple[nn.Module, ...] = ()

    @classmethod
    def of(cls, method: Method, student: Any, teacher: Teacher, batch: Batch) -> "Loss":
        """The logits of a batch, read twice. Every token of it exists at once: keep it small."""
        terms = teacher.terms(batch.shown)
        (s, t), again = (read_logits(method, student, terms, batch) for _ in range(2))
        return cls(method, batch, s, t, again, (student, *(model for _, model, _ in terms)))

    @property
    def distils(self) -> bool:
        return self.method.reward_weight < 1

    @functools.cached_property
    def told(self) -> Batch:
        """The batch with a prompt of one token, so that `score` takes given logits as they are."""
        one = self.batch.completions.ids[:, :1] * 0
        shown = {self.method.student_context: Prompts(one, one[:, 0])}
        sizes = dataclasses.replace(self.batch.sizes, chunk_tokens=0, dtype="float32")
        return dataclasses.replace(self.batch, shown=shown, sizes=sizes)

    def scores(self, method: Method, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        prompts = self.told.shown[method.student_context]
        x = minisd.score(method, Told(student), [(1.0, Told(teacher), prompts)], self.told)
        # At a first step the initial model is the student.
        return x | {"reference_log_probs": x["student_log_probs"].detach()}

    def value(self, method: Method, student: Tensor, teacher: Tensor) -> Tensor:
        return minisd.loss_of(method, self.scores(method, student, teacher), self.told)

    def slope(self, method: Method, student: Tensor, teacher: Tensor) -> Tensor:
        """The gradient (B, T, V) of the loss in the student's logits."""
        leaf = student.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = self.value(method, leaf, teacher)
            if not value.requires_grad:
                return torch.zeros_like(leaf)
            return torch.autograd.grad(value, leaf)[0]

    @functools.cached_property
    def distillation(self) -> Method:
        """The method without its rewards."""
        return dataclasses.replace(self.method, reward_weight=0.0, kl_coef=0.0, resample=0)

    @functools.cached_property
    def gradient(self) -> Tensor:  # of the distillation
        return self.slope(self.distillation, self.student, self.teacher)

    def credits(self, student: Tensor, teacher: Tensor) -> Tensor:
        """What each of the N tokens that count contributes, before any weight, (N,)."""
        with torch.no_grad():
            x = self.scores(self.distillation, student, teacher)
            return minisd.CREDITS[self.method.credit](x, self.method)[self.counted]

    @functools.cached_property
    def counted(self) -> Tensor:  # (B, T) bool
        return self.told.weights["distillation"] > 0

    @functools.cached_property
    def log_probs(self) -> tuple[Tensor, Tensor]:  # log p and log q (N, V) of the tokens that count
        return tuple(minisd.log_softmax(x[self.counted]) for x in (self.student, self.teacher))

    @functools.cached_property
    def rounding(self) -> float:  # of a logit's gradient
        totals = self.told.totals.items()
        counts = [self.told.weights[name].max() / x.clamp(min=1e-12) for name, x in totals]
        return ROUNDING * max(counts).item()

    @functools.cached_property
    def is_flat(self) -> bool:
        return self.gradient.abs().max().item() <= self.rounding

    @functools.cached_property
    def is_sampled(self) -> bool:
        """Whether the value at a token depends on which token was written there."""
        kept, ids = self.told, self.told.completions.ids
        other = dataclasses.replace(kept.completions, ids=ids.roll(1, 1))
        read = dataclasses.replace(self)
        read.told = dataclasses.replace(kept, completions=other)
        pair = (x.credits(self.student, self.teacher) for x in (self, read))
        return not torch.allclose(*pair, atol=1e-6)


@torch.no_grad()
def read_logits(method: Method, student: Any, terms: list, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) of student and teacher on the completions, in float32; 0 behind the end."""
    caught, mask = [], batch.completions.mask
    sizes = dataclasses.replace(batch.sizes, chunk_tokens=0)

    def catch(s: Tensor, t: Tensor) -> Tensor:
        caught.extend((s, t))
        return s[..., 0]

    with sizes.autocast(mask.device):
        minisd.score(method, student, terms, dataclasses.replace(batch, sizes=sizes), {"": catch})
    wide = [x.new_zeros(*mask.shape, x.shape[-1], dtype=torch.float32) for x in caught]
    for empty, x in zip(wide, caught):
        empty[mask] = x[0].float()
    return tuple(wide)


# 2. Lints of the loss -----------------------------------------------------------------------------


def is_divergence(loss: Loss) -> Finding:
    """>= 0 everywhere, and 0 where student and teacher agree. A surrogate's value says nothing."""
    if not loss.distils or not loss.counted.any():
        return None
    values = loss.credits(loss.student, loss.teacher)
    agreed = loss.credits(loss.teacher, loss.teacher).abs().max().item()
    low, high = values.min().item(), values.max().item()
    words = f"{low:.2g} to {high:.2g} nats a token, {agreed:.1g} where teacher and student agree"
    if low > -1e-4 and agreed < 1e-4:
        return True, words
    if low > -1e-4:
        return None, f"{words}: a cross-entropy, whose floor is no 0"
    if loss.is_sampled:
        return None, f"{words}: a surrogate, of which only the gradient means something"
    return False, f"{words}: below 0 at {(values < -1e-4).float().mean():.0%} of the tokens"


def has_gradient(loss: Loss) -> Finding:
    """The whole loss, rewards included."""
    whole = loss.method != loss.distillation
    slope = loss.slope(loss.method, loss.student, loss.teacher) if whole else loss.gradient
    if (size := slope.abs().max().item()) > loss.rounding:
        return True, f"up to {size:.1g} for a logit"
    rewards, gap = loss.batch.by_group(), (loss.student - loss.teacher).abs().max()
    if loss.method.reward_weight > 0 and (rewards == rewards[:, :1]).all():
        why = "all rewards of a group are alike"
    elif not loss.counted.any():
        why = "no completion counts: no context, or all token weights are 0"
    elif gap < 1e-4:
        why = "teacher and student read the same, so they are one"
    else:
        why = "whatever the teacher says"
    return False, f"zero: {why}; nothing is learnt"


def heeds_teacher(loss: Loss) -> Finding:
    """A gradient that is the same where the teacher is the student is a constant."""
    if not loss.distils or loss.is_flat:
        return None
    agreed = loss.slope(loss.distillation, loss.student, loss.student)
    off = ((loss.gradient - agreed).norm() / loss.gradient.norm()).item()
    if off > 1e-4:
        return True, f"{off:.0%} of the gradient goes where teacher and student agree"
    if loss.method.student_frac == 0:
        return None, "the gradient does not look at the teacher, who wrote the texts instead"
    return False, "the gradient is the same whatever the teacher says"


def goes_to_teacher(loss: Loss) -> Finding:
    """The sign of <-gradient, log q - log p>, at every token and on the whole."""
    if not loss.distils or loss.is_flat:
        return None
    log_p, log_q = loss.log_probs
    gap, descent = log_q - log_p, -loss.gradient[loss.counted]
    along = (descent * gap).sum(-1)  # (N,)
    told = (log_q.exp() * gap).sum(-1) > 1e-3  # where the teacher has something to say
    least = -1e-3 * (descent.norm(dim=-1) * gap.norm(dim=-1))  # below it, rounding
    frac = (along[told] < least[told]).float().mean().item() if told.any() else 0.0
    words = f"away from the teacher at {frac:.0%} of the tokens"
    if not loss.is_sampled:
        return (frac < 0.001 and along.sum().item() > 0), words
    rows = torch.zeros(loss.counted.shape).masked_scatter(loss.counted.cpu(), along.cpu()).sum(1)
    mean, error = mean_and_error(rows)
    on = "on the whole towards it" if mean > 0 else "on the whole, too"
    sure = abs(mean) > 2 * error
    return (mean > 0 if sure else None), f"{words}, {on}" + ", within noise" * (not sure)


def is_whole(loss: Loss) -> Finding:
    """Whether the value moves as the gradient says, along random steps to the teacher."""
    if not loss.distils or loss.is_flat:
        return None
    s, t, said, seen = loss.student.double(), loss.teacher.double(), [], []
    ahead = 1e-4 * (t - s)
    slopes = (loss.gradient * ahead).sum(-1, keepdim=True)  # (B, T, 1)
    signs = torch.Generator().manual_seed(0)
    for _ in range(2):
        sign = torch.randint(0, 2, slopes.shape, generator=signs).to(slopes) * 2 - 1
        with torch.no_grad():
            values = [loss.value(loss.distillation, s + k * sign * ahead, t).item()
                      for k in (1, -1)]
        seen.append((values[0] - values[1]) / 2)
        said.append((slopes * sign).sum().item())
    off = math.dist(said, seen) / max(math.hypot(*said), math.hypot(*seen))
    if off < 0.05:
        return True, "the value moves as its gradient says"
    words = f"the value moves {off:.0%} otherwise than its gradient says: a part is detached"
    return (None, f"{words}, as a surrogate has it") if loss.is_sampled else (False, words)


def is_mean(loss: Loss) -> Finding:
    """Twice the batch gives the same loss, and so do its parts together."""
    batch, m = loss.told, loss.method
    counts, limit = batch.completions.mask.float(), batch.sizes.max_new_tokens

    def of_ones(counts: Tensor) -> Tensor:
        weights, total = minisd.REDUCTIONS[m.reduction](counts, limit)
        return weights.sum() / total

    growth = (of_ones(counts.repeat(2, 1)) / of_ones(counts)).item()
    if abs(growth - 1) > 1e-3:
        return False, f"twice the batch is {growth:.2f} times the loss: a sum, not a mean"
    with torch.no_grad():
        x = loss.scores(m, loss.student, loss.teacher)
        whole = minisd.loss_of(m, x, batch).item()
        parts = [minisd.loss_of(m, {k: v[rows] for k, v in x.items()}, rows_of(batch, rows)).item()
                 for rows in torch.arange(len(counts)).split([1, len(counts) - 1])]
    if abs(sum(parts) - whole) > 1e-4 * max(1.0, abs(whole)):
        return False, f"{whole:.4g} at once, {sum(parts):.4g} in uneven parts"
    weights, lengths = minisd.REDUCTIONS[m.reduction](counts, limit)[0], counts.sum(1)
    ratio = (weights[lengths.argmax(), 0] / weights[lengths.argmin(), 0]).item()
    return True, (f"a token of the longest completion ({lengths.max():.0f} tokens) counts "
                  f"{ratio:.2f} of one of the shortest ({lengths.min():.0f})")


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, as wide as before."""
    ids, mask, log_probs = (x[rows] for x in vars(batch.completions).values())
    completions = minisd.Completions(ids, mask, log_probs)
    weights = {name: w[rows] for name, w in batch.weights.items()}
    return dataclasses.replace(batch, completions=completions, weights=weights)


def reads_alike(loss: Loss) -> Finding:
    """Dropout that was left on makes a second reading of the same text another one."""
    mask, found = loss.batch.completions.mask, {}
    for who, one, other in zip(WHO, (loss.student, loss.teacher), loss.again):
        p, q = (minisd.log_softmax(x[mask]) for x in (one, other))
        found[who] = (p.exp() * (p - q).abs()).sum(-1).mean().item()
    if max(found.values()) < 1e-4:
        return True, "a second reading is the same"
    modules = {name for model in loss.models for name, m in model.named_modules()
               if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0}
    on = f": dropout is on in {min(modules)}" if modules else ": dropout, or other chance?"
    return False, "; ".join(f"{who} off by {x:.2g} nats" for who, x in found.items()) + on


TEMPERATURES = [t / 20 for t in range(2, 41)]


def knows_what_it_wrote(loss: Loss) -> Finding:
    """The log-probabilities kept from sampling are those of the same weights at temperature 1."""
    batch = loss.batch
    if loss.method.student_frac < 1:
        return None
    mask, old = batch.completions.mask, batch.completions.token_log_probs
    ids, logits = batch.completions.ids[mask], loss.student[mask]

    def off(temperature: float) -> float:
        new = minisd.log_softmax(logits / temperature).gather(-1, ids[:, None])[:, 0]
        return (new - old[mask]).abs().mean().item()

    limit = 1e-3 if batch.sizes.dtype == "float32" else 0.1  # of bfloat16, which rounds
    if (now := off(1.0)) < limit:
        return True, f"they are the student's, off by {now:.1g} nats"
    best = min(TEMPERATURES, key=off)
    of = f"they are those at temperature {best:g}" if off(best) < limit else "of other weights?"
    used = loss.method.reward_weight > 0 or loss.method.importance_cap > 0
    return (False if used else None), f"off by {now:.2g} nats: {of}"


def against_true_kl(loss: Loss) -> Finding:
    """What is reported beside both divergences, as means over the tokens that count."""
    if not loss.distils or not loss.counted.any():
        return None
    log_p, log_q = loss.log_probs
    with torch.no_grad():
        value = loss.value(loss.method, loss.student, loss.teacher).item()
    forward, reverse = (minisd.kl(a, b).mean() for a, b in ((log_q, log_p), (log_p, log_q)))
    words = f"{value:.4f} is reported, KL(t||s) is {forward:.4f}, KL(s||t) {reverse:.4f} nats"
    return True, words


LOSS_LINTS = {  # what: Loss -> Finding
    "the value is a divergence": is_divergence,
    "there is a gradient": has_gradient,
    "the gradient heeds the teacher": heeds_teacher,
    "it points to the teacher": goes_to_teacher,
    "nothing is detached": is_whole,
    "the loss is a mean": is_mean,
    "no dropout": reads_alike,
    "old log-probabilities fit": knows_what_it_wrote,
    "value against the true KL": against_true_kl,
}

# 3. Lints of the prompts --------------------------------------------------------------------------


@dataclass
class Shown:
    """Prompts of some problems as token ids, and completions of a student."""

    method: Method
    task: Any
    pairs: list[tuple[str, list[int], list[int]]]  # context, student's prompt, teacher's prompt
    rows: list[Row]  # written by the student
    limit: int  # tokens of a completion
    window: int  # tokens that the model is meant for

    @property
    def chat(self) -> Any:
        return getattr(self.task, "chat", None)

    @property
    def prompts(self) -> list[list[int]]:
        return [ids for _, *both in self.pairs for ids in both]

    def word(self, token: int) -> str:
        return self.chat.tokenizer.decode([token]) if self.chat else self.task.decode([token])


def same_but_context(look: Shown) -> Finding:
    if look.chat or not look.pairs:  # lab/templates.py compares the texts, whatever tokens they are
        return None
    beyond = sum(templates.tokens_beyond(a, b) > 0 for _, a, b in look.pairs)
    told = sum(a != b for _, a, b in look.pairs)
    if look.method.reward_weight < 1 and not told:
        return False, "no teacher's prompt shows more than the student's"
    return beyond == 0, f"{beyond} of {len(look.pairs)} prompts differ elsewhere"


def one_beginning(look: Shown) -> Finding:
    """The token that begins a text stands there once, if the tokenizer writes one."""
    if not look.chat:
        return None
    bos = look.chat.tokenizer.bos_token_id
    usual = look.chat.tokenizer.encode("x", add_special_tokens=True)[:1] == [bos]
    counts = {len(list(itertools.takewhile(lambda i: i == bos, ids))) for ids in look.prompts}
    words = f"prompts begin with {' or '.join(map(str, sorted(counts)))} of it"
    if bos is None or (counts == {0} and not usual):
        return True, "the tokenizer begins no text with one"
    return counts == {1}, f"{words}, {look.word(bos)!r}"


def no_end_inside(look: Shown) -> Finding:
    """A context that ends a turn lets the teacher read a conversation that is over."""
    ends = set(look.task.end_ids)
    more = sum(sum(i in ends for i in b) != sum(i in ends for i in a) for _, a, b in look.pairs)
    return more == 0, f"{more} of {len(look.pairs)} contexts hold an end token"


def thinking_switch(look: Shown) -> Finding:
    if not look.chat or not look.chat.template:
        return None
    words = set(re.findall(r"\w*thinking\b", look.chat.template))
    names = words & {"enable_thinking", "thinking"}
    if not names:
        return True, "the template has no switch for thinking"
    name, sides = max(names), look.chat.arguments
    values = {who: sides[who].get(name, "left as it is") for who in sides}
    read = ", ".join(f"{who} {value}" for who, value in values.items())
    passed = False if len(set(map(str, values.values()))) > 1 else None
    return (True if name in sides["student"] and passed is None else passed), f"{name}: {read}"


def has_room(look: Shown) -> Finding:
    longest = max(map(len, look.prompts))
    words = f"prompts up to {longest} tokens and {look.limit} of a completion"
    return longest + look.limit <= look.window, f"{words}; the model is meant for {look.window}"


def completions_end(look: Shown) -> Finding:
    cut = [len(r.ids) >= look.limit and r.ids[-1] not in look.task.end_ids for r in look.rows]
    frac = sum(cut) / max(1, len(cut))
    words = f"{frac:.0%} of {len(cut)} completions are cut at {look.limit} tokens"
    return (True if frac <= 0.05 else None if frac <= 1 / 3 else False), words


PROMPT_LINTS = {  # what: Shown -> Finding
    "prompts differ in the context alone": same_but_context,
    "one beginning of a text": one_beginning,
    "no end token in a context": no_end_inside,
    "the switch for thinking": thinking_switch,
    "no truncation": has_room,
    "completions end by themselves": completions_end,
}


def findings(lints: dict, look: Any) -> list[templates.Check]:
    """What each row of a table has found, as (what, passed, reading)."""
    found = ((what, lint(look)) for what, lint in lints.items())
    return [(what, *finding) for what, finding in found if finding is not None]


# 4. Side by side ----------------------------------------------------------------------------------

SIGNS = {"equal": " ", "insert": "+", "delete": "-", "replace": "!"}
PAINT = {"equal": ("2", "0"), "insert": ("1;32", "32"), "delete": ("1;31", "31"),
         "replace": ("1;33", "33")}  # of every other token
KEPT = 3  # lines of a long part that is the same, before and behind what is left out


def side_by_side(
    student: list[str], teacher: list[str], *, width: int = 100, colour: bool = False
) -> list[str]:
    """Both prompts as lines of tokens, `|` before each; the sign between them says what differs.

    `+` the teacher's alone, `-` the student's alone, `!` other tokens there. Colours repeat it.
    """
    half, lines = (width - 3) // 2, []
    matcher = difflib.SequenceMatcher(None, student, teacher, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        left, right = wrapped(student[a:b], half), wrapped(teacher[c:d], half)
        rows = list(itertools.zip_longest(left, right, fillvalue=[]))
        if kind == "equal" and len(rows) > 2 * KEPT + 1:
            hidden = [[f"... {len(rows) - 2 * KEPT} lines ..."]] * 2
            rows = [*rows[:KEPT], tuple(hidden), *rows[-KEPT:]]
        for pair in rows:
            one, other = (painted(tokens, kind, half, colour) for tokens in pair)
            lines.append(f"{one} {SIGNS[kind]} {other}".rstrip())
    return lines


def wrapped(tokens: list[str], width: int) -> list[list[str]]:
    """Tokens in lines, each with its `|`; a line ends behind a token with a line break."""
    lines, line = [], []
    for token in tokens:
        shown = "|" + token.encode("unicode_escape").decode("ascii")[: width - 1]
        if line and sum(map(len, line)) + len(shown) > width:
            lines, line = [*lines, line], []
        line.append(shown)
        if "\n" in token:
            lines, line = [*lines, line], []
    return [*lines, line] if line else lines


def painted(tokens: list[str], kind: str, width: int, colour: bool) -> str:
    space = " " * (width - sum(map(len, tokens)))
    if not colour:
        return "".join(tokens) + space
    codes = itertools.cycle(PAINT[kind])
    return "".join(f"\x1b[{code}m{token}\x1b[0m" for token, code in zip(tokens, codes)) + space
