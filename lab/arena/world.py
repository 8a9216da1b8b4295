"""The two worlds of the arena: world v2 as shipped, and one in which token credit has work to do.

In world v2 the hint says nothing about the digits of a chain (its authors know them anyway), so a
method that ranks tokens has nothing to rank. In the `arena` authors without a solution slip: each
single step is wrong with a fixed probability and the chain goes on from it, so that one token is
fatal and the base model is right on .05 to .2. Whoever is shown a solution, right or wrong, uses
its values at every step, careful or sure. A wrong solution is wrong from some step on, in the
format of the right one. Some documents have the solution of another problem, or no problem.

    solution 3*7=1+4=5-8=7 | 3*7+4-8 = 3*7+4=5; 5-8=7; answer 7
    solution 3*7=1+4=9-8=1 | 3*7+4-8 = wait 3*7=1; 1+4=9; 9-8=1; answer 1
    solution 2+5=7-3=4 | 3*7+4-8 = wait 3*7=1; 1+4=3; 3-8=5; answer 5
    solution 3*7=1+4=5-8=7 |  = 3*7+4=5; 5-8=7; answer 7
"""

import contextlib
import functools
import hashlib
import inspect
import random
from collections.abc import Iterator
from dataclasses import dataclass

import toy_tasks
from lab.base import base_model
from minisd import GPT
from toy_tasks import (
    ANSWER,
    CONTEXTS,
    MARKER,
    TASKS,
    Example,
    Problem,
    Toy,
    ToyTask,
    World,
    apply,
    draw_problem,
    encode,
    other_digit,
    worked,
)

SHARES = {"none": 0.4, "partial": 0.05, "answer": 0.05, "solution": 0.22, "sibling": 0.0,
          "feedback": 0.0, "rule": 0.0, "other_problem": 0.06, "wrong": 0.22}
SURE = {"none": 0.0, "partial": 0.4, "answer": 0.4, "solution": 0.7, "sibling": 0.0,
        "feedback": 0.0, "rule": 0.0, "other_problem": 0.0, "wrong": 0.7}


@dataclass(frozen=True)
class ArenaWorld(World):
    """The world in which a solution tells the digits; base models are kept under all fields."""

    slip_rate: float = 0.33  # of a single step by an author who is not shown its value
    mismatched_rate: float = 0.15  # of the documents with a solution: it is another problem's
    alone_rate: float = 0.15  # of them: no problem stands behind it
    code: str = ""  # a hash of this file, so that no other generator's model is taken

    @classmethod
    def made(cls, **changes) -> "ArenaWorld":
        rates = dict.fromkeys(CONTEXTS, 0.1)
        tables = {"certainty": SURE, "document_share": SHARES, "direct_rate": rates}
        fixed = {"glance_rate": 0.3, "drill_rate": 0.0, "persona_rate": 0.0}
        return cls(**{**tables, **fixed, "code": generator_hash(), **changes})


@functools.cache
def generator_hash() -> str:
    parts = (wrong_values, draw_document, write_arena, write_steps)
    return hashlib.sha256("".join(map(inspect.getsource, parts)).encode()).hexdigest()[:16]


def wrong_values(problem: Problem, rng: random.Random) -> tuple[int, ...]:
    """Values (one an operation) that are wrong from a drawn step on, worked on from there.

    The answer is wrong: where a product has swallowed the error another step is drawn.
    """
    while True:
        place, values, value = rng.randrange(len(problem.operators)), [], problem.digits[0]
        for i, (operator, digit) in enumerate(zip(problem.operators, problem.digits[1:])):
            value = apply(operator, value, digit)
            value = other_digit(rng, value) if i == place else value
            values.append(value)
        if values[-1] != problem.values[-1]:
            return tuple(values)


def draw_document(rng: random.Random, world: ArenaWorld) -> tuple[str, str]:
    """(context + prompt, completion) of one document of the arena."""
    kind = rng.choices(list(world.document_share), world.document_share.values())[0]
    n = range(1, world.max_operations + 1)
    problem = draw_problem(rng, world.operators, n)
    values, shown, prompt = problem.values, {}, problem.prompt
    context = toy_tasks.privileged_context(problem, kind, rng)
    if kind in ("solution", "wrong"):
        values = wrong_values(problem, rng) if kind == "wrong" else values
        context = f"solution {worked(problem, values)} | "
        shown, drawn = dict(enumerate(values)), rng.random()
        if drawn < world.mismatched_rate:  # what is shown belongs to another problem
            other = draw_problem(rng, world.operators, n)
            shown, prompt, problem, kind = {}, other.prompt, other, "none"
        elif drawn < world.mismatched_rate + world.alone_rate:
            prompt = " = "
    elif kind == "answer":
        shown = {len(values) - 1: values[-1]}
    elif kind == "partial":
        shown = dict(enumerate(values[: len(values) // 2]))
    return context + prompt, write_arena(problem, world, rng, kind, shown)


def write_arena(problem: Problem, world: ArenaWorld, rng, kind: str, shown: dict) -> str:
    """A completion by an author with this kind of context, who is shown the values in `shown`."""
    certainty, last = world.certainty[kind], len(problem.operators) - 1
    if rng.random() < world.direct_rate[kind]:
        return f"{ANSWER}{shown.get(last, problem.values[-1])}"
    opens = rng.random() >= certainty
    steps, answer = write_steps(problem, world, rng, certainty, shown)
    return f"{MARKER * opens}{steps}{ANSWER}{answer}"


def write_steps(problem: Problem, world: ArenaWorld, rng, certainty: float, shown: dict):
    """Glances, their checks and single steps with slips, and the value that they end with."""
    def single(value: int, i: int) -> tuple[str, int]:
        operator, digit = problem.operators[i], problem.digits[i + 1]
        found = apply(operator, value, digit)
        if i in shown:
            found = shown[i]
        elif rng.random() < world.slip_rate:
            found = other_digit(rng, found)
        return f"{value}{operator}{digit}={found}; ", found

    text, value, i, n = "", problem.digits[0], 0, len(problem.operators)
    while i < n:
        if i + 1 < n and rng.random() < world.glance_rate:
            part = Problem((value, *problem.digits[i + 1 : i + 3]), problem.operators[i : i + 2])
            seen = shown.get(i + 1, part.values[-1])
            unsure = rng.random() >= certainty
            if unsure and i + 1 not in shown and rng.random() < world.glance_error_rate:
                seen = other_digit(rng, seen)
            text += f"{part.text}={seen}; "
            if unsure:  # both steps are done one by one
                first, value = single(value, i)
                second, value = single(value, i + 1)
                text += MARKER + first + second
            else:
                value = seen
            i += 2
        else:
            step, value = single(value, i)
            text, i = text + step, i + 1
    return text, value


@contextlib.contextmanager
def documents_of_the_arena() -> Iterator[None]:
    """`lab.base` pretrains on what toy_tasks draws: for a while, on this file's documents."""
    kept, toy_tasks.draw_document = toy_tasks.draw_document, draw_document
    try:
        yield
    finally:
        toy_tasks.draw_document = kept


class ArenaTask(ToyTask):
    """A toy task with the contexts that fixes need beside those of the world.

    other_solution: of another problem, in the format of the own one. solution_alone: without the
    problem behind it. In the arena `wrong` is wrong from some step on.
    """

    def context(self, example: Example, kind: str, rng: random.Random, attempt: str = "") -> str:
        problem = example.problem
        if kind == "solution_alone":
            return "!" + super().context(example, "solution", rng)
        if kind == "other_solution":
            return super().context(example, "other_problem", rng).replace("other ", "solution ")
        if kind == "wrong" and isinstance(self.world, ArenaWorld):
            return f"solution {worked(problem, wrong_values(problem, rng))} | "
        return super().context(example, kind, rng, attempt)

    def prompt_ids(self, example: Example, context: str = "") -> list[int]:
        if context.startswith("!"):
            return encode(context[1:] + " = ")
        return super().prompt_ids(example, context)


@dataclass(frozen=True)
class Setting:
    """A world of the arena: its task, and how much a step and a completion have of tokens."""

    name: str
    world: World
    operations: str  # of training problems
    step_tokens: int  # sampled at a step, about
    max_new_tokens: int

    def task(self, problems: int, seed: int) -> ArenaTask:
        return ArenaTask(
            self.world, pool_size=problems, operations=self.operations, operators="+-", seed=seed)

    def base(self, seed: int, share: float, steps: int, cache_dir: str) -> GPT:
        """The base model with this share (0-1) of its pretraining."""
        steps = max(1, round(share * steps))
        arena = isinstance(self.world, ArenaWorld)
        with documents_of_the_arena() if arena else contextlib.nullcontext():
            return base_model(self.world, seed, steps=steps, cache_dir=cache_dir)[0]


def settings() -> dict[str, Setting]:
    return {
        "v2": Setting("v2", World(), "", 512, 64),
        "arena": Setting("arena", ArenaWorld.made(), "5", 960, 80),
    }


# So that `--task arena` has the arena's problems and contexts; its base models are `Setting.base`'s
TASKS["arena"] = lambda toy, problems, seed: settings()["arena"].task(problems, seed)
PRETRAIN_STEPS = Toy.pretrain_steps
