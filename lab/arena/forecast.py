"""The transplant forecast of a row's target: does the law rank fixes without training?

As `lab.forecast`: the class of each token from the row's target, the token within it from the
model without a hint. Weights per token, advantages and learning rates are not in it, so rows that
differ in these alone have one forecast. A row without a teacher's target has none.
"""

import random
from collections.abc import Callable

import torch
from torch import Tensor

import minisd
import toy_tasks
from lab.arena.run import TUNING, starting_model
from lab.arena.world import Setting
from lab.evaluation import seeded
from lab.fixes import FIXES
from lab.fixes.row import Recipe
from lab.fixes.targets import COMBINATIONS
from lab.forecast import TOY_CLASSES, token_classes, transplant
from minisd import GPT, Prompts, Sizes, Task

COUNT = 256  # fresh problems


def has_forecast(name: str, attempts: dict[str, str]) -> bool:
    """Whether a row has a target that can be shown before training, and no reward beside it."""
    recipe = FIXES[name].recipe
    return recipe.reward_weight == 0 and not any(c in attempts for _, _, c in recipe.terms)


def target_of(logits: list[Tensor], recipe: Recipe) -> Tensor:
    """The row's target (B, V) from the logits of its terms, in the middle of the training."""
    if recipe.combine:
        middle = recipe.at(1, 2)
        return COMBINATIONS[recipe.combine]([x[:, None] for x in logits], middle)[:, 0]
    return minisd.log_linear(logits, [a for a, _, _ in recipe.terms])


def forecast_of(setting: Setting, name: str, cache_dir: str, count: int = COUNT) -> float:
    """The accuracy on fresh problems (0-1) that the law predicts of a row, before training."""
    task = setting.task(TUNING.problems, TUNING.number)
    sizes = Sizes(max_new_tokens=setting.max_new_tokens)
    classes = token_classes(list(toy_tasks.VOCABULARY), TOY_CLASSES)
    model = starting_model(setting, TUNING, cache_dir)
    rewards = transplanted(task, model, FIXES[name].recipe, count, sizes, classes)
    return sum(rewards) / count


@torch.no_grad()
def transplanted(
    task: Task, model: GPT, recipe: Recipe, count: int, sizes: Sizes, classes: Tensor,
    law: Callable = transplant, seed: str = "arena-forecast",
) -> list[float]:
    """Rewards of texts about fresh problems, written by the law towards a row's target.

    Raises KeyError or ValueError where the task cannot show a context of the row.
    """
    rng, device = random.Random(seed), classes.device
    examples = task.evaluation("fresh", count, rng)
    kinds = ["none", *(context for _, _, context in recipe.terms)]
    # One hint a problem and kind: terms that see the same kind see the same.
    hints = {kind: [task.context(e, kind, rng) if kind != "none" else "" for e in examples]
             for kind in dict.fromkeys(kinds)}
    shown = [task.prompt_ids(e, hint) for kind in kinds for e, hint in zip(examples, hints[kind])]

    def pick(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        student, *terms = logits.chunk(len(kinds))
        found = law(student, target_of(terms, recipe), classes)
        token = minisd.pick_token(found, uniform.chunk(len(kinds))[0], temperature)
        return token.repeat(len(kinds))  # every copy of a text goes on alike

    shape, generator = (count, sizes.max_new_tokens), seeded(seed, device)
    uniforms = torch.rand(shape, generator=generator, device=device)
    with sizes.autocast(device):
        written = minisd.sample(
            [(1.0, model, Prompts.of(shown, task.pad_id, device))], pick=pick,
            max_new_tokens=sizes.max_new_tokens, end_ids=task.end_ids, pad_id=task.pad_id,
            uniforms=uniforms.repeat(len(kinds), 1))
    lengths = written.mask[:count].sum(1).tolist()
    texts = [task.decode(ids[:n]) for ids, n in zip(written.ids.tolist(), lengths)]
    return [task.reward(text, e) for text, e in zip(texts, examples)]
