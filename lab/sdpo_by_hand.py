"""SDPO on the toy, written out: a step with `sample` and `reverse_kl` alone, no Method, no options.

python -m lab.sdpo_by_hand    # a minute: the loss falls, and so does accuracy on fresh problems
"""

import copy
import random

import torch

from lab.base import base_model
from lab.evaluation import evaluate
from minisd import GPT, Prompts, Sizes, completion_hidden, reverse_kl, sample
from toy_tasks import END_ID, PAD_ID, ToyTask, World

PROBLEMS, GROUP, TOKENS = 16, 8, 96  # per step; completions of each; their length limit
RATE = 0.01  # of the EMA teacher


def step_by_hand(student: GPT, teacher: GPT, task: ToyTask, rng, generator) -> torch.Tensor:
    """The loss of one batch: KL(student || teacher), mean over the tokens written, in nats."""
    # 1. The student sees the problem, the teacher the solution and the problem.
    problems = [task.draw("train", rng) for _ in range(PROBLEMS)]
    problems = [problem for problem in problems for _ in range(GROUP)]
    hints = [task.context(problem, "solution", rng) for problem in problems]
    prompts = Prompts.of([task.prompt_ids(p) for p in problems], PAD_ID)
    hinted = Prompts.of([task.prompt_ids(p, hint) for p, hint in zip(problems, hints)], PAD_ID)

    # 2. The student writes.
    written = sample([(1.0, student, prompts)], max_new_tokens=TOKENS, end_ids=(END_ID,),
                     pad_id=PAD_ID, generator=generator)

    # 3. Both predict every token of what it wrote.
    student_logits = student.lm_head(completion_hidden(student, prompts, written.ids))  # (B, T, V)
    with torch.no_grad():
        teacher_logits = teacher.lm_head(completion_hidden(teacher, hinted, written.ids))

    # 4. The student is to be like the teacher, token by token.
    return reverse_kl(student_logits, teacher_logits)[written.mask].mean()


def train(student: GPT, task: ToyTask, steps: int, seed: int = 0) -> None:
    """Trains the student in place; the teacher is an average of its own past."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, weight_decay=0.0)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for n in range(1, steps + 1):
        loss = step_by_hand(student, teacher, task, rng, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for ours, theirs in zip(teacher.parameters(), student.parameters()):
                ours.lerp_(theirs, RATE)
        if n == 1 or n % 10 == 0:
            sizes = Sizes(max_new_tokens=TOKENS)
            fresh = evaluate(task, student, "fresh", count=256, seed=seed, sizes=sizes).means
            print(f"step {n:3}  loss {loss:.3f}  fresh problems right {fresh['accuracy_frac']:.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(base_model(World(), seed=0)[0], ToyTask(World(), pool_size=64), steps=60)
