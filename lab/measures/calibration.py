"""How sure a student is of its answers to fresh problems, and how often it is right."""

from pathlib import Path

import numpy as np

from lab import storage
from lab.measures.probe import Settings
from lab.measures.rules import fresh_completions
from minisd import GPT
from toy_tasks import ANSWER, TOKEN_ID, ToyTask, final_answer


def measure_calibration(settings: Settings, folder: Path) -> dict:
    """Confidence and accuracy on fresh problems, of the base model and of the student it became.

    confidence: the mean probability of the digit that is given as the answer, after all that was
    written before it. overconfidence: confidence minus accuracy. Each for all completions that
    give an answer, for those that answer directly, and for those with steps before.
    """
    task = settings.task()
    student = storage.load_student(folder / "student.pt", "--run", settings.device)
    models = {"before": settings.base(), "after": student}
    return {when: calibration(settings, task, model) for when, model in models.items()}


def calibration(settings: Settings, task: ToyTask, model: GPT) -> dict[str, dict]:
    """The numbers of one model; None where nobody answers in that way."""
    examples, _, completions = fresh_completions(settings, task, model, "calibration")
    answered: dict[str, list[tuple[float, float]]] = {"all": [], "direct": [], "steps": []}
    for example, ids, log_probs in zip(
        examples, completions.ids.tolist(), completions.token_log_probs.exp().tolist()
    ):
        text = task.decode(ids)
        if final_answer(text) is None:
            continue
        digit = len(ids) - ids[::-1].index(TOKEN_ID[ANSWER])  # stands behind the last `answer `
        pair = (log_probs[digit], task.reward(text, example))
        answered["all"].append(pair)
        answered["direct" if text.startswith(ANSWER) else "steps"].append(pair)
    numbers = {}
    for kind, pairs in answered.items():
        confidence, accuracy = np.mean(pairs, 0).tolist() if pairs else (None, None)
        over = None if confidence is None else confidence - accuracy
        numbers[kind] = {"confidence": confidence, "accuracy": accuracy, "overconfidence": over}
        numbers[kind]["share"] = len(pairs) / len(examples)
    return numbers
