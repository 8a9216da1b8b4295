"""What the teacher's signal is worth after the student's first wrong step.

The teacher is the base model with the solution, the student the same without; completions are the
student's on training problems of three or more operations. What is read, and of which of them:

natural      those with a wrong step that stands, direct ones left out
forced       a wrong glance behind the marker, not checked, and all that follows worked from it
unforced     the same with the right glance, cut at the same places: the control for position
forced_step  faultless ones (checked glances allowed) with a wrong single step, worked on from it
unforced_step  the same before that was written
own          the teacher's own step-by-step completions, cut as the forced ones; they begin like
             these with the marker, since the teacher of itself hardly ever writes steps

1 completions and cuts   2 readings   3 the measure   4 gradients
"""

import math
import random

import numpy as np
import torch
from torch import Tensor

import minisd
import toy_tasks
from lab.measures.formulas import binned_means, flat_gradients, norm_and_cosine
from lab.measures.probe import Probe, Settings
from lab.measures.steps import (
    first_wrong_step,
    force_glance,
    force_wrong_step,
    is_faultless,
    worked_from,
)
from minisd import GPT
from toy_tasks import Example, Problem, ToyTask

HORIZON_PROBLEMS, HORIZON_GROUP = 128, 8
FORCED = 256  # completions into which a wrong glance or step is written
CUTS = ("before the error", "right after it", "1 step later", "2 steps later", "3 steps later")
# Tokens since the wrong one, which is not counted. The first token decides whether steps are
# written; teacher and student differ so much there that it would hide everything else.
SINCE_ERROR = ("first token", "before", "0-3", "4-7", "8-15", "16+")
DECILES = 10
READINGS = ("reverse_kl", "forward_kl", "disagreement", "student_entropy")

# 1. Completions and cuts --------------------------------------------------------------------------


def long_problems(task: ToyTask, rng: random.Random, count: int) -> list[Problem]:
    """Training problems of three or more operations (of the most, if training has fewer)."""
    least, found = min(3, task.lengths[-1]), []
    while len(found) < count:
        problem = toy_tasks.draw_split(rng, task.world, "train", task.operators, task.operations)
        found += [problem] * (len(problem.operators) >= least)
    return found


def is_direct(text: str) -> bool:
    """True: a completion without steps."""
    return text.startswith(toy_tasks.ANSWER)


def cuts_around(ids: list[int], error: int) -> list[int | None]:
    """How many tokens to keep for each of CUTS; None where the completion has ended before."""
    ends = [t for t, i in enumerate(ids) if i == toy_tasks.TOKEN_ID["; "] and t > error]
    return [error, *ends[:4], *[None] * (4 - len(ends))]


def forced_glances(probe: Probe) -> tuple[list[Example], list[str], list[str]]:
    """Examples, and completions that begin with a right and a wrong glance that nobody checks."""
    written = []
    for example in probe.rng.sample(probe.examples, len(probe.examples)):
        problem, texts = example.problem, []
        if len(problem.operators) < 2:
            continue
        for right in (True, False):
            start = force_glance(problem, right, probe.rng)
            value = int(start.removesuffix("; ")[-1])
            texts.append(start + worked_from(problem, 2, value))
        written.append((example, *texts))
    return failing(probe, written)


def forced_steps(probe: Probe, rows: list[tuple]) -> tuple[list[Example], list[str], list[str]]:
    """Examples, faultless completions of them, and these with a wrong single step."""
    sound = [(e, t) for e, t, _ in rows if is_faultless(e.problem, t, checked=True)]
    drawn = probe.rng.sample(sound, len(sound))
    written = [(e, t, force_wrong_step(e.problem, t, probe.rng)) for e, t in drawn]
    return failing(probe, [w for w in written if w[2]])


def failing(probe: Probe, written: list[tuple]) -> tuple[list[Example], list[str], list[str]]:
    """The first FORCED triples whose last completion is wrong, as three lists."""
    chosen = [w for w in written if probe.task.reward(w[2], w[0]) == 0][:FORCED]
    return tuple([w[i] for w in chosen] for i in range(3))


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
    return binned_means(rewards, kinds, len(cuts[0]) if cuts else 0)


# 2. Readings --------------------------------------------------------------------------------------


@torch.no_grad()
def readings(probe: Probe, examples: list[Example], texts: list[str]) -> tuple[dict, Tensor]:
    """READINGS per token (B, T), and the mask; the teacher is the student with the solution."""
    if not texts:
        return dict.fromkeys(READINGS, torch.zeros(0, 1)), torch.zeros(0, 1, dtype=torch.bool)
    read = {
        "reverse_kl": minisd.reverse_kl, "forward_kl": minisd.forward_kl,
        "student_entropy": lambda student, teacher: minisd.entropy(student),
    }
    values = probe.compared(examples, texts, read)
    gap = values["teacher_log_probs"] - values["student_log_probs"]
    values["disagreement"] = (gap <= -1).float()  # at least 1 nat less likely to the teacher
    return {name: values[name] for name in READINGS}, values["mask"]


def read_source(
    probe: Probe, name: str, examples: list[Example], texts: list[str], errors: list[int]
) -> dict[str, list]:
    """Accuracies from the texts cut around their errors, and readings since these."""
    cuts = [cuts_around(probe.task.encode(text), error) for text, error in zip(texts, errors)]
    result = accuracies(probe, name, examples, texts, cuts)
    return result | readings_since_error(probe, name, examples, texts, errors)


def accuracies(
    probe: Probe, name: str, examples: list[Example], texts: list[str], cuts: list
) -> dict[str, list]:
    """Accuracy of the teacher and of the student from the texts as far as each cut."""
    result = {}
    for reader, kind in (("teacher", "solution"), ("unaided", "none")):
        found = accuracy_from(probe, probe.student, kind, examples, texts, cuts)
        result[f"{reader}_{name}"], result[f"cut_counts_{name}"] = found
    return result


def read_own(probe: Probe, forced: tuple[list[Example], list[str], list[str]]) -> dict[str, list]:
    """Accuracies from the teacher's completions that begin and are cut as the forced ones."""
    examples, _, texts = forced
    ids = [probe.task.encode(text) for text in texts]
    errors = [first_wrong_step(e.problem, text) for e, text in zip(examples, texts)]
    hints = probe.contexts(examples, "solution")
    own, _ = probe.go_on(probe.student, examples, hints, [row[:1] for row in ids])
    return accuracies(probe, "own", examples, own, list(map(cuts_around, ids, errors)))


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
        means, counts = binned_means(value, bins, len(SINCE_ERROR))
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
    means = {f"position_{k}_{name}": binned_means(v, bins, DECILES)[0] for k, v in values.items()}
    return {f"position_completions_{name}": len(texts)} | means


# 3. The measure -----------------------------------------------------------------------------------


def measure_horizon(settings: Settings) -> dict:
    """What the teacher's signal is worth after the student's first wrong step, see above.

    cuts: x of teacher_*, unaided_* and cut_counts_*, the accuracy of completions from there.
    since_error_*: READINGS, nats or a fraction per token, in the bins since_error_bins.
    position_*: in tenths of the completion, for right and wrong ones. gradient_*: see
    `horizon_gradients`. None stands for the mean of nothing.
    """
    rng = random.Random(f"horizon-problems-{settings.seed}")
    problems = long_problems(settings.task(), rng, HORIZON_PROBLEMS)
    probe = Probe.draw(settings, "horizon", problems, HORIZON_GROUP)
    rows = list(zip(probe.examples, probe.texts, probe.rewards.tolist()))
    rows = [row for row in rows if not is_direct(row[1])]
    result = {"cuts": list(CUTS), "since_error_bins": list(SINCE_ERROR)}
    result["position_frac"] = [(i + 0.5) / DECILES for i in range(DECILES)]

    found = [(e, text, first_wrong_step(e.problem, text)) for e, text, _ in rows]
    wrong = [row for row in found if row[2] is not None]
    result |= read_source(probe, "natural", *([row[i] for row in wrong] for i in range(3)))
    gradients = reward_gradients(probe)
    result["gradient_cosine_halves"] = torch.cosine_similarity(*gradients, dim=0).item()
    forced = {"": forced_glances(probe), "_step": forced_steps(probe, rows)}
    for suffix, (examples, right, wrong) in forced.items():
        errors = [first_wrong_step(e.problem, text) for e, text in zip(examples, wrong)]
        for name, texts in ((f"forced{suffix}", wrong), (f"unforced{suffix}", right)):
            result |= read_source(probe, name, examples, texts, errors)
            result |= horizon_gradients(probe, name, examples, texts, errors, sum(gradients))
    result |= read_own(probe, forced[""])
    for name, reward in (("correct", 1), ("incorrect", 0)):
        chosen = [r for r in rows if r[2] == reward]
        result |= readings_by_position(probe, name, [r[0] for r in chosen], [r[1] for r in chosen])
    return result | early_and_late_gradients(probe)


# 4. Gradients -------------------------------------------------------------------------------------


def horizon_gradients(
    probe: Probe, name: str, examples: list[Example], texts: list[str], errors: list[int],
    reward: Tensor,
) -> dict[str, float]:
    """Cosines of the distillation gradient before and after the error with the reward gradient.

    Each is the gradient of a mean reverse KL: over the tokens up to the error, and after it. first:
    of the first token alone, which decides whether steps are written at all; it is left out of
    `before`. Empty without texts.
    """
    if not texts:
        return {}
    x, result = probe.compared(examples, texts), {}
    t, error = torch.arange(x["mask"].shape[1]), torch.tensor(errors)[:, None]
    parts = {"first": t < 1, "before": (t >= 1) & (t <= error), "after": t > error}
    means = [masked_mean(x["divergence"], x["mask"] & part) for part in parts.values()]
    for part, gradient in zip(parts, flat_gradients(means, probe.student)):
        cosine = torch.cosine_similarity(gradient, reward, dim=0)
        result[f"gradient_cosine_{part}_{name}"] = cosine.item()
        result[f"gradient_norm_{part}_{name}"] = gradient.norm().item()
    return result


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of the mask; 0 with a gradient path if there are none."""
    return minisd.weighted_sum(values, mask) / mask.sum().clamp(min=1)


def reward_gradients(probe: Probe) -> list[Tensor]:
    """Minus the gradient of the expected reward, from each half of the probe's completions.

    REINFORCE with the group's mean as baseline. The cosine of the two, gradient_cosine_halves,
    tells how far noise holds every cosine with them down.
    """
    half, gradients = len(probe.examples) // (2 * HORIZON_GROUP) * HORIZON_GROUP, []
    for rows in (slice(half), slice(half, None)):
        prompts, completions = probe.prompts(probe.examples[rows]), probe.rows(probe.texts[rows])
        rewards = probe.rewards[rows].view(-1, HORIZON_GROUP)
        advantages = minisd.group_advantages(rewards, normalise="mean").flatten()
        loss = -(advantages * probe.log_probs(prompts, completions)).mean()
        gradients += flat_gradients([loss], probe.student)
    return gradients


def early_and_late_gradients(probe: Probe, groups: int = 24, each: int = 4) -> dict[str, float]:
    """Firth's reading: gradients of single completions, loss on the first or last quarter alone.

    Mean norm, and mean cosine between the step-by-step completions of one problem; by count of
    tokens, the end token included. The problems are the first that have enough of them.
    """
    starts = range(0, len(probe.examples), HORIZON_GROUP)
    rows = [range(start, start + HORIZON_GROUP) for start in starts]
    steps = [[i for i in group if not is_direct(probe.texts[i])] for group in rows]
    found: dict[str, list] = {"early": [], "late": []}
    for group in [g[:each] for g in steps if len(g) >= each][:groups]:
        gradients = []
        for i in group:
            value = probe.compared([probe.examples[i]], [probe.texts[i]])["divergence"][0]  # (T,)
            quarter = math.ceil(len(value) / 4)
            ends = [value[:quarter].mean(), value[-quarter:].mean()]
            gradients.append(flat_gradients(ends, probe.student))
        for name, vectors in zip(found, zip(*gradients)):
            found[name].append(norm_and_cosine(torch.stack(vectors)))
    result = {"gradient_groups": len(found["early"])}
    for name, pairs in found.items():
        for i, reading in enumerate(("norm", "pairwise_cosine")):
            mean = float(np.mean([pair[i] for pair in pairs])) if pairs else None
            result[f"gradient_{reading}_{name}"] = mean
    return result
