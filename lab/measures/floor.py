"""How near a student that does not see the rule can come to teachers that do."""

from pathlib import Path

import torch
from torch import Tensor

import minisd
from lab import storage
from lab.measures.probe import Settings, token_logits
from lab.measures.rules import fresh_completions, means_of_teachers, teachers_log_probs
from minisd import GPT
from toy_tasks import ToyTask


def measure_floor(settings: Settings, folder: Path) -> dict[str, float]:
    """Forward KL to the teachers and its floor, of the base model and of the student it became.

    With w_r the odds of rule r, q_r its teacher and m = sum_r w_r q_r, at every prefix
    sum_r w_r KL(q_r || p) = I + KL(m || p), I = sum_r w_r KL(q_r || m): what the next token tells
    of the rule is the floor of every p that does not see the rule. All rules are enumerated. In
    nats, per completion of a fresh problem and per token of these.
    """
    task, base = settings.task(), settings.base()
    student = storage.load_student(folder / "student.pt", "--run", settings.device)
    numbers = {}
    for when, model in (("before", base), ("after", student)):
        loss, floor, completions = loss_and_floor(settings, task, model, base)
        for name, values in (("forward KL", loss), ("floor", floor)):
            numbers[f"{name} {when}"] = values.sum().item() / completions
            numbers[f"{name} per token {when}"] = values.mean().item()
    return numbers


@torch.no_grad()
def loss_and_floor(
    settings: Settings, task: ToyTask, student: GPT, base: GPT
) -> tuple[Tensor, Tensor, int]:
    """Both (N,) at the tokens of the student's fresh completions, and how many completions."""
    examples, prompts, completions = fresh_completions(settings, task, student, "floor")
    odds = {r: task.rules.count(r) / len(task.rules) for r in sorted(set(task.rules))}
    log_p = minisd.log_softmax(token_logits(student, prompts, completions))  # (N, V)
    log_q = teachers_log_probs(task, base, examples, completions, list(odds))
    log_m = means_of_teachers(log_q, list(odds.values()))["mixture"].log()

    def mean_kl(target: Tensor) -> Tensor:
        return sum(w * minisd.kl(x, target) for w, x in zip(odds.values(), log_q))

    return mean_kl(log_p), mean_kl(log_m), len(examples)
