"""Where a student landed between teachers that see different rules, from the folder of its run."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import minisd
import toy_tasks
from lab import storage
from lab.evaluation import evaluate, seeded
from lab.measures.formulas import ratio, total_variation
from lab.measures.probe import Settings, token_logits
from minisd import GPT, Completions, Method, Prompts, Row, Teacher, prompts_of
from toy_tasks import Example, Toy, ToyTask

DIFFERENT = 0.1  # total variation from which two teachers count as different at a token


def settings_of_run(
    folder: Path, device: str = "", cache_dir: str = "", *, with_rules: bool = True
) -> tuple[Settings, int]:
    """The settings and the CPU threads of a run in the toy; the arguments, if given, beat its own.

    Raises ValueError for another folder, and, with_rules, for a run without them.
    """
    groups = storage.read_settings(folder, "--run")
    has_rules = bool(groups["toy"].get("rules"))
    if not (folder / "student.pt").is_file() or (with_rules and not has_rules):
        words = "the folder of a finished run in the toy" + " with --rules" * with_rules
        raise ValueError(f"--run: {str(folder)!r}; allowed: {words}")
    try:
        run, toy = groups["run"], Toy(**groups["toy"])
        names = ("seed", "train_problems", "eval_problems", "max_new_tokens")
        kept = {name: run[name] for name in names} | {"cache_dir": cache_dir or run["cache_dir"]}
        return Settings(toy=toy, device=device or "cpu", **kept), run["threads"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"--run: {str(folder)!r} does not fit this version ({error})") from None


def measure_rules(settings: Settings, folder: Path) -> dict:
    """What the student of a run makes of rules that it cannot know, and its teachers' targets.

    share of <rule>: of the fresh completions that add that number. distance to mixture, to
    geometric mean: mean total variation distance from the student's next-token distribution to the
    mixture of the teachers' and to their normalised geometric mean, weighted by the odds of the
    rules, over the tokens of its completions at which the teachers differ (by DIFFERENT or more).
    """
    task, base = settings.task(), settings.base()
    student = storage.load_student(folder / "student.pt", "--run", settings.device)
    examples, prompts, completions = fresh_completions(settings, task, student)
    odds = {r: task.rules.count(r) / len(task.rules) for r in sorted(set(task.rules))}
    return {
        "accuracy of the student / of its teacher": accuracy_ratio(settings, task, student, base),
        **rule_shares(task, examples, completions, list(odds)),
        **distances(task, (student, base), examples, prompts, completions, odds),
    }


def accuracy_ratio(settings: Settings, task: ToyTask, student: GPT, base: GPT) -> float | None:
    """Accuracy on fresh problems of the student over that of its teacher, which sees the rule."""
    count = {"count": settings.eval_problems, "seed": settings.seed, "sizes": settings.sizes}
    teacher = Teacher(Method(teacher="live", context="rule"), base)
    pair = (evaluate(task, author, "fresh", **count) for author in (student, teacher))
    return ratio(*(found.means["accuracy_frac"] for found in pair))


def fresh_completions(
    settings: Settings, task: ToyTask, student: GPT, name: str = "rules"
) -> tuple[list[Example], Prompts, Completions]:
    """Fresh examples with the student's prompts and completions, from random numbers of a name."""
    name, device = f"{name}-{settings.seed}", torch.device(settings.device)
    examples = task.evaluation("fresh", settings.eval_problems, random.Random(name))
    prompts = prompts_of(task, [Row(e, {"none": ""}) for e in examples], "none", device)
    completions = minisd.sample(
        [(1.0, student, prompts)], max_new_tokens=settings.max_new_tokens, end_ids=task.end_ids,
        pad_id=task.pad_id, generator=seeded(name, device),
    )
    return examples, prompts, completions


def rule_shares(
    task: ToyTask, examples: list[Example], completions: Completions, rules: list[int]
) -> dict[str, float | None]:
    """How many completions add each rule, whichever their example has."""
    answers = [toy_tasks.final_answer(task.decode(row)) for row in completions.ids.tolist()]
    numbers = {}
    for rule in rules:
        hits = [a == Example(e.problem, rule).answer for a, e in zip(answers, examples)]
        numbers[f"share of {rule}"] = float(np.mean(hits))
    shares = list(numbers.values())
    numbers["rule 7 among those that add a rule"] = ratio(shares[-1], sum(shares))
    return numbers


@torch.no_grad()
def distances(
    task: ToyTask, models: tuple[GPT, GPT], examples: list[Example], prompts: Prompts,
    completions: Completions, odds: dict[int, float],
) -> dict[str, float]:
    """Distances of the student, the first of the models, to the two means of its teachers."""
    student, base = models
    p = minisd.log_softmax(token_logits(student, prompts, completions)).exp()  # (N, V)
    log_q = teachers_log_probs(task, base, examples, completions, list(odds))
    differ = total_variation(log_q[0].exp(), log_q[-1].exp()) >= DIFFERENT
    if not differ.any():  # as with one rule, where both targets are the same: all tokens
        differ = torch.ones_like(differ)
    numbers = {}
    for name, target in means_of_teachers(log_q, list(odds.values())).items():
        numbers[f"distance to {name}"] = total_variation(p, target)[differ].mean().item()
    farther = numbers["distance to mixture"] - numbers["distance to geometric mean"]
    return numbers | {"mixture farther by": farther}


@torch.no_grad()
def teachers_log_probs(
    task: ToyTask, base: GPT, examples: list[Example], completions: Completions, rules: list[int]
) -> list[Tensor]:
    """log q (N, V) at every completion token, of the teacher that is shown each of the rules."""
    log_q = []
    for rule in rules:
        ruled = [Example(e.problem, rule) for e in examples]
        hints = [task.context(e, "rule", random.Random(0)) for e in ruled]  # draws nothing
        rows = [Row(e, {"rule": hint}) for e, hint in zip(ruled, hints)]
        shown = prompts_of(task, rows, "rule", completions.ids.device)
        log_q.append(minisd.log_softmax(token_logits(base, shown, completions)))
    return log_q


def means_of_teachers(log_q: list[Tensor], weights: list[float]) -> dict[str, Tensor]:
    """Their weighted arithmetic and normalised geometric mean, (N, V) each."""
    arithmetic = sum(w * x.exp() for w, x in zip(weights, log_q))
    geometric = sum(w * x for w, x in zip(weights, log_q)).softmax(-1)
    return {"mixture": arithmetic, "geometric mean": geometric}
