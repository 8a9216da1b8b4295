"""How far a student is from its teacher at tokens that do not move while it is trained."""

import random
from pathlib import Path

import torch

import minisd
from lab import storage
from lab.measures.probe import Probe, Settings, token_logits


@torch.no_grad()
def measure_distance(settings: Settings, folder: Path) -> dict[str, float]:
    """Mean KL(teacher || student) of a run before and after training, in nats per token.

    The teacher is the base model with the solution. The tokens are those of the base model's own
    completions of training problems, both times: on the student's, which change with it, the KL
    also grows or falls because other places are looked at.
    """
    task, count = settings.task(), settings.eval_problems
    examples = task.evaluation("train", count, random.Random(f"distance-{settings.seed}"))
    probe = Probe.draw(settings, "distance", [e.problem for e in examples])
    base, completions = probe.student, probe.rows(probe.texts)
    hinted = probe.prompts(probe.examples, probe.contexts(probe.examples, "solution"))
    teacher = token_logits(base, hinted, completions)[None]  # (1, N, V)
    student = storage.load_student(folder / "student.pt", "--run", settings.device)
    numbers = {}
    for when, model in (("before", base), ("after", student)):
        logits = token_logits(model, probe.prompts(probe.examples), completions)[None]
        numbers[f"forward KL {when}"] = minisd.forward_kl(logits, teacher).mean().item()
    return numbers
