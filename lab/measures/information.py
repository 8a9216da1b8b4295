"""What a context tells: how much less uncertain the base model is of its completion with it."""

import dataclasses
import random

import torch
from torch import Tensor

import minisd
import toy_tasks
from lab.measures.formulas import enumerated_entropy, mean_and_error, mutual_information_bounds
from lab.measures.probe import Probe, Settings
from toy_tasks import CONTEXTS, Example

SIBLINGS = 8  # contexts per problem in the mutual information, which can show at most log 8 nats
# Of the enumeration: problems, tokens of a completion, probability of a prefix that is followed. A
# step-by-step completion of one operation has 10 tokens, 11 with the remark.
ENUMERATED_PROBLEMS, ENUMERATED_TOKENS, LEAST_MASS = 4, 12, 1e-6
ENUMERATED_SAMPLES = 256  # completions of each problem, to compare with


def measure_information(settings: Settings) -> dict:
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
    rng = random.Random(f"information-problems-{settings.seed}")
    drawn = settings.task().evaluation("fresh", settings.eval_problems, rng)
    draws = 2 * SIBLINGS
    probe = Probe.draw(settings, "information", [e.problem for e in drawn], draws)
    groups = [range(i, i + draws) for i in range(0, len(probe.examples), draws)]
    siblings = [[probe.texts[i] for i in g if probe.rewards[i] == 1] for g in groups]
    result = entropy_gaps(probe, groups, siblings)

    enough = [i for i, right in enumerate(siblings) if len(right) >= SIBLINGS]
    chosen = [probe.examples[groups[i][0]] for i in enough]
    own = [[probe.texts[j] for j in groups[i]][:SIBLINGS] for i in enough]
    attempts = {"sibling": [siblings[i][:SIBLINGS] for i in enough], "feedback": own}
    attempts["other_problem"] = own  # not shown
    result["mutual_information"] = {
        kind: mutual_information(probe, chosen, kind, shown) for kind, shown in attempts.items()
    }
    result["mutual_information_problems"] = len(chosen)
    result["enumerated"] = enumerated_information(probe)
    return result


def entropy_gaps(probe: Probe, groups: list[range], siblings: list[list[str]]) -> dict:
    """`information` and `entropy` of every context; groups: the completions of each problem."""
    examples = [probe.examples[g[0]] for g in groups]
    unaided = sampled_entropy(probe, examples, [""] * len(examples), samples=2).mean(1)
    result = {"information": {}, "entropy": {}}
    for kind, row in CONTEXTS.items():
        if row.draws_rule:  # changes what the right answer is: no context of the same problem
            continue
        use, shown = range(len(examples)), [probe.texts[g[0]] for g in groups]
        if row.attempt == "sibling":
            use = [i for i in use if siblings[i]]
            shown = [siblings[i][0] for i in use]
        chosen = [examples[i] for i in use]
        contexts = probe.contexts(chosen, kind, shown)
        aided = sampled_entropy(probe, chosen, contexts, samples=2).mean(1)
        result["information"][kind] = mean_and_error(unaided[list(use)] - aided)
        result["entropy"][kind] = mean_and_error(aided)
    return result


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
    entropies = probe.sums(prompts, completions, lambda logits, ids: minisd.entropy(logits))
    return entropies.view(len(examples), samples)


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
    log_probs = probe.log_probs(prompts, all_contexts).view(-1, SIBLINGS)
    below, above = mutual_information_bounds(log_probs)
    return {"below": mean_and_error(below), "above": mean_and_error(above)}


def enumerated_information(probe: Probe) -> dict[str, list[float]]:
    """H(y|x) - H(y|x,c) of the first tokens of completions; see `measure_information`."""
    short = dataclasses.replace(probe.settings, max_new_tokens=ENUMERATED_TOKENS)
    probe = dataclasses.replace(probe, settings=short)
    operators, count = probe.task.operators, range(ENUMERATED_PROBLEMS)
    drawn = [toy_tasks.draw_problem(probe.rng, operators, range(1, 2)) for _ in count]
    examples, found = [Example(p) for p in drawn], {}
    for kind in ("none", "answer", "solution"):
        contexts = probe.contexts(examples, kind)
        exact, bound, _ = enumerated_entropy(
            probe.student, probe.prompts(examples, contexts).ids, max_new_tokens=ENUMERATED_TOKENS,
            end_id=probe.task.end_ids[0], least_mass=LEAST_MASS,
        )
        sampled = sampled_entropy(probe, examples, contexts, ENUMERATED_SAMPLES)
        # The problems are fixed, so the error is that of the samples alone.
        variance = sampled.var(1).sum() / sampled.shape[1] / len(examples) ** 2
        found[kind] = torch.stack([exact.mean(), bound.mean(), sampled.mean(), variance])
    result = {}
    for kind in ("answer", "solution"):
        h, _, sampled, _ = found["none"] - found[kind]
        _, bound, _, variance = found["none"] + found[kind]
        result[kind] = [x.item() for x in (h, bound, sampled, variance.sqrt())]
    return result
