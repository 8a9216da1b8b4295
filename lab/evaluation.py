"""How good a model or a teacher is on the splits of a task."""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import minisd
from lab import distributed
from minisd import GPT, Row, Sizes, Task, Teacher, Terms, prompts_of, sample


@dataclass
class Evaluation:
    """Means over the completions of one split, and the completions themselves."""

    means: dict[str, float]
    examples: list
    texts: list[str]
    rewards: list[float]
    ids: list[list[int]] = field(default_factory=list)  # of the completions
    moments: list[dict] = field(default_factory=list)  # of a few of them, by lab/moments.py


def seeded(name: str, device: torch.device) -> torch.Generator:
    """A generator of its own for every use that has a name of its own."""
    return torch.Generator(device).manual_seed(zlib.crc32(name.encode()))


def nucleus(top_p: float) -> Callable[[Tensor, Tensor, float], Tensor]:
    """A `pick` of minisd.sample: from the smallest set of tokens with the mass top_p (0 to 1)."""
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: {top_p}; allowed: above 0, to 1")

    def pick(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        probs = (logits / (temperature or 1.0)).softmax(-1)
        ordered, order = probs.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the first token is never outside
        outside = torch.zeros_like(outside).scatter(1, order, outside)
        return minisd.pick_token(logits.masked_fill(outside, -torch.inf), uniform, temperature)

    return pick


def share_of_each(
    task: Task, terms: Terms, uniforms: Tensor, sizes: Sizes
) -> list[list[int]]:
    """Token ids of all rows, in every process; each writes a share, inside `gathered`."""
    count, n, written = len(uniforms), distributed.processes(), []
    own = torch.arange(distributed.rank(), count, n, device=uniforms.device)
    if len(own):
        with sizes.autocast(uniforms.device):
            completions = sample(
                [(a, model, prompts.take(own)) for a, model, prompts in terms],
                max_new_tokens=sizes.max_new_tokens, temperature=sizes.temperature,
                end_ids=task.end_ids, pad_id=task.pad_id, uniforms=uniforms[own],
            )
        written = [ids[mask].tolist() for ids, mask in zip(completions.ids, completions.mask)]
    shares = distributed.gather(written)
    return [shares[i % n][i // n] for i in range(count)]


def evaluate(
    task: Task, author: GPT | Teacher, split: str, *, count: int, seed: int, sizes: Sizes,
    attempts: list[str] | None = None,
) -> Evaluation:
    """One completion at the temperature of `sizes` for each of `count` examples, always the same.

    A teacher is measured as it teaches, with its contexts. attempts: completions that contexts of
    the kind "own" (feedback) are about; otherwise they are about references.
    """
    rng = random.Random(f"evaluation-{split}-{seed}")
    if hasattr(task, "evaluation"):
        examples = task.evaluation(split, count, rng)
    else:
        examples = [task.draw(split, rng) for _ in range(count)]
    rows = [Row(example, {"none": ""}) for example in examples]
    references = [task.reference(example, rng) for example in examples]
    kinds = {c for _, _, c in author.method.terms} if isinstance(author, Teacher) else set()
    for kind in sorted(kinds - {"none"}):
        own = attempts and task.attempts.get(kind) == "own"
        for row, attempt in zip(rows, attempts if own else references):
            row.contexts[kind] = task.context(row.example, kind, rng, attempt)
    student = author.student if isinstance(author, Teacher) else author
    device = next(student.parameters()).device
    shown = {kind: prompts_of(task, rows, kind, device) for kind in rows[0].contexts}
    teaches = isinstance(author, Teacher)
    terms = author.terms(shown) if teaches else [(1.0, author, shown["none"])]
    # Drawn for all rows, so that no row depends on which process writes it.
    generator = seeded(f"evaluation-{split}-{seed}", device)
    uniforms = torch.rand(count, sizes.max_new_tokens, generator=generator, device=device)
    written = share_of_each(task, terms, uniforms, sizes)
    lengths, texts = list(map(len, written)), list(map(task.decode, written))
    measures = [task.measures(text, e) for text, e in zip(texts, examples)]
    means = {name: sum(m[name] for m in measures) / count for name in measures[0]}
    means["completion_tokens"] = sum(lengths) / count
    rewards = [task.reward(text, e) for text, e in zip(texts, examples)]
    return Evaluation(means, examples, texts, rewards, written)


def evaluate_all(
    task: Task, student: GPT, teacher: Teacher, *, count: int, seed: int, sizes: Sizes
) -> dict[str, Evaluation]:
    """The student on every split, and the teacher, with its contexts, on train."""
    how = {"count": count, "seed": seed, "sizes": sizes}
    results = {split: evaluate(task, student, split, **how) for split in task.splits}
    attempts = results["train"].texts
    results["teacher"] = evaluate(task, teacher, "train", attempts=attempts, **how)
    return results
