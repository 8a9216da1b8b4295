"""Bias and noise of estimators of the gradient of KL(student || teacher) of whole completions.

1 estimators   2 all completions of a problem   3 the measure
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import lab.extra_losses  # noqa: F401  rows of CREDITS and TAILS
import minisd
import toy_tasks
from lab.evaluation import seeded
from lab.measures.formulas import estimator_laws
from lab.measures.probe import Settings
from minisd import CREDITS, DIVERGENCES, GPT, Completions, Method
from toy_tasks import CONTEXTS, Example

# 1. Estimators ------------------------------------------------------------------------------------

ESTIMATORS = {  # each as the method whose loss has it as its gradient
    "token_level": Method(),
    "discount_0.5": Method(credit="sequence", discount=0.5),
    "discount_0.9": Method(credit="sequence", discount=0.9),
    "sequence_level": Method(credit="sequence", discount=1.0),
    "sampled_token": Method(credit="sampled"),
    # Sampled tokens for the present and the future, see `estimator_values`.
    "sampled_sequence": Method(credit="sampled"),
    "averaged_advantage": Method(credit="averaged"),
} | {
    f"top_2_{tail}": Method(divergence="top_k_reverse_kl", top_k=2, top_k_tail=tail)
    for tail in ("naive", "stop_gradient", "renormalised", "bucket")
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


def estimator_values(name: str, x: dict[str, Tensor]) -> Tensor:
    """The loss (B, T) whose sum over a completion has the estimator as its gradient.

    x: as `minisd.score` returns it.
    """
    values = CREDITS[ESTIMATORS[name].credit](x, ESTIMATORS[name])
    if name != "sampled_sequence":
        return values
    student, mask = x["student_log_probs"], x["mask"]
    gap = (student - x["teacher_log_probs"]).detach()
    return values + minisd.sequence_level_surrogate(gap, student, mask, 1.0)


def logit_gradients(name: str, logits: tuple[Tensor, Tensor], completions: Completions) -> Tensor:
    """An estimator of every completion as its gradient in the student's logits, (B, T, V).

    logits: the student's and the teacher's, (B, T, V) each.
    """
    method, ids = ESTIMATORS[name], completions.ids
    student, teacher = logits[0].detach().requires_grad_(), logits[1]
    x = {
        "student_log_probs": minisd.token_log_probs(student, ids),
        "teacher_log_probs": minisd.token_log_probs(teacher, ids),
        "divergence": DIVERGENCES[method.divergence](student, teacher, method),
        "mask": completions.mask,
    }
    loss = minisd.weighted_sum(estimator_values(name, x), completions.mask)
    return torch.autograd.grad(loss, student)[0]


def fold(gradients: Tensor) -> Tensor:
    """Gradients (K, D) as (K, FOLDED): random signs, then the sum over every FOLDED-th entry."""
    K, D = gradients.shape
    signs = torch.rand(D, generator=seeded("fold", torch.device("cpu"))).sub(0.5).sign()
    padded = torch.nn.functional.pad(gradients * signs, (0, -D % FOLDED))
    return padded.view(K, -1, FOLDED).sum(1)


def folded_gradients(model: GPT, logits: Tensor, directions: Tensor) -> Tensor:
    """Gradients in all weights of sum(direction * logits), for directions (K, ...): (K, FOLDED)."""
    weights = list(model.parameters())
    # The default attention kernel cannot be differentiated in several directions at a time, so
    # logits come from within `sdpa_kernel(MATH)`.
    gradients = torch.autograd.grad(logits, weights, directions, is_grads_batched=True)
    return fold(torch.cat([g.flatten(1) for g in gradients], dim=1))


# 2. All completions of a problem ------------------------------------------------------------------


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

    def estimates(self, name: str) -> Tensor:
        """The estimator for every completion, a gradient (N, FOLDED)."""
        logits = self.student_logits[self.nodes], self.teacher_logits[self.nodes]  # (N, T, V)
        by_token = logit_gradients(name, logits, self.completions)
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
    models: tuple[GPT, GPT], prompts: tuple[list[int], list[int]], *,
    max_tokens: int, end_id: int, rarest: float,
) -> Tree:
    """Enumerates the completions of a prompt by the student, to be scored by the teacher.

    models and prompts: the student's and the teacher's.
    """
    (student, teacher), (prompt, teacher_prompt) = models, prompts
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
        Completions.of([list(tokens) for tokens, *_ in leaves], end_id),
        Completions.of([list(path) for _, path, _ in leaves], len(inner)).ids,
        *(torch.stack([*column, torch.zeros_like(column[0])]) for column in columns),
    )


def tree_laws(tree: Tree, generator: torch.Generator) -> dict:
    """`estimator_laws` of every estimator on one tree, in flat names."""
    probability, truth = tree.log_probs(tree.student_logits).exp(), tree.exact_gradient()
    token_level = probability @ tree.estimates("token_level")
    ended = ((tree.completions.ids == toy_tasks.END_ID) & tree.completions.mask).any(1)
    laws = {"completions": len(probability), "cut_frac": probability[~ended].sum().item()}
    for name in ESTIMATORS:
        estimates = tree.estimates(name)
        found = estimator_laws(estimates, probability, truth, SAMPLE_COUNTS, generator)
        laws |= {f"{law}.{name}": value for law, value in found.items()}
        off = (probability @ estimates - token_level).norm() / token_level.norm()
        laws[f"token_bias.{name}"] = off.item()
    return laws


# 3. The measure -----------------------------------------------------------------------------------


def measure_estimators(settings: Settings) -> dict:
    """Bias, spread and cosine of every estimator of the gradient of KL(student || teacher).

    Means over problems so short that all completions can be summed over, see `estimator_laws`:
    `bias.` and `std.`, relative to the norm of the true gradient, `limit_cosine.`, and over
    `counts` `cosine.` and `error.`. `token_bias.` is the bias against the token-level gradient;
    `completions` and `cut_frac` (share of their probability that is cut) describe the trees.
    """
    # With the others the teacher is the student, or has a context made of nothing.
    known = [k for k, row in CONTEXTS.items() if not (row.attempt or row.draws_rule)]
    known.remove("none")
    if settings.context not in known:
        raise ValueError(f"--context: {settings.context!r}; allowed: {', '.join(known)}")
    student, task = settings.base(), settings.task()
    name = f"estimators-{settings.seed}"
    rng, generator = random.Random(name), seeded(name, torch.device("cpu"))
    per_problem = []
    with sdpa_kernel(SDPBackend.MATH):
        for operations in TREE_OPERATIONS:
            count = range(operations, operations + 1)
            example = Example(toy_tasks.draw_problem(rng, task.operators, count))
            hinted = task.prompt_ids(example, task.context(example, settings.context, rng))
            tree = grow_tree(
                (student, student), (task.prompt_ids(example), hinted),
                max_tokens=min(TREE_TOKENS, settings.max_new_tokens), end_id=task.end_ids[0],
                rarest=RAREST_PREFIX,
            )
            per_problem.append(tree_laws(tree, generator))
    means = {name: np.mean([p[name] for p in per_problem], 0).tolist() for name in per_problem[0]}
    return {"counts": SAMPLE_COUNTS} | means
