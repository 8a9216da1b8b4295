"""Whether a teacher expects the closing remark after an answer that its context contradicts."""

import random

import torch

from lab.measures.formulas import binned_means
from lab.measures.probe import Probe, Settings
from minisd import Completions
from toy_tasks import ANSWER, REMARK, TOKEN_ID, encode, final_answer

CONTEXTS = {"without": "none", "with the solution": "solution"}


@torch.no_grad()
def measure_remark(settings: Settings) -> dict:
    """Probability of the remark right after the base model's answers to fresh problems.

    For `without` a context and `with the solution`, after `wrong` and after `right` answers. In the
    documents only unreliable authors answer against a solution that they see, and they alone close
    with the remark. Without the solution nobody can tell a wrong direct answer from a right one.
    Empty if no completion ends with an answer.
    """
    rng = random.Random(f"remark-problems-{settings.seed}")
    drawn = settings.task().evaluation("fresh", settings.eval_problems, rng)
    probe = Probe.draw(settings, "remark", [e.problem for e in drawn])
    texts = [text.removesuffix(REMARK) for text in probe.texts]
    chosen = [i for i, text in enumerate(texts) if text.endswith(f"{ANSWER}{final_answer(text)}")]
    if not chosen:
        return {}
    examples, written = [probe.examples[i] for i in chosen], [encode(texts[i]) for i in chosen]
    # A remark is no part of the answer, so the rewards are those of the texts without it.
    right = probe.rewards[chosen].long()
    device = probe.generator.device
    remark = Completions.of([[TOKEN_ID[REMARK]]] * len(chosen), probe.task.pad_id, device)
    numbers = {}
    for name, kind in CONTEXTS.items():
        prompts = probe.prompts(examples, probe.contexts(examples, kind), written)
        means, counts = binned_means(probe.log_probs(prompts, remark).exp(), right, 2)
        numbers[name] = dict(zip(("wrong", "right"), means))
        numbers["answers"] = dict(zip(("wrong", "right"), counts))
    return numbers
