"""How well teachers continue a student's prefixes and their own, by the length of the prefix."""

import random

from lab.measures.horizon import accuracy_from, is_direct, long_problems
from lab.measures.probe import Probe, Settings
from minisd import GPT
from toy_tasks import Example

PREFIX_PROBLEMS = 320
PREFIX_FRACS = (0.0, 0.25, 0.5, 0.75)  # of the tokens of a completion


def measure_prefixes(settings: Settings) -> dict:
    """Accuracy of teachers from a student's prefixes and from their own, by length of the prefix.

    prefix_fracs is the x of all lists. teacher: the base model with the solution. external: the
    base model of another style, whose authors never answer directly, without context. unaided: the
    student itself. `student`: prefixes of its completions on training problems of three or more
    operations; `own`: of the reader's. steps: for completions that are not direct; there the
    teacher's own begin with the student's first token, since of itself it hardly ever writes steps.
    """
    rng = random.Random(f"prefix-problems-{settings.seed}")
    problems = long_problems(settings.task(), rng, PREFIX_PROBLEMS)
    probe = Probe.draw(settings, "prefixes", problems)
    readers = {
        "teacher": (probe.student, "solution"),
        "external": (settings.external("other_style"), "none"),
        "unaided": (probe.student, "none"),
    }
    rows = list(zip(probe.examples, probe.texts))
    steps = [row for row in rows if not is_direct(row[1])]
    result = {"prefix_fracs": list(PREFIX_FRACS)}
    for suffix, chosen in (("", rows), ("_steps", steps)):
        examples, texts = [r[0] for r in chosen], [r[1] for r in chosen]
        result[f"prefix_completions{suffix}"] = len(texts)
        for name, (model, kind) in readers.items():
            accuracy = accuracy_by_length(probe, model, kind, examples, texts)
            result[f"{name}_student_prefix{suffix}"] = accuracy
            if name == "unaided":
                continue
            first = [probe.task.encode(text)[:1] if suffix else [] for text in texts]
            own, _ = probe.go_on(model, examples, probe.contexts(examples, kind), first)
            accuracy = accuracy_by_length(probe, model, kind, examples, own)
            result[f"{name}_own_prefix{suffix}"] = accuracy
    return result


def accuracy_by_length(
    probe: Probe, model: GPT, kind: str, examples: list[Example], texts: list[str]
) -> list[float | None]:
    """Accuracy from the texts as far as each of PREFIX_FRACS."""
    lengths = [len(probe.task.encode(text)) for text in texts]
    cuts = [[int(frac * length) for frac in PREFIX_FRACS] for length in lengths]
    return accuracy_from(probe, model, kind, examples, texts, cuts)[0]
