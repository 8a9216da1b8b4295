"""Whether a world can tell fixes apart: looked at, and printed, before any comparison."""

import random
import re

import torch

import minisd
from lab.arena.run import TUNING, starting_model
from lab.arena.world import Setting
from lab.evaluation import evaluate
from minisd import Completions, Row, Sizes

CONTRAST, PASS = 0.1, (0.05, 0.2)  # nats at step digits, least; base pass rate
RESULT = re.compile(r"=(?=\d; )")


@torch.no_grad()
def gate_of(setting: Setting, grpo: dict[float, dict], cache_dir: str, count: int = 128) -> dict:
    """Contrast at step digits, the base model's pass rate, and where GRPO's best rate lies.

    Contrast: mean |log p(d | r+) - log p(d | r-)| in nats over the results d of the steps that the
    base model writes, r+ a right solution in view, r- a wrong one. hint: the same of r+ and none.
    """
    task, base = setting.task(TUNING.problems, TUNING.number), starting_model(
        setting, TUNING, cache_dir)
    sizes = Sizes(1, 1, setting.max_new_tokens)
    found = evaluate(task, base, "train", count=count, seed=TUNING.number, sizes=sizes)
    ids = [[*task.encode(text), task.end_ids[0]] for text in found.texts]
    completions, rng = Completions.of(ids, task.pad_id), random.Random("gate")
    read = {}
    for kind in ("none", "solution", "wrong"):
        rows = [Row(e, {kind: task.context(e, kind, rng)}) for e in found.examples]
        shown = minisd.prompts_of(task, rows, kind, torch.device("cpu"))
        states = minisd.completion_hidden(base, shown, completions.ids)
        read[kind] = minisd.token_log_probs(base.lm_head(states), completions.ids)
    digits = torch.zeros_like(completions.mask)
    for row, text in enumerate(found.texts):
        for place in RESULT.finditer(text):
            digits[row, len(task.encode(text[: place.end()]))] = True
    def gap(a: str, b: str) -> float:
        return (read[a] - read[b])[digits].abs().mean().item()

    rates = {rate: result.get("train", 0.0) for rate, result in grpo.items()}
    best = max(rates, key=rates.get)
    gate = {"world": setting.name, "contrast_nats": gap("solution", "wrong"),
            "hint_nats": gap("solution", "none"), "pass_rate": found.means["accuracy_frac"],
            "grpo_best_rate": best, "grpo_by_rate": {f"{r:g}": a for r, a in rates.items()}}
    met = {"contrast": gate["contrast_nats"] >= CONTRAST,
           "pass_rate": PASS[0] <= gate["pass_rate"] <= PASS[1],
           "grpo_rate": min(rates) < best < max(rates)}
    return gate | {"met": met, "open": all(met.values())}
