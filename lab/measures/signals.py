"""Signal, noise and direction of the first gradients of methods, against that of the reward."""

import dataclasses
import random
from functools import partial

import torch
from torch import Tensor

import minisd
from lab.evaluation import seeded
from lab.measures.formulas import cosine_of_means, signal_and_noise
from lab.measures.probe import Settings
from minisd import GPT, METHODS, Sizes, Task, Teacher

REWARD_BATCHES, REWARD_COMPLETIONS = 4, 1024  # the policy gradient that counts as the true one
SIGNAL_BATCHES, SIGNAL_COMPLETIONS = 16, 64  # of every method
ROWS = METHODS | {"sdpo_feedback": dataclasses.replace(METHODS["sdpo"], context="feedback")}
MEASURED = ("sft", "grpo", "sdpo", "sdpo_feedback")


def batch_gradients(
    settings: Settings, name: str, student: GPT, task: Task, sizes: Sizes, count: int
) -> Tensor:
    """Gradients (count, D) of the loss of that many batches, as a first step of training has it.

    name: in ROWS. Its penalty to the initial model, 0 at a first step, is left out.
    """
    method = dataclasses.replace(ROWS[name], kl_coef=0.0)
    key, teacher = f"signal-{name}-{settings.seed}", Teacher(method, student)
    rng, generator = random.Random(key), seeded(key, torch.device(settings.device))
    gradients = []
    for _ in range(count):
        batch = minisd.rollout(method, task, student, teacher, rng, generator, sizes)
        for _, part in batch.parts():
            terms = teacher.terms(part.shown) if method.reward_weight < 1 else []
            x = minisd.score(method, student, terms, part)
            minisd.loss_of(method, x, part).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
        student.zero_grad()
    return torch.stack(gradients)


def measure_signal(settings: Settings) -> dict:
    """Signal, noise and direction of the first gradients of MEASURED, which train nothing here.

    sdpo sees the solution, sdpo_feedback the verdict on the student's own attempt.
    All from batches of `completions` sampled completions on the training pool (of which sft keeps
    the correct ones). `snr.`: ||mean||^2 / trace of the covariance of a batch. `cosine.`: of the
    mean over all batches to the gradient of the expected reward, corrected for noise;
    `raw_cosine.`: without correction; `batch_cosine.`: mean cosine of one batch. The reward
    gradient is a policy gradient from `reward_completions`, its baseline the mean reward of a
    problem; `reward_reliability` is the cosine of its two halves.
    """
    student, task = settings.base(), settings.task()
    cosine = partial(torch.nn.functional.cosine_similarity, dim=-1)
    gradients_of = partial(batch_gradients, settings, student=student, task=task)
    limit = settings.max_new_tokens
    sizes = Sizes(REWARD_COMPLETIONS // 16, 16, limit, micro_batch=256)
    # dr_grpo has no length or spread of rewards in its weights.
    truth = gradients_of("dr_grpo", sizes=sizes, count=REWARD_BATCHES)  # (n, D)
    halves = truth.view(2, -1, truth.shape[1]).mean(1)  # (2, D)
    results = {
        "completions": SIGNAL_COMPLETIONS,
        "reward_completions": REWARD_BATCHES * REWARD_COMPLETIONS,
        "reward_reliability": cosine(*halves).item(),
    }
    sizes = Sizes(SIGNAL_COMPLETIONS // 8, 8, limit)
    for name in MEASURED:
        gradients = gradients_of(name, sizes=sizes, count=SIGNAL_BATCHES)  # (n, D)
        signal, noise = signal_and_noise(gradients)
        results |= {
            f"snr.{name}": (signal / noise).item(),
            f"cosine.{name}": cosine_of_means(gradients, truth),
            f"raw_cosine.{name}": cosine(gradients.mean(0), truth.mean(0)).item(),
            f"batch_cosine.{name}": cosine(gradients, truth.mean(0)).mean().item(),
        }
    return results
