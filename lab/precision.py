"""How far bfloat16 is from float32: logits, KL, gradient, and ten steps of training.

python -m lab.precision --init out/smollm2-135m --data lab/data/word_problems.jsonl

Every difference stands beside one that nobody minds: that between two batches. Where rounding does
less than the draw of the batch, it does not decide what is learnt. Prints the table, and writes it
to --out_dir as precision.json.
"""

import argparse
import copy
import itertools
import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import minisd
from lab import hf
from lab.evaluation import seeded
from lab.flags import OneLineParser, out_folder, run_main
from lab.storage import prepare_device, write_json
from lab.text_tasks import TextTask, read_jsonl
from minisd import GPT, METHODS, Batch, Sizes, Task, Teacher

STEPS = 10
METHOD = METHODS["sdpo"]
KL_LIMIT = 0.01  # nats: below a hundredth of the entropy that a sampled token has
NORM_LIMIT = 0.05  # a norm is only clipped
HALF = 0.5  # of what another batch does: the draw of the batch decides, not rounding


def batch_of(task: Task, student: GPT, teacher: Teacher, sizes: Sizes, seed: int) -> Batch:
    """Completions that the student samples in float32, with what the teacher is shown."""
    device = next(student.parameters()).device
    generator, rng = seeded(f"precision-{seed}", device), random.Random(seed)
    return minisd.rollout(METHOD, task, student, teacher, rng, generator, sizes)


def gradient(student: GPT, teacher: Teacher, batch: Batch) -> tuple[float, Tensor]:
    """The loss of a batch, and its gradient as one vector in float32."""
    loss = 0.0
    for _, part in batch.parts():
        with part.sizes.autocast(batch.rewards.device):
            x = minisd.score(METHOD, student, teacher.terms(part.shown), part)
        value = minisd.loss_of(METHOD, x, part)
        value.backward()
        loss += value.item()
    flat = torch.cat([p.grad.flatten().float() for p in student.parameters()])
    student.zero_grad(set_to_none=True)
    return loss, flat


def cosine(a: Tensor, b: Tensor) -> float:
    """Summed in float64: in float32 a sum over 10^8 numbers is off by more than bfloat16 is."""
    def dot(x: Tensor, y: Tensor) -> float:
        return sum(torch.dot(*pair).item() for pair in (
            (u.double(), v.double()) for u, v in zip(x.split(2**20), y.split(2**20))))

    return dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5


@torch.no_grad()
def logits_kl(student: GPT, batch: Batch, dtype: str) -> float:
    """KL(float32 || dtype) of the student's next token, mean over the completions, nats."""
    mask, ids = batch.completions.mask, batch.completions.ids
    shown = batch.shown[METHOD.student_context]
    exact = student.lm_head(minisd.completion_hidden(student, shown, ids)[mask])
    with replace(batch.sizes, dtype=dtype).autocast(mask.device):
        rounded = student.lm_head(minisd.completion_hidden(student, shown, ids)[mask])
    return minisd.forward_kl(rounded[None].float(), exact[None].float()).mean().item()


def losses_of_training(
    student: GPT, batches: list[Batch], dtype: str, learning_rate: float
) -> list[float]:
    """Losses of one step on each batch, from the weights given, which stay as they are."""
    student = copy.deepcopy(student)
    teacher = Teacher(METHOD, student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.0)
    losses = []
    for n, batch in enumerate(batches, start=1):
        rounded = replace(batch, sizes=replace(batch.sizes, dtype=dtype))
        losses.append(minisd.step(METHOD, student, teacher, optimizer, rounded)["loss"])
        teacher.update(n)
    return losses


def compared(task: Task, student: GPT, sizes: Sizes, dtype: str, learning_rate: float) -> dict:
    """All differences between float32 and dtype, and those between two batches."""
    teacher = Teacher(METHOD, student)
    batches = [batch_of(task, student, teacher, sizes, seed) for seed in range(STEPS)]
    first, other = batches[:2]
    rounded = replace(first, sizes=replace(sizes, dtype=dtype))
    (loss, g), (rounded_loss, rounded_g), (other_loss, other_g) = (
        gradient(student, teacher, batch) for batch in (first, rounded, other))
    exact, cast = (losses_of_training(student, batches, d, learning_rate)
                   for d in ("float32", dtype))
    mean = sum(exact) / STEPS
    spread = sum(abs(a - b) for a, b in itertools.pairwise(exact)) / (STEPS - 1)
    return {
        "logits_kl": logits_kl(student, first, dtype),
        "kl_error_frac": abs(rounded_loss - loss) / loss,
        "kl_other_batch_frac": abs(other_loss - loss) / loss,
        "gradient_error": 1 - cosine(g, rounded_g),
        "gradient_other_batch": 1 - cosine(g, other_g),
        "gradient_norm_error_frac": abs(rounded_g.norm() / g.norm() - 1).item(),
        "loss_error_frac": max(abs(a - b) for a, b in zip(exact, cast)) / mean,
        "loss_next_batch_frac": spread / mean,
        "losses": {"float32": exact, dtype: cast},
    }


def rows_of(x: dict[str, Any]) -> list[tuple[str, float, float, float | None]]:
    """Words, what rounding does, what it may do, and what another batch does."""
    batch = x["kl_other_batch_frac"], x["gradient_other_batch"], x["loss_next_batch_frac"]
    return [
        ("KL of the next token from float32, nats", x["logits_kl"], KL_LIMIT, None),
        ("loss of a batch, relative", x["kl_error_frac"], HALF * batch[0], batch[0]),
        ("gradient, 1 - cosine", x["gradient_error"], HALF * batch[1], batch[1]),
        ("its norm, relative", x["gradient_norm_error_frac"], NORM_LIMIT, None),
        (f"loss over {STEPS} steps, the largest difference over the mean", x["loss_error_frac"],
         HALF * batch[2], batch[2]),
    ]


def table(x: dict[str, Any], dtype: str) -> str:
    """Markdown that a terminal shows as well."""
    lines = [f"| | {dtype} against float32 | allowed | another batch | |", "|---" * 5 + "|"]
    for words, value, allowed, other in rows_of(x):
        beside = "" if other is None else f"{other:.2g}"
        kept = "ok" if value <= allowed else "TOO MUCH"
        lines.append(f"| {words} | {value:.2g} | {allowed:.2g} | {beside} | {kept} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = OneLineParser(
        prog="python -m lab.precision", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("init", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=8, help="completions a batch (default: 8)")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="default: 32")
    parser.add_argument("--learning_rate", type=float, default=1e-5, help="default: 1e-5")
    parser.add_argument("--threads", type=int, default=1, help="0: as PyTorch decides")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out_dir", default="out/precision", help="default: out/precision")
    given = parser.parse_args(arguments)
    for name in ("rows", "max_new_tokens"):
        if not 1 <= getattr(given, name) <= 10_000:
            raise ValueError(f"--{name}: {getattr(given, name)}; allowed: 1 to 10000")
    if not 0 < given.learning_rate < 1:
        raise ValueError(f"--learning_rate: {given.learning_rate}; allowed: above 0, below 1")
    if not 0 <= given.threads <= 1024:
        raise ValueError(f"--threads: {given.threads}; allowed: 0 to 1024")
    folder = out_folder(given.out_dir)
    device = prepare_device(given.device, given.threads, False)
    student, tokenizer = hf.load(given.init, device=device)
    folder.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    task = TextTask(read_jsonl(given.data), tokenizer, end_ids=hf.end_ids(student, tokenizer))
    sizes = Sizes(given.rows, 1, given.max_new_tokens, micro_batch=8, chunk_tokens=1024)
    result = compared(task, student, sizes, "bfloat16", given.learning_rate)
    write_json(folder / "precision.json", result)
    print(table(result, "bfloat16"))


if __name__ == "__main__":
    run_main("python -m lab.precision", main)
