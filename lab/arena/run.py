"""One run of the arena: a row in a universe, trained on equal tokens, and what became of it."""

import copy
import itertools
import random
import re
import time
from dataclasses import dataclass, replace

import torch

import minisd
from lab.arena.world import PRETRAIN_STEPS, Setting
from lab.evaluation import evaluate, seeded
from lab.fixes import FIXES, CombinedTeacher, Recipe
from lab.fixes.advantages import READINGS
from lab.fixes.routing import GATES
from minisd import GPT, Method, Prompts, Row, Sizes, Task
from toy_tasks import MARKER, TOKEN_ID

STEPS = 32  # of the optimiser, for every row
EVERY = 8  # steps between looks at the training problems
POOL_LOOK, LOOK, SIDE = 64, 256, 128  # completions: at the pool on the way, fresh, other splits
MOST_GROUPS = 64
GLANCE = re.compile(rf"\d(?:[+*-]\d){{2,}}=\d; ({MARKER})?")


@dataclass(frozen=True)
class Universe:
    """What a paper could have chosen differently; its number seeds pool and samples."""

    number: int
    group_size: int
    problems: int
    base: float  # share of the pretraining
    base_seed: int

    @property
    def words(self) -> str:
        return f"groups of {self.group_size}, {self.problems} problems, {self.base:.0%} base"


def eight() -> list[Universe]:
    """The full grid, in an order in which every second one mirrors the one before it.

    So any even number of them is balanced. Base models are of two seeds, by the parity of the
    first two choices, so that each choice meets both.
    """
    grid = list(itertools.product((8, 2), (64, 8), (1.0, 0.7)))
    order = (0, 7, 3, 4, 5, 2, 6, 1)
    return [Universe(n, *grid[i], (i >> 2 & 1) ^ (i >> 1 & 1)) for n, i in enumerate(order)]


UNIVERSES = eight()
RATES = (1e-4, 3e-4, 1e-3)
TUNING = Universe(100, 8, 64, 1.0, 0)  # where learning rates are chosen, and nothing else


def starting_model(setting: Setting, universe: Universe, cache_dir: str) -> GPT:
    return setting.base(universe.base_seed, universe.base, PRETRAIN_STEPS, cache_dir)


class Counted:
    """A task that counts the tokens of all completions, also of groups that are thrown away."""

    def __init__(self, task: Task):
        self.task, self.tokens = task, 0

    def __getattr__(self, name: str):
        return getattr(self.task, name)

    def decode(self, ids: list[int]) -> str:
        self.tokens += len(ids)
        return self.task.decode(ids)


def train(
    setting: Setting, name: str, universe: Universe, rate: float, base: GPT, *, steps: int = STEPS
) -> tuple[GPT, dict]:
    """The trained student, and what happened: curves over sampled tokens, seconds."""
    recipe: Recipe = replace(FIXES[name].recipe, learning_rate=rate)
    task = setting.task(universe.problems, universe.number)
    counted = Counted(task)
    student = copy.deepcopy(base)
    teacher = CombinedTeacher(recipe, student)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    key = f"arena-{universe.number}"
    rng, generator = random.Random(key), seeded(key, torch.device("cpu"))
    sizes = Sizes(1, universe.group_size, setting.max_new_tokens)
    look = {"count": POOL_LOOK, "seed": universe.number, "sizes": sizes}
    seen = [evaluate(task, student, "train", **look).means]
    length, tokens, history, is_open = seen[0]["completion_tokens"], 0, [], True
    curve, begun = [(0, seen[0]["accuracy_frac"])], time.process_time()
    readings = READINGS if recipe.gate == "entropy" else None
    for n in range(steps):
        groups = round(setting.step_tokens / universe.group_size / max(1.0, length))
        sizes = replace(sizes, groups=min(MOST_GROUPS, max(2, groups)))
        method = teacher.method = recipe.at(n, steps, is_open)
        written = replace(method, student_context=recipe.sampling_context or "none")
        before = counted.tokens
        batch = minisd.rollout(written, counted, student, teacher, rng, generator, sizes)
        drawn = counted.tokens - before
        numbers = minisd.step(
            method, student, teacher, optimizer, batch, reference=base, readings=readings)
        mask = batch.completions.mask
        tokens += drawn
        # Drawn for each completion that is kept, so that all rows draw equally many.
        length = mask.sum(1).float().mean().item() * (drawn / int(mask.sum()))
        cut = (mask.sum(1) >= setting.max_new_tokens).float().mean().item()
        history.append(
            numbers | {"reward": batch.rewards.mean().item(), "cut_frac": cut, "tokens": tokens})
        if recipe.gate:
            is_open = GATES[recipe.gate](history, is_open)
            teacher.method = replace(method, is_open=is_open)
        teacher.update(n + 1)
        if (n + 1) % EVERY == 0 or n + 1 == steps:
            seen.append(evaluate(task, student, "train", **look).means)
            curve.append((tokens, seen[-1]["accuracy_frac"]))
    seconds = time.process_time() - begun
    return student, {"curve": curve, "tokens": tokens, "step_s": seconds / steps}


def area(curve: list[tuple[int, float]]) -> float:
    """Mean accuracy over the sampled tokens, by trapezoids, of (tokens, accuracy) pairs.

    >>> area([(0, 0.0), (10, 1.0), (20, 1.0)])
    0.75
    """
    parts = [(b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(curve)]
    return sum(parts) / (curve[-1][0] - curve[0][0])


@torch.no_grad()
def measured(setting: Setting, universe: Universe, student: GPT, base: GPT) -> dict[str, float]:
    """What the trained student does, on the pool, on fresh problems and with new operators."""
    task = setting.task(universe.problems, universe.number)
    sizes = Sizes(1, 1, setting.max_new_tokens)
    look = {"seed": universe.number, "sizes": sizes}
    train_set = evaluate(task, student, "train", count=LOOK, **look)
    fresh = evaluate(task, student, "fresh", count=LOOK, **look)
    new = evaluate(task, student, "new_operators", count=SIDE, **look)
    glances = [bool(m) for text in fresh.texts for m in GLANCE.findall(text)]
    return {
        "train": train_set.means["accuracy_frac"], "fresh": fresh.means["accuracy_frac"],
        "new_operators": new.means["accuracy_frac"],
        "doubt": fresh.means["markers_per_completion"], "direct": fresh.means["direct_frac"],
        "checked": sum(glances) / len(glances) if glances else None,
        "tokens": fresh.means["completion_tokens"],
        "careful": opened_accuracy(task, student, fresh.examples[:SIDE], sizes, universe.number),
        "kl": kl_from(task, student, base, fresh),
    }


def opened_accuracy(task, student: GPT, examples: list, sizes: Sizes, seed: int) -> float:
    """Accuracy on these problems if `wait` is the first token."""
    prompts = [[*task.prompt_ids(e), TOKEN_ID[MARKER]] for e in examples]
    written = minisd.sample(
        [(1.0, student, Prompts.of(prompts, task.pad_id))], end_ids=task.end_ids,
        max_new_tokens=sizes.max_new_tokens, pad_id=task.pad_id,
        generator=seeded(f"opened-{seed}", torch.device("cpu")))
    texts = [MARKER + task.decode(ids) for ids in written.ids.tolist()]
    return sum(task.reward(text, e) for text, e in zip(texts, examples)) / len(examples)


def kl_from(task, student: GPT, base: GPT, evaluation) -> float:
    """KL(student || initial model) per token of the student's own fresh completions, nats."""
    rows = [Row(e, {"none": ""}) for e in evaluation.examples[:SIDE]]
    ids = [[*task.encode(text), task.end_ids[0]] for text in evaluation.texts[:SIDE]]
    completions = minisd.Completions.of(ids, task.pad_id)
    shown = {"none": minisd.prompts_of(task, rows, "none", torch.device("cpu"))}
    batch = minisd.Batch(rows, shown, completions, torch.zeros(len(rows)), Sizes())
    method = Method(teacher="live", context="solution")  # its reverse KL; terms are given
    x = minisd.score(method, student, [(1.0, base, shown["none"])], batch)
    return (x["divergence"].sum() / completions.mask.sum()).item()


def result_of(
    setting: Setting, name: str, universe: Universe, rate: float, cache_dir: str,
    base: GPT | None = None,
) -> dict:
    """The numbers of one run; `failed` says why there are none."""
    base = base or starting_model(setting, universe, cache_dir)
    try:
        student, happened = train(setting, name, universe, rate, base)
    except FloatingPointError as error:
        return {"failed": str(error), "rate": rate}
    numbers = {"rate": rate, "speed": area(happened["curve"])} | happened
    if universe is TUNING:  # only training problems are looked at
        task = setting.task(universe.problems, universe.number)
        sizes = Sizes(1, 1, setting.max_new_tokens)
        found = evaluate(task, student, "train", count=LOOK, seed=universe.number, sizes=sizes)
        return numbers | {"train": found.means["accuracy_frac"]}
    sampled = numbers.pop("tokens")
    return numbers | {"sampled_tokens": sampled} | measured(setting, universe, student, base)
