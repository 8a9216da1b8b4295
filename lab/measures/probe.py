"""What all measures start from: settings, a base model, and its completions of some problems."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import minisd
import toy_tasks
from lab.base import base_model, external_base
from lab.evaluation import seeded
from minisd import GPT, Batch, Completions, Method, Prompts, Sizes
from toy_tasks import Example, Problem, Toy, ToyTask

PART_ROWS = 128  # completions scored at a time: they stay in a core's cache

# A model of itself: the student without a context, the teacher with the solution.
SELF = Method(teacher="live", context="solution")


@dataclass(frozen=True)
class Settings:
    """All that the numbers of a measure depend on."""

    seed: int = 0  # of the base model and of all random numbers
    toy: Toy = field(default_factory=Toy)
    context: str = "solution"  # what the teacher sees, for estimators and forecast
    train_problems: int = 64  # in the pool, for signal and forecast; 0: endless
    eval_problems: int = 256  # of a split, where a flag has it
    max_new_tokens: int = 96  # length limit of a completion; 8 checked operations need about 90
    device: str = "cpu"  # auto, cpu, cuda or mps
    cache_dir: str = "out/base"  # where base models are kept

    @property
    def sizes(self) -> Sizes:
        return Sizes(max_new_tokens=self.max_new_tokens)

    def task(self) -> ToyTask:
        return self.toy.make_task(self.train_problems, self.seed)

    def base(self) -> GPT:
        """The base model of the world and the seed."""
        world = toy_tasks.parse_world(self.toy.world)
        return base_model(world, self.seed, **self.kept_bases)[0]

    def external(self, name: str) -> GPT:
        """A base model with a seed of its own; see `lab.base.EXTERNAL_BASES`."""
        return external_base(name, toy_tasks.parse_world(self.toy.world), **self.kept_bases)[0]

    @property
    def kept_bases(self) -> dict:
        how = {"steps": self.toy.pretrain_steps}
        return how | {"device": self.device, "cache_dir": self.cache_dir}


@dataclass
class Probe:
    """Problems, and the base model's completions of them."""

    settings: Settings
    task: ToyTask
    student: GPT
    rng: random.Random
    generator: torch.Generator
    examples: list[Example]  # each one `repeats` times in a row
    texts: list[str]
    rewards: Tensor  # (B,)

    @classmethod
    def of(cls, settings: Settings, name: str, student: GPT) -> "Probe":
        """No problems yet; all random numbers are those of that name."""
        key, nothing = f"{name}-{settings.seed}", ([], [], torch.zeros(0))
        rng, generator = random.Random(key), seeded(key, torch.device(settings.device))
        return cls(settings, settings.task(), student, rng, generator, *nothing)

    @classmethod
    def draw(
        cls, settings: Settings, name: str, problems: list[Problem], repeats: int = 1
    ) -> "Probe":
        """The base model's own completions of the problems, from random numbers of that name."""
        probe = cls.of(settings, name, settings.base())
        probe.examples = [Example(p) for p in problems for _ in range(repeats)]
        probe.texts, probe.rewards = probe.go_on(probe.student, probe.examples)
        return probe

    def contexts(self, examples: list[Example], kind: str, attempts=None) -> list[str]:
        """Contexts of that kind; attempts: the completions that they are made of, if any."""
        attempts = attempts or [""] * len(examples)
        return [self.task.context(e, kind, self.rng, a) for e, a in zip(examples, attempts)]

    def prompts(self, examples: list[Example], contexts=None, prefixes=None) -> Prompts:
        """Prompts behind their contexts that end with a prefix (token ids) of the completion."""
        contexts, prefixes = contexts or [""] * len(examples), prefixes or [[]] * len(examples)
        triples = zip(examples, contexts, prefixes)
        rows = [self.task.prompt_ids(e, c) + list(p) for e, c, p in triples]
        return Prompts.of(rows, self.task.pad_id, self.generator.device)

    def write(self, model: GPT, prompts: Prompts, pick=minisd.pick_token) -> Completions:
        """Completions of a model that sees these prompts; pick: as `minisd.sample` has it."""
        return minisd.sample(
            [(1.0, model, prompts)], max_new_tokens=self.settings.max_new_tokens,
            end_ids=self.task.end_ids, pad_id=self.task.pad_id, generator=self.generator, pick=pick,
        )

    def go_on(
        self, model: GPT, examples: list[Example], contexts=None, prefixes=None,
        pick=minisd.pick_token,
    ) -> tuple[list[str], Tensor]:
        """Whole completions as the model finishes each prefix (default: none), and rewards (B,)."""
        if not examples:
            return [], torch.zeros(0)
        ids = self.write(model, self.prompts(examples, contexts, prefixes), pick).ids.tolist()
        prefixes = prefixes or [[]] * len(examples)
        texts = [self.task.decode([*p, *row]) for p, row in zip(prefixes, ids)]
        return texts, torch.tensor([self.task.reward(t, e) for t, e in zip(texts, examples)])

    def rows(self, texts: list[str]) -> Completions:
        """Texts as completions with their end token."""
        rows = [[*self.task.encode(text), self.task.end_ids[0]] for text in texts]
        return Completions.of(rows, self.task.pad_id, self.generator.device)

    def sums(
        self, prompts: Prompts, completions: Completions, read: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Sums (B,) over the tokens of read(the student's logits (1, N, V), ids (1, N))."""
        parts = []
        for rows in torch.arange(len(completions.ids)).split(PART_ROWS):
            shown, written = prompts.take(rows), completions.take(rows)
            ids, mask = written.ids[written.mask], written.mask
            values = read(token_logits(self.student, shown, written)[None], ids[None])
            values = values.new_zeros(mask.shape).masked_scatter(mask, values)  # (b, T)
            parts.append(values.sum(1))
        return torch.cat(parts)

    def log_probs(self, prompts: Prompts, completions: Completions) -> Tensor:
        """log p (B,) of whole completions, in nats; gradient flows to the student."""
        return self.sums(prompts, completions, minisd.token_log_probs)

    def compared(
        self, examples: list[Example], texts: list[str], readings: dict | None = None
    ) -> dict[str, Tensor]:
        """`minisd.score` of the texts by the student and by itself when it sees the solution.

        `divergence` is KL(student || teacher), and its gradient flows to the student.
        """
        completions, hints = self.rows(texts), self.contexts(examples, "solution")
        shown = {"none": self.prompts(examples), "solution": self.prompts(examples, hints)}
        batch = Batch([], shown, completions, torch.zeros(len(texts)), self.settings.sizes)
        terms = [(1.0, self.student, shown["solution"])]
        return minisd.score(SELF, self.student, terms, batch, readings)


def token_logits(model: GPT, prompts: Prompts, completions: Completions) -> Tensor:
    """Logits (N, V) of the N completion tokens of a batch."""
    hidden = minisd.completion_hidden(model, prompts, completions.ids)  # (B, T, C)
    return model.lm_head(hidden[completions.mask])
