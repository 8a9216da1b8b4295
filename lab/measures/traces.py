"""What a model writes with a context in view: right how often, how long, with how much doubt."""

import random

from lab.measures.probe import Probe, Settings
from toy_tasks import CONTEXTS, MARKER


def measure_traces(settings: Settings) -> dict[str, dict[str, float]]:
    """Means over the base model's completions of fresh problems, for every context it may see.

    What the task measures, completion_tokens (without the end), and right_undoubted_frac: right and
    without a single marker. A sibling is a right one by an author of the documents. Contexts that
    are made of a completion of the model's own, or change what is right, are left out.
    """
    rng, task = random.Random(f"traces-problems-{settings.seed}"), settings.task()
    drawn = task.evaluation("fresh", settings.eval_problems, rng)
    probe = Probe.draw(settings, "traces", [e.problem for e in drawn])
    shown = [task.reference(example, rng) for example in probe.examples]
    numbers = {}
    for kind, row in CONTEXTS.items():
        if row.attempt == "own" or row.draws_rule:
            continue
        texts = probe.texts
        if kind != "none":
            contexts = probe.contexts(probe.examples, kind, shown)
            texts, _ = probe.go_on(probe.student, probe.examples, contexts)
        numbers[kind] = means_of([
            traits(probe, text, example) for text, example in zip(texts, probe.examples)
        ])
    return numbers


def traits(probe: Probe, text: str, example) -> dict[str, float]:
    """What one completion did."""
    undoubted = probe.task.reward(text, example) * (MARKER not in text)
    return probe.task.measures(text, example) | {
        "completion_tokens": len(probe.task.encode(text)), "right_undoubted_frac": undoubted,
    }


def means_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
