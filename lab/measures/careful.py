"""What doubt is worth to a model: direct, careful and unchecked completions, and forced glances."""

import dataclasses
import random
import re
from pathlib import Path

import torch
from torch import Tensor

import minisd
from lab import storage
from lab.measures.formulas import ratio
from lab.measures.probe import Probe, Settings
from lab.measures.steps import STEP_PATTERN, force_glance, leaves_out
from toy_tasks import MARKER, TOKEN_ID, Example, Problem, ToyTask, draw_split

# More than one operation in a step, and whether the next token is the marker.
GLANCE_PATTERN = re.compile(rf"\d(?:[+*-]\d){{2,}}=\d; ({MARKER})?")
READERS = {"unaided": "none", "teacher": "solution"}  # name: the context that is shown


def measure_careful(settings: Settings, folder: Path | None = None) -> dict:
    """Accuracy with and without doubt, of the base model or, with a folder, of a run's student.

    Of every split but train: accuracy, share of direct answers, and, of the completions that the
    model wrote freely, glances and the share of them that the marker follows; left_out: the share
    of those with steps that miss an operation. careful: the marker is the first token. banned: it
    is that, and never written again. See `measure_forced` for the rest. None: of nothing.
    """
    if folder:
        model = storage.load_student(folder / "student.pt", "--run", settings.device)
    else:
        model = settings.base()
    endless = dataclasses.replace(settings, train_problems=0)  # no split here is of the pool
    probe, numbers = Probe.of(endless, "careful", model), {}
    for split in probe.task.splits[1:]:
        numbers |= measure_split(probe, split)
    return numbers | measure_forced(probe)


def measure_split(probe: Probe, split: str) -> dict[str, float | None]:
    """The numbers of one split, under names that hold its own."""
    model, task = probe.student, probe.task
    examples = task.evaluation(split, probe.settings.eval_problems, probe.rng)
    texts, rewards = probe.go_on(model, examples)
    opened = [[TOKEN_ID[MARKER]]] * len(examples)
    _, careful = probe.go_on(model, examples, prefixes=opened)
    _, banned = probe.go_on(model, examples, prefixes=opened, pick=without_marker)
    means = [task.measures(text, e)["direct_frac"] for text, e in zip(texts, examples)]
    left_out = [leaves_out(e.problem, text) for text, e in zip(texts, examples)
                if STEP_PATTERN.search(text)]
    glances = [bool(marker) for text in texts for marker in GLANCE_PATTERN.findall(text)]
    return {
        f"{split}_accuracy_frac": rewards.mean().item(),
        f"{split}_direct_frac": sum(means) / len(means),
        f"careful_{split}_accuracy_frac": careful.mean().item(),
        f"banned_{split}_accuracy_frac": banned.mean().item(),
        f"glances_per_completion_{split}": len(glances) / len(texts),
        f"checked_glances_frac_{split}": ratio(sum(glances), len(glances)),
        f"left_out_frac_{split}": ratio(sum(left_out), len(left_out)),
    }


def without_marker(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """As `minisd.pick_token`, but never the marker."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    logits = logits.masked_fill(ids == TOKEN_ID[MARKER], -torch.inf)
    return minisd.pick_token(logits, uniform, temperature)


def measure_forced(probe: Probe) -> dict[str, float | None]:
    """Accuracy behind the marker and a glance that is not the model's own, and who checks it.

    forced_<wrong or right>_glance_<reader>, and with _checked_frac the share that goes on with the
    marker. Readers are the model without context and, as its own teacher, with the solution.
    """
    task, numbers = probe.task, {}
    problems = longest_problems(task, probe.rng, probe.settings.eval_problems)
    examples = [Example(problem) for problem in problems]
    for glance in ("wrong", "right"):
        starts = [force_glance(problem, glance == "right", probe.rng) for problem in problems]
        prefixes = list(map(task.encode, starts))
        for reader, kind in READERS.items():
            hints = probe.contexts(examples, kind)
            texts, rewards = probe.go_on(probe.student, examples, hints, prefixes)
            checks = [text.startswith(start + MARKER) for text, start in zip(texts, starts)]
            name = f"forced_{glance}_glance_{reader}"
            numbers[name] = ratio(rewards.sum().item(), len(texts))
            numbers[f"{name}_checked_frac"] = ratio(sum(checks), len(texts))
    return numbers


def longest_problems(task: ToyTask, rng: random.Random, count: int) -> list[Problem]:
    """Fresh ones with the most operations that training has, or one less, but two: for a glance."""
    most = task.lengths[-1]
    if most < 2:
        return []
    lengths = f"{max(2, most - 1)}-{most}"
    return [draw_split(rng, task.world, "fresh", task.operators, lengths) for _ in range(count)]
