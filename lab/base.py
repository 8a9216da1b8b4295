"""The base models of the toy: pretrained on documents, kept under a hash of their recipe.

python -m lab.base      # makes the one that ships with the program anew: lab/bases/, 0.6 MB

The default's ships, so that a first run need not wait. Whatever changes its recipe (model, world,
documents, this file's pretraining) changes the hash in its name, and a model is pretrained.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

import minisd
import toy_tasks
from lab import storage
from minisd import GPT, GPTConfig
from toy_tasks import Toy, World

SHAPE = {"width": 80, "n_heads": 5, "n_kv_heads": 5, "mlp_width": 192, "rope_theta": 1000.0}
SIZES = {"base": SHAPE, "larger": SHAPE | {"n_layers": 3}}
# Teachers that are base models of their own: (size, changes of the world).
EXTERNAL_BASES = {"larger": ("larger", {}), "other_style": ("base", {"functional_markers": False})}
# External teachers use one fixed seed, as a downloaded checkpoint would.
EXTERNAL_SEED = 1000
BASES = Path(__file__).parent / "bases"  # what ships
PRETRAIN_TOKENS = 1024  # per step
MUON = {"lr": 0.02, "momentum": 0.85, "weight_decay": 0.1}  # hidden matrices
ADAMW = {"lr": 0.011, "betas": (0.9, 0.99), "weight_decay": 0.0}  # embedding, head and norms


def progress(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """The items, with a bar that shows the remaining time; without one where nobody looks."""
    return tqdm(items, what, total, leave=False, file=sys.stdout, disable=not sys.stdout.isatty())


def pretrain_batches(
    draw: Callable[[random.Random, World], tuple[str, str]], world: World, rng: random.Random
) -> Iterator[Tensor]:
    """Endless batches (B, T) of right-padded documents; like lengths together save padding."""
    while True:
        documents = (draw(rng, world) for _ in range(1024))
        rows = sorted(([*toy_tasks.encode(p + c), toy_tasks.END_ID] for p, c in documents), key=len)
        batches, start = [], 0
        for end in range(1, len(rows) + 1):
            if end == len(rows) or (end - start + 1) * len(rows[end]) > PRETRAIN_TOKENS:
                batches.append(rows[start:end])
                start = end
        rng.shuffle(batches)
        for batch in batches:
            T = max(map(len, batch))
            yield torch.tensor([row + [toy_tasks.PAD_ID] * (T - len(row)) for row in batch])


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: for hidden matrices. Source: Jordan et al. 2024.

    As torch.optim.Muon, but in float32: that one multiplies in bfloat16, which took 57 % of a
    step on a processor that only emulates it.
    """

    def __init__(self, params, lr: float, momentum: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[tuple, list[Tensor]] = {}  # matrices of one shape, made orthogonal at once
            for p in group["params"]:
                alike.setdefault(p.shape, []).append(p)
            for (rows, columns), params in alike.items():
                updates = []
                for p in params:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov's
                scale = group["lr"] * math.sqrt(max(1, rows / columns))
                for p, update in zip(params, orthogonal(torch.stack(updates))):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)


def orthogonal(x: Tensor) -> Tensor:
    """Matrices (..., m, n) with their singular values near 1: five steps of Newton-Schulz."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def written(ids: Tensor) -> Tensor:
    """Documents (B, T) with all before the completion padded: problems are drawn, not learnt."""
    begins = ids == toy_tasks.TOKEN_ID[" = "]
    return ids.masked_fill(begins.flip(1).cumsum(1).flip(1) > 0, toy_tasks.PAD_ID)


def pretrain(model: GPT, world: World, steps: int, seed: int) -> None:
    """Next-token training on documents of the world, with Muon on the hidden matrices."""
    hidden = [p for p in model.layers.parameters() if p.dim() == 2]
    chosen = {id(p) for p in hidden}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [Muon(hidden, **MUON), torch.optim.AdamW(others, **ADAMW)]
    peaks = [MUON["lr"], ADAMW["lr"]]
    device = next(model.parameters()).device
    rng = random.Random(f"documents-{seed}")
    practice = pretrain_batches(toy_tasks.draw_practice, world, rng)
    documents = pretrain_batches(toy_tasks.draw_document, world, rng)
    for step in progress(range(steps), "pretraining"):
        ids = next(practice if step < world.drills_first * steps else documents).to(device)
        logits = model(ids[:, :-1])  # (B, T-1, V)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), written(ids)[:, 1:].flatten(), ignore_index=toy_tasks.PAD_ID,
            reduction="sum",
        ) / PRETRAIN_TOKENS  # a constant: by their own number short documents would count more
        loss.backward()
        scale = min((step + 1) / 20, 1 - step / steps)  # warm-up over 20 steps, linearly to zero
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


@functools.cache
def sources() -> str:
    """A hash of the code that determines the weights: documents, model, pretraining.

    An edited loss keeps the base models.
    """
    parts = (minisd.GPTConfig, minisd.RMSNorm, minisd.Attention, minisd.rotate, minisd.MLP)
    parts += (minisd.Block, minisd.GPT, minisd.rope_table, toy_tasks)
    parts += (pretrain_batches, Muon, orthogonal, written, pretrain)
    text = "".join(map(inspect.getsource, parts)) + str((PRETRAIN_TOKENS, MUON, ADAMW))
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_hash(world: World, seed: int, steps: int, size: str, **where: str) -> str:
    """16 digits that stand for all that determines the weights, the code included.

    where: what changes their last bits alone, such as the device; a shipped model has none of it.
    """
    recipe = [dataclasses.asdict(world), dataclasses.asdict(shape_of(size)), seed, steps]
    return hashlib.sha256(json.dumps([recipe, where, sources()]).encode()).hexdigest()[:16]


def here(device: str) -> dict[str, str]:
    """Version, threads (the order of additions) and device change the last bits of sums."""
    threads = str(torch.get_num_threads())
    return {"device": torch.device(device).type, "torch": torch.__version__, "threads": threads}


def shape_of(size: str) -> GPTConfig:
    return GPTConfig(vocab_size=len(toy_tasks.VOCABULARY), **SIZES[size])


def base_model(
    world: World, seed: int, *, steps: int = Toy.pretrain_steps, size: str = "base",
    device: str = "cpu", cache_dir: str = "out/base", here_made: bool = False,
) -> tuple[GPT, float]:
    """The pretrained model, shipped or kept if possible, and the seconds its pretraining took.

    here_made: not the shipped one. Two processes that ask for the same model at once: the second
    waits for the first.
    """
    model = GPT(shape_of(size), torch.Generator().manual_seed(seed)).to(device)
    shipped = BASES / f"{size}-{recipe_hash(world, seed, steps, size)}.safetensors"
    if shipped.exists() and not here_made:
        try:
            with safe_open(shipped, framework="pt") as file:
                seconds = float(file.metadata()["pretrain_s"])
                names = file.keys()
                model.load_state_dict({name: file.get_tensor(name) for name in names})
        except (*storage.UNREADABLE, SafetensorError):
            words = "is damaged; allowed: --pretrain, or the file as it shipped"
            raise ValueError(f"base model: {str(shipped)!r} {words}") from None
        print(f"base model: shipped, made by --pretrain in {seconds:.0f} s", flush=True)
        return model, seconds
    path = Path(cache_dir) / f"{size}-{recipe_hash(world, seed, steps, size, **here(device))}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    if not path.exists():
        with FileLock(f"{path}.lock"):
            if not path.exists():
                for left in path.parent.glob(f".{path.name}.*"):  # by a killed process
                    left.unlink()
                print(f"base model: pretraining of {steps} steps, kept in {path}", flush=True)
                seconds = timed_pretrain(model, world, steps, seed)
                content = {"weights": model.state_dict(), "pretrain_s": seconds}
                storage.save_tensors(path, content)
    saved = storage.load_tensors(path, "--cache_dir", {"weights", "pretrain_s"})
    try:
        model.load_state_dict(saved["weights"])
    except (RuntimeError, TypeError, AttributeError):
        raise ValueError(f"--cache_dir: {str(path)!r} is damaged; delete that file") from None
    return model.to(device), float(saved["pretrain_s"])


def external_base(name: str, world: World, **how) -> tuple[GPT, float]:
    """The base model that --external_teacher names, one for all seeds; how: as `base_model`."""
    size, changes = EXTERNAL_BASES[name]
    return base_model(dataclasses.replace(world, **changes), EXTERNAL_SEED, size=size, **how)


def timed_pretrain(model: GPT, world: World, steps: int, seed: int) -> float:
    """The seconds that it took."""
    start = time.perf_counter()
    pretrain(model, world, steps, seed)
    return time.perf_counter() - start


def ship() -> Path:
    """Pretrains the default's base model and puts it in place of the one that ships."""
    torch.set_num_threads(1)
    model = GPT(shape_of("base"), torch.Generator().manual_seed(0))
    seconds = timed_pretrain(model, World(), Toy.pretrain_steps, 0)
    path = BASES / f"base-{recipe_hash(World(), 0, Toy.pretrain_steps, 'base')}.safetensors"
    BASES.mkdir(exist_ok=True)
    metadata = {"pretrain_s": f"{seconds:.1f}"}
    storage.write_atomically(path, lambda p: save_file(model.state_dict(), p, metadata))
    for older in {*BASES.glob("*.safetensors")} - {path}:
        older.unlink()
    return path


if __name__ == "__main__":
    print(f"written: {ship()}")
