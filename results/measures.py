"""What the arms of the claims measure: functions of a configuration that return numbers by name.

1 what training does   2 what a context tells   3 the horizon of the teacher   4 gradients

The first trains; the others look at the base model and the gradients that it would be given.
"""

import dataclasses
import math
import random
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import minisd
import toy_tasks
from minisd import GPT, Completions, Prompts, Teacher
from toy_tasks import Example, Task, ToyTask
from train_gpt import (
    MEASURES,
    METHODS,
    Log,
    TrainConfig,
    backward,
    base_model,
    collect,
    distillation_values,
    evaluate,
    evaluate_all,
    evaluate_teacher,
    external_base,
    initial_model,
    make_prompts,
    make_task,
    make_teacher,
    position_terms,
    post_train,
    reference_terms,
    seeded,
    warm_start,
    write,
)

# 1. What training does ----------------------------------------------------------------------------


def measure_training(config: TrainConfig) -> dict[str, Any]:
    """Every measure of every split before and after training, the teacher's accuracy, curves."""
    return train_and_measure(config)[0]


def train_and_measure(config: TrainConfig) -> tuple[dict[str, Any], Task, GPT]:
    """The numbers of `measure_training`, the task, and the student as it has become."""
    student, _, _ = initial_model(config)
    task = make_task(config)
    before = evaluate_all(config, task, student, Teacher("live", student))
    if config.warm_start_steps:
        warm_start(config, task, student)
    teacher = make_teacher(config, task, student)
    at_start = evaluate_teacher(config, task, teacher, before["train"].texts)
    log = Log(None, quiet=True, rows=[])
    post_train(config, task, student, teacher, log)
    results = {"before": before, "after": evaluate_all(config, task, student, teacher)}
    accuracy = at_start.means["accuracy_frac"]
    numbers: dict[str, Any] = {"initial teacher accuracy": accuracy}
    numbers["initial gap"] = accuracy - before["train"].means["accuracy_frac"]
    for when, splits in results.items():
        for split, evaluation in splits.items():
            for name, (_, heading) in MEASURES.items():
                numbers[f"{when}.{split}.{heading}"] = evaluation.means[name]
    steps = [row for row in log.rows if row["kind"] == "step"]
    numbers["curve.generations"] = [row["step"] * config.batch_size for row in steps]
    for name in ("reward", "completion_tokens", "reverse_kl"):
        numbers[f"curve.{name}"] = [row[name] for row in steps]
    rewards = numbers["curve.reward"]
    numbers["mean reward"] = float(np.mean(rewards))
    # Those of the whole run if a batch never gets there: a lower bound.
    reached = [n for n, r in zip(numbers["curve.generations"], rewards) if r >= 0.9]
    numbers["generations to 0.9"] = (reached or numbers["curve.generations"][-1:])[0]
    return numbers, task, student


def measure_rules(config: TrainConfig) -> dict[str, Any]:
    """`measure_training`, and where the student landed between teachers that see different rules.

    share of <rule>: of the fresh completions that add that number. distance to mixture, to
    geometric mean: mean total variation distance from the student's next-token distribution to the
    mixture of the teachers' and to their normalised geometric mean, weighted by the odds of the
    rules, over the tokens of its completions at which the teachers differ (by 0.1 or more).
    """
    numbers, task, student = train_and_measure(config)
    teacher = initial_model(config)[0]
    aided = evaluate(config, task, teacher, "fresh", context="rule").means["accuracy_frac"]
    numbers["accuracy of the student / of its teacher"] = ratio(
        numbers["after.fresh.accuracy"], aided
    )
    rng = random.Random(f"rules-{config.seed}")
    examples = task.evaluation("fresh", config.eval_problems, rng)
    device = next(student.parameters()).device
    prompts = make_prompts(task, examples, [""] * len(examples), device)
    generator = seeded(f"rules-{config.seed}", device)
    completions = write(config, task, student, prompts, slice(None), generator, temperature=1.0)
    answers = [toy_tasks.final_answer(task.decode(row)) for row in completions.ids.tolist()]
    odds = {r: task.rules.count(r) / len(task.rules) for r in sorted(set(task.rules))}
    for rule in odds:
        hits = [a == (e.problem.values[-1] + rule) % 10 for a, e in zip(answers, examples)]
        numbers[f"share of {rule}"] = float(np.mean(hits))
    shares = [numbers[f"share of {rule}"] for rule in odds]
    numbers["rule 7 among those that add a rule"] = ratio(shares[-1], sum(shares))
    with torch.no_grad():
        p = minisd.log_softmax(completion_logits(student, prompts, completions)).exp()  # (N, V)
        log_q = []
        for rule in odds:
            hints = [task.context(Example(e.problem, rule), "rule", rng) for e in examples]
            hinted = make_prompts(task, examples, hints, device)
            log_q.append(minisd.log_softmax(completion_logits(teacher, hinted, completions)))
    weights = list(odds.values())
    arithmetic = sum(w * x.exp() for w, x in zip(weights, log_q))
    geometric = sum(w * x for w, x in zip(weights, log_q)).softmax(-1)
    differ = total_variation(log_q[0].exp(), log_q[-1].exp()) >= 0.1
    if not differ.any():  # as with one rule, where both targets are the same: all tokens
        differ = torch.ones_like(differ)
    for name, target in (("mixture", arithmetic), ("geometric mean", geometric)):
        numbers[f"distance to {name}"] = total_variation(p, target)[differ].mean().item()
    numbers["mixture farther by"] = (
        numbers["distance to mixture"] - numbers["distance to geometric mean"]
    )
    return numbers


def ratio(part: float, whole: float) -> float | None:
    """part / whole; None, for not measured, of nothing."""
    return part / whole if whole else None


def completion_logits(model: GPT, prompts: Prompts, completions: Completions) -> Tensor:
    """Logits (N, V) of the N completion tokens of a batch."""
    hidden = minisd.completion_hidden(model, prompts.ids, prompts.pad_count, completions.ids)
    return model.head(hidden[completions.mask])


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of |p - q| over the last axis: the mass (0-1) on which they differ."""
    return (p - q).abs().sum(-1) / 2


# 2. What a context tells (claim information) ------------------------------------------------------

# A rule changes what the right answer is, so it is no context of the same problem.
INFORMATION_CONTEXTS = tuple(c for c in toy_tasks.CONTEXTS if c != "rule")
SIBLINGS = 8  # contexts per problem in the mutual information, which can show at most log 8 nats


@dataclass
class Probe:
    """What all measurements start from: problems, and the base model's completions of them."""

    config: TrainConfig
    task: ToyTask
    student: GPT
    rng: random.Random
    generator: torch.Generator
    examples: list[Example]  # each one `repeats` times in a row
    texts: list[str]
    rewards: Tensor  # (B,)

    @classmethod
    def draw(cls, config: TrainConfig, name: str, problems: list, repeats: int = 1) -> "Probe":
        """The base model's own completions of the problems, from random numbers of that name."""
        task, (student, _, _) = make_task(config), initial_model(config)
        generator = seeded(f"{name}-{config.seed}", next(student.parameters()).device)
        examples = [Example(p) for p in problems for _ in range(repeats)]
        rng = random.Random(f"{name}-{config.seed}")
        probe = cls(config, task, student, rng, generator, examples, [], torch.zeros(0))
        probe.texts, probe.rewards = probe.go_on(student, examples)
        return probe

    def contexts(self, examples: list[Example], kind: str, attempts=None) -> list[str]:
        attempts = attempts or [""] * len(examples)
        return [self.task.context(e, kind, self.rng, a) for e, a in zip(examples, attempts)]

    def prompts(self, examples: list[Example], contexts=None, prefixes=None) -> Prompts:
        """Prompts that end with a prefix (token ids) of the completion."""
        contexts, prefixes = contexts or [""] * len(examples), prefixes or [[]] * len(examples)
        rows = [
            self.task.prompt_ids(e, c) + list(p) for e, c, p in zip(examples, contexts, prefixes)
        ]
        return Prompts(*minisd.pad_left(rows, self.task.pad_id, self.generator.device))

    def write(self, model: GPT, prompts: Prompts) -> Completions:
        return write(
            *(self.config, self.task, model, prompts, slice(None), self.generator), temperature=1.0
        )

    def go_on(
        self, model: GPT, examples: list[Example], contexts=None, prefixes=None
    ) -> tuple[list[str], Tensor]:
        """Whole completions as the model finishes each prefix (default: none), and rewards (B,)."""
        if not examples:
            return [], torch.zeros(0)
        ids = self.write(model, self.prompts(examples, contexts, prefixes)).ids.tolist()
        prefixes = prefixes or [[]] * len(examples)
        texts = [self.task.decode([*p, *row]) for p, row in zip(prefixes, ids)]
        grades = [self.task.grade(text, e) for text, e in zip(texts, examples)]
        return texts, torch.tensor([g.reward for g in grades])

    def sums(self, prompts: Prompts, completions: Completions, terms) -> Tensor:
        """Sums (B,) over the tokens of the one reading that `terms` returns; see `minisd.score`."""
        parts = torch.arange(len(completions.ids)).split(128)  # 128 rows stay in a core's cache
        scored = [
            minisd.score(self.student, prompts.take(i), completions.take(i), terms) for i in parts
        ]
        return torch.cat([value.sum(1) for part in scored for value in part.values()])

    def rows(self, texts: list[str]) -> Completions:
        """Texts as completions with their end token."""
        rows = [[*self.task.encode(text), self.task.end_id] for text in texts]
        return Completions.from_rows(rows, self.task.pad_id, self.generator.device)


def mean_and_error(values: Tensor) -> list[float | None]:
    """[mean, standard error] of independent values; [None, None] of fewer than two."""
    if len(values) < 2:
        return [None, None]
    return [values.mean().item(), (values.std() / len(values) ** 0.5).item()]


@torch.no_grad()
def sampled_entropy(
    probe: Probe, examples: list[Example], contexts: list[str], samples: int
) -> Tensor:
    """Estimates (B, samples) of the entropy of whole completions, in nats.

    The chain rule with each position's entropy computed exactly: only the prefixes are sampled.
    """
    if not examples:
        return torch.zeros(0, samples)
    repeated = [e for e in examples for _ in range(samples)]
    prompts = probe.prompts(repeated, [c for c in contexts for _ in range(samples)])
    completions = probe.write(probe.student, prompts)
    entropies = probe.sums(prompts, completions, lambda p, q, ids: {"": minisd.entropy(p)})
    return entropies.view(len(examples), samples)


def measure_information(config: TrainConfig) -> dict:
    """How much each context tells the base model about its completion, in nats per completion.

    information: H(y|x) - H(y|x,c), [mean, standard error over fresh problems], of the entropies of
    one network without and with the context. NOTE: this is a gap between two policies, no Shannon
    information: where c is a function of x, as in `answer`, `partial` and `solution`, I(y;c|x) of
    a student that could compute c is 0, and where the policy without context is not the mean over c
    of those with it the gap may even be negative (a context can make its reader less certain).
    enumerated: the same gap on a few problems of one operation and for the first ENUMERATED_TOKENS,
    [exact but for improbable prefixes, bound of what these change, by sampling, standard error].
    mutual_information: for contexts that are random given x, I(y;c|x) of the policy with context,
    under its own marginal E_c pi(y|x,c): {"below", "above"} bracket it, [mean, standard error]
    each. `sibling` is a correct completion of the student's own; problems without are left out.
    """
    rng = random.Random(f"information-problems-{config.seed}")
    task = make_task(config)
    problems = [e.problem for e in task.evaluation("fresh", config.eval_problems, rng)]
    draws = 2 * SIBLINGS
    probe = Probe.draw(config, "information", problems, draws)
    examples, result = probe.examples[::draws], {"information": {}, "entropy": {}}
    groups = [range(i, i + draws) for i in range(0, len(probe.examples), draws)]
    siblings = [[probe.texts[i] for i in g if probe.rewards[i] == 1] for g in groups]

    unaided = sampled_entropy(probe, examples, [""] * len(examples), samples=2).mean(1)
    for kind in INFORMATION_CONTEXTS:
        use = [i for i in range(len(examples)) if siblings[i] or kind != "sibling"]
        shown = [siblings[i][0] if kind == "sibling" else probe.texts[groups[i][0]] for i in use]
        chosen = [examples[i] for i in use]
        contexts = probe.contexts(chosen, kind, shown)
        aided = sampled_entropy(probe, chosen, contexts, samples=2).mean(1)
        result["information"][kind] = mean_and_error(unaided[use] - aided)
        result["entropy"][kind] = mean_and_error(aided)

    enough = [i for i in range(len(examples)) if len(siblings[i]) >= SIBLINGS]
    chosen = [examples[i] for i in enough]
    attempts = {
        "sibling": [siblings[i][:SIBLINGS] for i in enough],
        "feedback": [[probe.texts[j] for j in groups[i]][:SIBLINGS] for i in enough],
    }
    attempts["other_problem"] = attempts["feedback"]  # not shown
    result["mutual_information"] = {
        kind: mutual_information(probe, chosen, kind, shown) for kind, shown in attempts.items()
    }
    result["mutual_information_problems"] = len(chosen)
    result["enumerated"] = enumerated_information(probe)
    return result


@torch.no_grad()
def mutual_information(
    probe: Probe, examples: list[Example], kind: str, attempts: list[list[str]]
) -> dict[str, list[float | None]]:
    """I(y;c|x) of a context that is random given x, see `measure_information`.

    attempts: for each example the completions that its SIBLINGS contexts are made of.
    """
    if not examples:
        return {"below": [None, None], "above": [None, None]}
    repeated = [e for e in examples for _ in range(SIBLINGS)]
    contexts = probe.contexts(repeated, kind, [a for row in attempts for a in row])
    prompts = probe.prompts(repeated, contexts)  # (B * M, P)
    first = torch.arange(0, len(repeated), SIBLINGS)
    written = probe.write(probe.student, prompts.take(first))
    all_contexts = written.take(torch.arange(len(examples)).repeat_interleave(SIBLINGS))
    log_probs = probe.sums(prompts, all_contexts, reference_terms).view(-1, SIBLINGS)
    below, above = minisd.mutual_information_bounds(log_probs)
    return {"below": mean_and_error(below), "above": mean_and_error(above)}


# Of the enumeration: problems, tokens of a completion, probability of a prefix that is followed. A
# step-by-step completion of one operation has 10 tokens, 17 with a slip.
ENUMERATED_PROBLEMS, ENUMERATED_TOKENS, LEAST_MASS = 4, 16, 1e-6


def enumerated_information(probe: Probe) -> dict[str, list[float]]:
    """H(y|x) - H(y|x,c) of the first tokens of completions; see `measure_information`."""
    short = dataclasses.replace(probe.config, max_new_tokens=ENUMERATED_TOKENS)
    probe = dataclasses.replace(probe, config=short)
    operators, problems = probe.task.operators, ENUMERATED_PROBLEMS
    drawn = [toy_tasks.draw_problem(probe.rng, operators, range(1, 2)) for _ in range(problems)]
    examples, found = [Example(p) for p in drawn], {}
    for kind in ("none", "answer", "solution"):
        contexts = probe.contexts(examples, kind)
        exact, bound, _ = minisd.enumerated_entropy(
            *(probe.student, probe.prompts(examples, contexts).ids),
            max_new_tokens=ENUMERATED_TOKENS,
            end_id=probe.task.end_id,
            least_mass=LEAST_MASS,
        )
        sampled = sampled_entropy(probe, examples, contexts, samples=256)
        # The problems are fixed, so the error is that of the samples alone.
        variance = sampled.var(1).sum() / sampled.shape[1] / problems**2
        found[kind] = torch.stack([exact.mean(), bound.mean(), sampled.mean(), variance])
    result = {}
    for kind in ("answer", "solution"):
        h, _, sampled, _ = found["none"] - found[kind]
        _, bound, _, variance = found["none"] + found[kind]
        result[kind] = [x.item() for x in (h, bound, sampled, variance.sqrt())]
    return result


# 3. The horizon of the teacher (claims horizon, prefix_mismatch) ----------------------------------

HORIZON_PROBLEMS, HORIZON_GROUP = 128, 8
FORCED = 256  # completions into which a wrong step is written
CUTS = ("before the error", "right after it", "1 step later", "2 steps later", "3 steps later")
# Tokens since the wrong one, which is not counted. The first token decides whether steps are
# written; teacher and student differ so much there that it would hide everything else.
SINCE_ERROR = ("first token", "before", "0-3", "4-7", "8-15", "16+")
DECILES = 10
READINGS = ("reverse_kl", "forward_kl", "disagreement", "student_entropy")


def long_problems(task: ToyTask, rng: random.Random, count: int) -> list[toy_tasks.Problem]:
    """Training problems of three or more operations (of the most, in a smaller world)."""
    least, found = min(3, task.world.max_operations), []
    while len(found) < count:
        problem = toy_tasks.draw_split(rng, task.world, "train", task.operators)
        found += [problem] * (len(problem.operators) >= least)
    return found


def cuts_around(ids: list[int], error: int) -> list[int | None]:
    """How many tokens to keep for each of CUTS; None where the completion has ended before."""
    ends = [t for t, i in enumerate(ids) if i == toy_tasks.TOKEN_ID["; "] and t > error]
    return [error, *ends[:4], *[None] * (4 - len(ends))]


def accuracy_from(
    probe: Probe, model: GPT, kind: str, examples: list[Example], texts: list[str], cuts: list
) -> tuple[list[float | None], list[int]]:
    """Accuracy of the model's completions from the texts as far as each cut, and their numbers.

    kind: of the context. cuts: for each text a number of tokens to keep for every kind of cut, None
    where it has no such cut; of no texts, the accuracies are none as well.
    """
    picked = [(i, k) for i, row in enumerate(cuts) for k, cut in enumerate(row) if cut is not None]
    chosen = [examples[i] for i, _ in picked]
    prefixes = [probe.task.encode(texts[i])[: cuts[i][k]] for i, k in picked]
    _, rewards = probe.go_on(model, chosen, probe.contexts(chosen, kind), prefixes)
    kinds = torch.tensor([k for _, k in picked])
    return minisd.binned_means(rewards, kinds, len(cuts[0]) if cuts else 0)


def compare_with_teacher(
    probe: Probe, examples: list[Example], texts: list[str], terms
) -> tuple[dict[str, Tensor], Tensor]:
    """`terms` of student and teacher, which sees the solution, see `minisd.score`; the mask."""
    completions = probe.rows(texts)
    values = minisd.score(
        *(probe.student, probe.prompts(examples), completions, terms),
        teacher=Teacher("live", probe.student),
        teacher_prompts=probe.prompts(examples, probe.contexts(examples, "solution")),
    )
    return values, completions.mask


@torch.no_grad()
def readings(probe: Probe, examples: list[Example], texts: list[str]):
    """READINGS per token (B, T), and the mask."""
    if not texts:
        return dict.fromkeys(READINGS, torch.zeros(0, 1)), torch.zeros(0, 1, dtype=torch.bool)
    values, mask = compare_with_teacher(
        probe, examples, texts, partial(position_terms, probe.config)
    )
    gap = values["teacher_log_probs"] - values["student_log_probs"]
    values["disagreement"] = (gap <= -1).float()  # at least 1 nat less likely to the teacher
    return {name: values[name] for name in READINGS}, mask


def readings_since_error(
    probe: Probe, name: str, examples: list[Example], texts: list[str], errors: list[int]
) -> dict[str, list]:
    """Mean READINGS in the bins SINCE_ERROR. The wrong token itself is in none of them."""
    values, mask = readings(probe, examples, texts)
    t = torch.arange(mask.shape[1])
    since = t - torch.tensor(errors)[:, None] - 1  # (B, T)
    bins = torch.bucketize(since, torch.tensor([0, 4, 8, 16]), right=True) + 1
    bins = bins.masked_fill(t == 0, 0).masked_fill(~mask | (since == -1), -1)
    result = {}
    for reading, value in values.items():
        means, counts = minisd.binned_means(value, bins, len(SINCE_ERROR))
        result[f"since_error_{reading}_{name}"] = means
        result[f"since_error_tokens_{name}"] = counts
    return result


def readings_by_position(
    probe: Probe, name: str, examples: list[Example], texts: list[str]
) -> dict[str, list]:
    """Mean READINGS in the tenths of the completions."""
    values, mask = readings(probe, examples, texts)
    bins = torch.arange(mask.shape[1]) * DECILES // mask.sum(1, keepdim=True)
    bins = bins.masked_fill(~mask, -1)
    means = {k: minisd.binned_means(v, bins, DECILES)[0] for k, v in values.items()}
    return {f"position_completions_{name}": len(texts)} | {
        f"position_{k}_{name}": v for k, v in means.items()
    }


def measure_horizon(config: TrainConfig) -> dict:
    """What the teacher's signal is worth after the student's first wrong step.

    The teacher is the base model with the solution, the student the same without; completions are
    the student's on training problems of three or more operations, direct ones left out. natural:
    those with an uncorrected wrong step. forced: faultless ones into which such a step was written
    at random, all that follows worked from it, if that makes the answer wrong. unforced: the same
    before the writing, cut at the same places: the control for position.

    cuts: x of teacher_*, unaided_* and cut_counts_*, the accuracy of completions from there; own:
    the teacher's own step-by-step completions, cut as the forced ones (they share the first token,
    since the teacher of itself hardly ever writes steps). since_error_*: READINGS, nats or a
    fraction per token, in the bins since_error_bins. position_*: in tenths of the completion, for
    right and wrong ones. gradient_*: see `horizon_gradients`. None stands for the mean of nothing.
    """
    rng = random.Random(f"horizon-problems-{config.seed}")
    problems = long_problems(make_task(config), rng, HORIZON_PROBLEMS)
    probe = Probe.draw(config, "horizon", problems, HORIZON_GROUP)
    rows = list(zip(probe.examples, probe.texts, probe.rewards.tolist()))
    rows = [row for row in rows if not row[1].startswith(toy_tasks.ANSWER)]
    natural = [r for r in rows if toy_tasks.first_wrong_step(r[0].problem, r[1]) is not None]
    sound = [r for r in rows if toy_tasks.is_faultless(r[0].problem, r[1])]
    written = [
        (e, text, toy_tasks.force_wrong_step(e.problem, text, probe.rng))
        for e, text, _ in probe.rng.sample(sound, len(sound))
    ]
    written = [w for w in written if probe.task.grade(w[2], w[0]).reward == 0][:FORCED]
    examples, unforced, forced = ([w[i] for w in written] for i in range(3))

    def errors_and_cuts(examples: list[Example], texts: list[str]) -> tuple[list, list]:
        errors = [toy_tasks.first_wrong_step(e.problem, t) for e, t in zip(examples, texts)]
        ids = map(probe.task.encode, texts)
        return errors, [cuts_around(i, error) for i, error in zip(ids, errors)]

    errors, cuts = errors_and_cuts(examples, forced)
    natural_examples, natural_texts = [r[0] for r in natural], [r[1] for r in natural]
    natural_errors, natural_cuts = errors_and_cuts(natural_examples, natural_texts)
    first = [probe.task.encode(text)[:1] for text in unforced]
    shown = probe.contexts(examples, "solution")
    own, _ = probe.go_on(probe.student, examples, shown, first)
    sources = {
        "natural": (natural_examples, natural_texts, natural_cuts),
        "forced": (examples, forced, cuts),
        "unforced": (examples, unforced, cuts),
        "own": (examples, own, cuts),
    }
    result = {"cuts": list(CUTS), "since_error_bins": list(SINCE_ERROR)}
    result["position_frac"] = [(i + 0.5) / DECILES for i in range(DECILES)]
    for name, source in sources.items():
        for reader, kind in (("teacher", "solution"), ("unaided", "none")):
            accuracy, counts = accuracy_from(probe, probe.student, kind, *source)
            result[f"{reader}_{name}"], result[f"cut_counts_{name}"] = accuracy, counts
    result |= readings_since_error(
        probe, "natural", natural_examples, natural_texts, natural_errors
    )
    result |= readings_since_error(probe, "forced", examples, forced, errors)
    result |= readings_since_error(probe, "unforced", examples, unforced, errors)
    for name, reward in (("correct", 1), ("incorrect", 0)):
        chosen = [r for r in rows if r[2] == reward]
        result |= readings_by_position(probe, name, [r[0] for r in chosen], [r[1] for r in chosen])
    if examples:  # else there is no error to come before or after
        result |= horizon_gradients(
            probe, examples, {"forced": forced, "unforced": unforced}, errors
        )
    return result | early_and_late_gradients(probe)


def horizon_gradients(
    probe: Probe, examples: list[Example], texts: dict[str, list[str]], errors: list[int]
) -> dict[str, float]:
    """Cosines of the distillation gradient before and after the error with the reward gradient.

    Each is the gradient of a mean reverse KL: over the tokens up to the error, and after it. The
    reward gradient is REINFORCE with the group's mean as baseline over all completions of the
    probe; gradient_cosine_halves, of its two halves, tells how far noise holds a cosine down.
    first: of the first token alone, which decides whether steps are written at all; it is left out
    of `before`.
    """
    half = len(probe.examples) // (2 * HORIZON_GROUP) * HORIZON_GROUP
    halves = [reward_gradient(probe, rows) for rows in (slice(half), slice(half, None))]
    reward = halves[0] + halves[1]
    cosine = partial(torch.cosine_similarity, dim=0)
    result = {"gradient_cosine_halves": cosine(*halves).item()}
    for name, rows in texts.items():
        values, mask = compare_with_teacher(probe, examples, rows, distillation_terms)
        t, error = torch.arange(mask.shape[1]), torch.tensor(errors)[:, None]
        parts = {"first": t < 1, "before": (t >= 1) & (t <= error), "after": t > error}
        means = [minisd.masked_mean(values["reverse_kl"], mask & part) for part in parts.values()]
        gradients = minisd.flat_gradients(means, probe.student)
        for part, gradient in zip(parts, gradients):
            result[f"gradient_cosine_{part}_{name}"] = cosine(gradient, reward).item()
            result[f"gradient_norm_{part}_{name}"] = gradient.norm().item()
    return result


def distillation_terms(student_logits: Tensor, teacher_logits: Tensor, ids: Tensor):
    return {"reverse_kl": minisd.reverse_kl(student_logits, teacher_logits)}


def reward_gradient(probe: Probe, rows: slice) -> Tensor:
    """Minus the gradient of the expected reward, estimated from some of the probe's completions."""
    completions = probe.rows(probe.texts[rows])
    prompts = probe.prompts(probe.examples[rows])
    log_probs = probe.sums(prompts, completions, reference_terms)
    advantages = minisd.group_advantages(
        probe.rewards[rows].view(-1, HORIZON_GROUP), normalise="mean"
    ).flatten()
    return minisd.flat_gradients([-(advantages * log_probs).mean()], probe.student)[0]


def early_and_late_gradients(probe: Probe, groups: int = 24, each: int = 4) -> dict[str, float]:
    """Firth's reading: gradients of single completions, loss on the first or last quarter alone.

    Mean norm, and mean cosine between the step-by-step completions of one problem; by count of
    tokens, the end token included. The problems are the first that have enough of them.
    """
    starts = range(0, len(probe.examples), HORIZON_GROUP)
    steps = [
        [i for i in range(s, s + HORIZON_GROUP) if not probe.texts[i].startswith(toy_tasks.ANSWER)]
        for s in starts
    ]
    found: dict[str, list] = {"early": [], "late": []}
    for group in [g[:each] for g in steps if len(g) >= each][:groups]:
        gradients = []
        for i in group:
            values, mask = compare_with_teacher(
                probe, [probe.examples[i]], [probe.texts[i]], distillation_terms
            )
            value, quarter = values["reverse_kl"][0], math.ceil(mask.shape[1] / 4)
            ends = [value[:quarter].mean(), value[-quarter:].mean()]
            gradients.append(minisd.flat_gradients(ends, probe.student))
        for name, vectors in zip(found, zip(*gradients)):
            found[name].append(minisd.norm_and_cosine(torch.stack(vectors)))
    result = {"gradient_groups": len(found["early"])}
    for name, pairs in found.items():
        for i, reading in enumerate(("norm", "pairwise_cosine")):
            mean = float(np.mean([pair[i] for pair in pairs])) if pairs else None
            result[f"gradient_{reading}_{name}"] = mean
    return result


PREFIX_PROBLEMS = 320
PREFIX_FRACS = (0.0, 0.25, 0.5, 0.75)  # of the tokens of a completion


def measure_prefixes(config: TrainConfig) -> dict:
    """Accuracy of teachers from a student's prefixes and from their own, by length of the prefix.

    prefix_fracs is the x of all lists. teacher: the base model with the solution. external: the
    base model of another style, whose authors never answer directly, without context. unaided: the
    student itself. `student`: prefixes of its completions on training problems of three or more
    operations; `own`: of the reader's. steps: for completions that are not direct; there the
    teacher's own begin with the student's first token, since of itself it hardly ever writes steps.
    """
    rng = random.Random(f"prefix-problems-{config.seed}")
    problems = long_problems(make_task(config), rng, PREFIX_PROBLEMS)
    probe = Probe.draw(config, "prefixes", problems)
    other_style = dataclasses.replace(config, external_teacher="other_style")
    external, _ = base_model(*external_base(other_style))

    def by_length(model: GPT, kind: str, examples: list[Example], texts: list[str]) -> list:
        lengths = [len(probe.task.encode(text)) for text in texts]
        cuts = [[int(frac * length) for frac in PREFIX_FRACS] for length in lengths]
        return accuracy_from(probe, model, kind, examples, texts, cuts)[0]

    readers = {
        "teacher": (probe.student, "solution"),
        "external": (external, "none"),
        "unaided": (probe.student, "none"),
    }
    rows = list(zip(probe.examples, probe.texts))
    steps = [row for row in rows if not row[1].startswith(toy_tasks.ANSWER)]
    result = {"prefix_fracs": list(PREFIX_FRACS)}
    for suffix, chosen in (("", rows), ("_steps", steps)):
        examples, texts = [r[0] for r in chosen], [r[1] for r in chosen]
        result[f"prefix_completions{suffix}"] = len(texts)
        for name, (model, kind) in readers.items():
            result[f"{name}_student_prefix{suffix}"] = by_length(model, kind, examples, texts)
            if name == "unaided":
                continue
            first = [probe.task.encode(text)[:1] if suffix else [] for text in texts]
            own, _ = probe.go_on(model, examples, probe.contexts(examples, kind), first)
            result[f"{name}_own_prefix{suffix}"] = by_length(model, kind, examples, own)
    return result


# 4. Gradients (claims token_level_bias, dense_is_fast) --------------------------------------------

ESTIMATORS = {  # of the gradient of the sequence KL, each as the loss whose gradient it is
    "token_level": {"loss": "reverse_kl"},
    "discount_0.5": {"loss": "sequence_kl", "discount": 0.5},
    "discount_0.9": {"loss": "sequence_kl", "discount": 0.9},
    "sequence_level": {"loss": "sequence_kl", "discount": 1.0},
    "sampled_token": {"loss": "sampled_token"},
    # Sampled tokens for the present and the future, see estimator_values.
    "sampled_sequence": {"loss": "sequence_kl"},
    "averaged_advantage": {"loss": "averaged_advantage"},
    **{
        f"top_2_{tail}": {"loss": "top_k_reverse_kl", "top_k": 2, "top_k_tail": tail}
        for tail in minisd.TAILS
    },
}
SAMPLE_COUNTS = [1, 4, 16, 64, 256, 1024]
# A prefix rarer than this is not continued: it counts as a completion that was cut there. That is
# part of the definition of both sequence distributions, so that sums over the tree are exact.
RAREST_PREFIX = 5e-3
TREE_TOKENS = 12  # length limit of enumerated completions: all of `wait 3+4=7; answer 7`
TREE_OPERATIONS = (1, 1, 2, 2)  # of the problems whose completions are enumerated
# Gradients in all weights are folded into so many numbers, with random signs: a linear map that
# keeps zero bias zero, and lengths and angles to about sqrt(2 / 2048) = 3 %.
FOLDED = 2048
HORIZONS = [4, 8, 16, 32, 64]  # tokens of a long completion that are looked at
LONG_ESTIMATORS = ("token_level", "sequence_level", "sampled_token", "sampled_sequence")
LONG_PROBLEMS, LONG_COMPLETIONS = 4, 64  # with the most operations; completions of each


def estimator_values(
    config: TrainConfig, name: str, terms: dict[str, Tensor], mask: Tensor
) -> Tensor:
    """The loss (B, T) whose sum over a completion has the estimator as its gradient."""
    if name != "sampled_sequence":
        return distillation_values(config, terms, mask)
    student, teacher = terms["student_log_probs"], terms["teacher_log_probs"]
    future = minisd.sequence_level_surrogate((student - teacher).detach(), student, mask, 1.0)
    return minisd.sampled_token_surrogate(student, teacher) + future


def logit_gradients(
    config: TrainConfig, name: str, logits: tuple[Tensor, Tensor], completions: Completions
) -> Tensor:
    """An estimator of every completion as its gradient in the student's logits, (B, T, V)."""
    config = dataclasses.replace(config, **ESTIMATORS[name])
    student_logits = logits[0].detach().requires_grad_()
    terms = position_terms(config, student_logits, logits[1], completions.ids)
    values = estimator_values(config, name, terms, completions.mask)
    loss = minisd.weighted_sum(values, completions.mask)
    return torch.autograd.grad(loss, student_logits)[0]


def fold(gradients: Tensor) -> Tensor:
    """Gradients (K, D) as (K, FOLDED): random signs, then the sum over every FOLDED-th entry."""
    K, D = gradients.shape
    signs = torch.rand(D, generator=seeded("fold", "cpu")).sub(0.5).sign()
    padded = torch.nn.functional.pad(gradients * signs, (0, -D % FOLDED))
    return padded.view(K, -1, FOLDED).sum(1)


def folded_gradients(model: GPT, logits: Tensor, directions: Tensor) -> Tensor:
    """Gradients in all weights of sum(direction * logits), for directions (K, ...): (K, FOLDED)."""
    weights = list(model.parameters())
    # The default attention kernel cannot be differentiated in several directions at a time, so
    # logits come from within `sdpa_kernel(MATH)`.
    gradients = torch.autograd.grad(logits, weights, directions, is_grads_batched=True)
    return fold(torch.cat([g.flatten(1) for g in gradients], dim=1))


@dataclass
class Tree:
    """All N completions of a problem; its M inner nodes are the prefixes that are continued.

    Every per-completion gradient is a combination of the M x V gradients of the logits at the
    nodes: they are computed once for all completions and estimators.
    """

    completions: Completions  # (N, T)
    nodes: Tensor  # (N, T): the node that predicts the token; behind the end M
    student_logits: Tensor  # (M + 1, V), and teacher_logits; the last row is padding
    teacher_logits: Tensor
    jacobian: Tensor  # (M + 1, V, FOLDED)

    def estimates(self, config: TrainConfig, name: str) -> Tensor:
        """The estimator for every completion, a gradient (N, FOLDED)."""
        logits = self.student_logits[self.nodes], self.teacher_logits[self.nodes]  # (N, T, V)
        by_token = logit_gradients(config, name, logits, self.completions)
        by_node = by_token.new_zeros(len(by_token), *self.student_logits.shape)  # (N, M + 1, V)
        by_node[torch.arange(len(by_token))[:, None], self.nodes] = by_token
        return by_node.flatten(1) @ self.jacobian.flatten(0, 1)

    def log_probs(self, logits: Tensor) -> Tensor:
        """log p(y) (N,) of every completion from logits (M + 1, V) of the nodes."""
        chosen = minisd.token_log_probs(logits[self.nodes], self.completions.ids)
        return chosen.masked_fill(~self.completions.mask, 0.0).sum(1)

    def exact_gradient(self) -> Tensor:
        """Gradient (FOLDED,) of KL(student || teacher) between distributions of completions."""
        logits = self.student_logits.detach().requires_grad_()
        log_p, log_q = self.log_probs(logits), self.log_probs(self.teacher_logits)
        (gradient,) = torch.autograd.grad(minisd.kl(log_p, log_q), logits)
        return gradient.flatten() @ self.jacobian.flatten(0, 1)


def grow_tree(
    student: GPT,
    teacher: GPT,
    prompt: list[int],
    teacher_prompt: list[int],
    *,
    max_tokens: int,
    end_id: int,
    rarest: float,
) -> Tree:
    """Enumerates the completions of a prompt by the student, to be scored by the teacher."""
    student_logits, teacher_logits, jacobian, leaves = [], [], [], []
    inner = [((), (), 0.0)]  # tokens, nodes that predicted them, log-probability
    for node, (tokens, path, log_p) in enumerate(inner):  # `inner` grows while it is read
        logits = student(torch.tensor([[*prompt, *tokens]]))[0, -1]  # (V,)
        jacobian.append(folded_gradients(student, logits, torch.eye(len(logits)).to(logits)))
        student_logits.append(logits.detach())
        with torch.no_grad():
            teacher_logits.append(teacher(torch.tensor([[*teacher_prompt, *tokens]]))[0, -1])
        for token, total in enumerate((log_p + logits.log_softmax(-1)).tolist()):
            child = ((*tokens, token), (*path, node), total)
            ends = token == end_id or len(child[0]) == max_tokens or math.exp(total) < rarest
            (leaves if ends else inner).append(child)
    columns = (student_logits, teacher_logits, jacobian)
    return Tree(
        Completions.from_rows([list(tokens) for tokens, *_ in leaves], end_id),
        Completions.from_rows([list(path) for _, path, _ in leaves], len(inner)).ids,
        *(torch.stack([*column, torch.zeros_like(column[0])]) for column in columns),
    )


def measure_estimators(config: TrainConfig) -> dict:
    """Bias, spread and cosine of every estimator of the gradient of KL(student || teacher).

    Short problems: exact, see `minisd.estimator_laws` (relative to the norm of the true gradient,
    means over problems), `bias.`, `std.`, `limit_cosine.`, and over `counts` `cosine.`, `error.`;
    `token_bias.` is the bias against the token-level gradient; `completions` (number) and
    `cut_frac` (share of their probability that is cut before the end token) describe the trees.
    Long problems: `long.`, see `measure_long_variance`. Nothing is trained.
    """
    student, _, _ = initial_model(config)
    task, rng = make_task(config), random.Random(f"estimators-{config.seed}")
    generator = seeded(f"estimators-{config.seed}", "cpu")
    per_problem = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for operations in TREE_OPERATIONS:
            count = range(operations, operations + 1)
            example = Example(toy_tasks.draw_problem(rng, task.operators, count))
            hinted = task.prompt_ids(example, task.context(example, config.context, rng))
            tree = grow_tree(
                *(student, student, task.prompt_ids(example), hinted),
                max_tokens=min(TREE_TOKENS, config.max_new_tokens),
                end_id=task.end_id,
                rarest=RAREST_PREFIX,
            )
            per_problem.append(tree_laws(config, tree, generator))
        long = measure_long_variance(config, task, student, rng, generator)
    means = {name: np.mean([p[name] for p in per_problem], 0).tolist() for name in per_problem[0]}
    return {"counts": SAMPLE_COUNTS} | means | long


def tree_laws(config: TrainConfig, tree: Tree, generator: torch.Generator) -> dict:
    """`minisd.estimator_laws` of every estimator on one tree, in flat names."""
    probability, truth = tree.log_probs(tree.student_logits).exp(), tree.exact_gradient()
    token_level = probability @ tree.estimates(config, "token_level")
    ended = ((tree.completions.ids == toy_tasks.END_ID) & tree.completions.mask).any(1)
    laws = {"completions": len(probability), "cut_frac": probability[~ended].sum().item()}
    for name in ESTIMATORS:
        estimates = tree.estimates(config, name)
        found = minisd.estimator_laws(estimates, probability, truth, SAMPLE_COUNTS, generator)
        laws |= {f"{law}.{name}": value for law, value in found.items()}
        off = (probability @ estimates - token_level).norm() / token_level.norm()
        laws[f"token_bias.{name}"] = off.item()
    return laws


def long_gradients(
    config: TrainConfig, task: ToyTask, student: GPT, example: Example, context: str, generator
) -> tuple[Tensor, Tensor]:
    """Gradients (names, horizons, B, FOLDED) of completions of one problem; tokens (horizons,).

    Of each completion the first h tokens count, for h in HORIZONS: `tokens` is their mean number.
    """
    prompts, hinted = (
        make_prompts(task, [example] * LONG_COMPLETIONS, [c] * LONG_COMPLETIONS, "cpu")
        for c in ("", context)
    )
    completions = write(config, task, student, prompts, slice(None), generator)
    with torch.no_grad():
        logits = [
            student.head(minisd.completion_hidden(student, p.ids, p.pad_count, completions.ids))
            for p in (prompts, hinted)
        ]
    position = torch.arange(completions.mask.shape[1])
    masks = [completions.mask & (position < h) for h in HORIZONS]
    parts = [dataclasses.replace(completions, mask=mask) for mask in masks]
    directions = [logit_gradients(config, n, logits, p) for n in LONG_ESTIMATORS for p in parts]
    gradients = []
    for row, direction in enumerate(torch.stack(directions, dim=1)):  # (K, T, V)
        one, ids = prompts.take(slice(row, row + 1)), completions.ids[row : row + 1]
        states = minisd.completion_hidden(student, one.ids, one.pad_count, ids)[0]  # (T, C)
        gradients.append(folded_gradients(student, student.head(states), direction))
    gradients = torch.stack(gradients, dim=1)  # (K, B, FOLDED)
    tokens = torch.stack(masks).sum(-1).float().mean(1)
    return gradients.unflatten(0, (len(LONG_ESTIMATORS), len(HORIZONS))), tokens


def measure_long_variance(
    config: TrainConfig, task: ToyTask, student: GPT, rng: random.Random, generator
) -> dict:
    """How the noise of token- and sequence-level estimators grows with the length of completions.

    Over the prefixes of `long_gradients`, geometric means over problems with the most operations:
    `long.variance.`, the trace of the covariance within a problem; `long.std.`, its root over the
    norm of the mean gradient, which counts as no smaller than its own noise; `long.exponent.`, the
    slope of log variance over log tokens (Fu et al. bound it by 2 for token, 4 for sequence level).
    """
    operations = range(task.world.max_operations, task.world.max_operations + 1)
    all_tokens, variances, ratios = [], [], []
    for _ in range(LONG_PROBLEMS):
        example = Example(toy_tasks.draw_problem(rng, task.operators, operations))
        context = task.context(example, config.context, rng)
        gradients, tokens = long_gradients(config, task, student, example, context, generator)
        pairs = [minisd.signal_and_noise(g) for g in gradients.flatten(0, 1)]
        signal, noise = (torch.stack(x).view(gradients.shape[:2]) for x in zip(*pairs))
        noise = noise.clamp(min=1e-12)  # completions that are all alike have none
        all_tokens.append(tokens)
        variances.append(noise.log())
        ratios.append((noise / signal.maximum(noise / LONG_COMPLETIONS)).log() / 2)
    tokens, variances, ratios = (torch.stack(x).mean(0) for x in (all_tokens, variances, ratios))
    results = {"long.horizons": HORIZONS, "long.tokens": tokens.tolist()}
    for name, variance, ratio in zip(LONG_ESTIMATORS, variances, ratios):
        slope = np.polyfit(tokens.log().numpy(), variance.numpy(), 1)[0]
        results |= {
            f"long.variance.{name}": variance.exp().tolist(),
            f"long.std.{name}": ratio.exp().tolist(),
            f"long.exponent.{name}": float(slope),
        }
    return results


# By themselves, so that another row of the method table does not change the name of a result.
METHOD_ROWS = {m: METHODS[m].settings for m in ("sft", "grpo", "dr_grpo", "sdpo")}
REWARD_BATCHES, REWARD_COMPLETIONS = 4, 1024  # the policy gradient that counts as the true one
SIGNAL_BATCHES, SIGNAL_COMPLETIONS = 16, 64  # of every method


def with_row(config: TrainConfig, method: str, changes: dict) -> TrainConfig:
    """The settings with another method's row, whatever the rows of other methods had set."""
    named = {name for row in METHOD_ROWS.values() for name in row}
    defaults = {name: getattr(TrainConfig, name) for name in named}
    return dataclasses.replace(
        config, **(defaults | METHOD_ROWS[method] | {"method": method} | changes)
    )


def batch_gradients(config: TrainConfig, task: Task, student: GPT, count: int) -> Tensor:
    """Gradients (count, D) of the loss of that many batches, as a first step of training has it."""
    device, teacher = next(student.parameters()).device, make_teacher(config, task, student)
    rng = random.Random(f"signal-{config.method}-{config.seed}")
    generator = seeded(f"signal-{config.method}-{config.seed}", device)
    gradients, groups = [], config.batch_size // config.group_size
    for _ in range(count):
        batch = collect(config, task, student, teacher, rng, generator, groups=groups)
        backward(config, student, teacher, None, batch)
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
        student.zero_grad()
    return torch.stack(gradients)


def measure_signal(config: TrainConfig) -> dict:
    """Signal, noise and direction of the first gradients of sft, grpo (without penalty) and sdpo.

    All from batches of `completions` sampled completions on the training pool (of which sft keeps
    the correct ones). `snr.`: ||mean||^2 / trace of the covariance of a batch. `cosine.`: of the
    mean over all batches to the gradient of the expected reward, corrected for noise;
    `raw_cosine.`: without correction; `batch_cosine.`: mean cosine of one batch. The reward
    gradient is a policy gradient from `reward_completions`, its baseline the mean reward of a
    problem; `reward_reliability` is the cosine of its two halves. Nothing is trained.
    """
    student, _, _ = initial_model(config)
    task, cosine = make_task(config), partial(torch.nn.functional.cosine_similarity, dim=-1)
    changes = {"batch_size": REWARD_COMPLETIONS, "group_size": 16, "micro_batch": 256}
    reward = with_row(config, "dr_grpo", changes)  # no length or spread of rewards in its weights
    truth = batch_gradients(reward, task, student, REWARD_BATCHES)  # (n, D)
    halves = truth.view(2, -1, truth.shape[1]).mean(1)  # (2, D)
    results = {
        "completions": SIGNAL_COMPLETIONS,
        "reward_completions": REWARD_BATCHES * REWARD_COMPLETIONS,
        "reward_reliability": cosine(*halves).item(),
    }
    changes = {"batch_size": SIGNAL_COMPLETIONS, "group_size": 8, "kl_coef": 0.0}
    for method in ("sft", "grpo", "sdpo"):
        row = with_row(config, method, changes)
        gradients = batch_gradients(row, task, student, SIGNAL_BATCHES)  # (n, D)
        signal, noise = minisd.signal_and_noise(gradients)
        results |= {
            f"snr.{method}": (signal / noise).item(),
            f"cosine.{method}": minisd.cosine_of_means(gradients, truth),
            f"raw_cosine.{method}": cosine(gradients.mean(0), truth.mean(0)).item(),
            f"batch_cosine.{method}": cosine(gradients, truth.mean(0)).mean().item(),
        }
    return results


MEASUREMENTS = {
    "training": measure_training,
    "rules": measure_rules,
    "information": measure_information,
    "horizon": measure_horizon,
    "prefixes": measure_prefixes,
    "estimators": measure_estimators,
    "signal": measure_signal,
}
