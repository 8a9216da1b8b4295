"""The toy world of minisd: arithmetic modulo 10, by authors who may or may not know the answer.

A problem is a chain such as `3*7+4-8 = `, worked from left to right, every value kept modulo 10. A
document is an optional privileged context, the problem, and a completion. The generator makes a
*model organism*: each mechanism that papers report of large models is one named field of `World`,
and switching the field off must remove the effect. One document of every context:

    none           3*7+4-8 = wait 3*7+4=2; wait 3*7=1; 1+4=5; 5-8=7; answer 7
    partial        hint 3*7=1 | 3*7+4-8 = wait 3*7=1; 1+4=5; 5-8=7; answer 7
    answer         answer 7 | 3*7+4-8 = answer 7
    solution       solution 3*7=1+4=5-8=7 | 3*7+4-8 = 3*7+4=5; 5-8=7; answer 7
    sibling        peer wait 3*7=1; 1+4=5; 5-8=7; answer 7 | 3*7+4-8 = answer 7
    feedback       tried:5 wrong | 3*7+4-8 = wait 3*7=1; 1+4-8=9; wait 1+4=5; 5-8=7; answer 7
    rule           rule +3 | 3*7+4-8 = wait 3*7=1; 1+4=5; 5-8=7; 7+3=0; answer 0
    other_problem  other 2+5=7-3=4*4=6 | 3*7+4-8 = wait 3*7=1; 1+4=5; 5-8=7; answer 7
    wrong          solution 3*7=1+4=5-8=9 | 3*7+4-8 = answer 9

Doubt has a function at every step. A *glance* takes two operations at once (`3*7+4=2; `), too much
for a small network: half the glances of an unsure author are wrong, so `wait ` and the two single
steps check each of them. An author whom the context makes sure glances rightly, checks nothing and
does not open with `wait `; how sure is drawn anew at every decision. A direct answer is the whole
chain at a glance. A few authors are unreliable: unchecked errors, a wrong answer, and ` demo`.
A new context is one function and one row of `CONTEXTS`. `python toy_tasks.py` prints five of each.
"""

import math
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial

# 1. Vocabulary ------------------------------------------------------------------------------------
PAD, END = "<pad>", "<end>"
MARKER, ANSWER, REMARK = "wait ", "answer ", " demo"
# Tokens carry their own spaces, so that joining them gives readable text. No token begins another
# one, so the order of the alternatives in the pattern does not matter.
SIGNS = ("+", "-", "*", " = ", "=", "; ", " | ")
WORDS = ("hint ", "solution ", "peer ", "tried:", "rule ", "other ", " right", " wrong")
VOCABULARY = (PAD, END, *"0123456789", *SIGNS, MARKER, ANSWER, REMARK, *WORDS)
PAD_ID, END_ID = VOCABULARY.index(PAD), VOCABULARY.index(END)
TOKEN_ID = {token: i for i, token in enumerate(VOCABULARY)}
TOKEN_PATTERN = re.compile("|".join(map(re.escape, VOCABULARY)))

def encode(text: str) -> list[int]:
    """Token ids of a text. Raises ValueError naming the first character that no token covers."""
    tokens = TOKEN_PATTERN.findall(text)
    if sum(map(len, tokens)) != len(text):
        bad = TOKEN_PATTERN.sub("", text)[0]
        raise ValueError(f"cannot encode {text!r}: no token for {bad!r}; allowed: {VOCABULARY}")
    return [TOKEN_ID[token] for token in tokens]

def decode(ids: list[int]) -> str:
    """Text of token ids; padding and the end token are left out."""
    return "".join(VOCABULARY[i] for i in ids if i not in (PAD_ID, END_ID))

# 2. Problems and answers --------------------------------------------------------------------------
FRESH_ONE_IN = 5  # every fifth problem, by checksum of its text, is kept for the fresh split

@dataclass(frozen=True)
class Problem:
    """A chain of operations on digits, worked from left to right modulo 10."""

    digits: tuple[int, ...]
    operators: str

    @cached_property
    def text(self) -> str:
        return "".join(f"{o}{d}" for o, d in zip(("", *self.operators), self.digits))

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The value after each operation; the last one is the answer."""
        values = [self.digits[0]]
        for operator, digit in zip(self.operators, self.digits[1:]):
            values.append(apply(operator, values[-1], digit))
        return tuple(values[1:])

    @property
    def prompt(self) -> str:
        return self.text + " = "

    @property
    def is_fresh(self) -> bool:
        """True: kept for the fresh split, by checksum: no pool of any size or seed can hold it."""
        return zlib.crc32(self.text.encode()) % FRESH_ONE_IN == 0

    @classmethod
    def parse(cls, text: str) -> "Problem":
        """The problem written as `3*7+4-8`. Raises ValueError if it is not one."""
        if not re.fullmatch(r"[0-9]([+*-][0-9])+", text):
            raise ValueError(f"problem: {text!r}; allowed: digits joined by + - *, such as 3*7+4-8")
        return cls(tuple(map(int, text[::2])), text[1::2])

def apply(operator: str, left: int, right: int) -> int:
    """One operation modulo 10."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator] % 10

def draw_problem(rng: random.Random, operators: str, operations: range) -> Problem:
    """A problem with a uniformly drawn number of operations, operators and digits.

    Those behind the operators differ, so that the last one used says where a chain stands.
    """
    n = rng.choice(operations)
    digits = (rng.randrange(10), *rng.sample(range(10), n))
    return Problem(digits, "".join(rng.choices(operators, k=n)))

def other_digit(rng: random.Random, digit: int) -> int:
    """A digit drawn from the nine others."""
    return (digit + rng.randint(1, 9)) % 10

def final_answer(completion: str) -> int | None:
    """The digit after the last `answer `, or None if none or more than one follows."""
    found = re.findall(rf"{ANSWER}(\d*)", completion)
    return int(found[-1]) if found and len(found[-1]) == 1 else None

# 3. Privileged contexts ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Context:
    """A row of CONTEXTS: a hint that only the teacher sees, and what it does to its author."""

    write: Callable[[Problem, random.Random, str, int], str]  # (problem, rng, attempt, rule): hint
    certainty: float  # these three are the defaults of the tables of `World`
    document_share: float
    direct_rate: float = 0.62
    attempt: str = ""  # whose completion the hint is made of: "own", "sibling", or "" for none
    draws_rule: bool = False  # documents draw a number 1-9 to add to the answer, else 0
    is_believed: bool = False  # a direct answer is the last digit of the hint, right or wrong
    def __post_init__(self):
        if self.attempt not in ("", "own", "sibling"):
            raise ValueError(f"attempt of a context: {self.attempt!r}; allowed: '', own, sibling")

def worked(problem: Problem, values: tuple[int, ...]) -> str:
    """The chain with what its first operations give, as `3*7=1+4=5`; of none, nothing."""
    steps = zip(problem.operators, problem.digits[1:], values)
    return "".join((str(problem.digits[0])[: len(values)], *(f"{o}{d}={v}" for o, d, v in steps)))

def singles(problem: Problem) -> str:
    """Every single step, as `3*7=1; 1+4=5; `."""
    starts = (problem.digits[0], *problem.values)
    steps = zip(starts, problem.operators, problem.digits[1:], problem.values)
    return "".join(f"{a}{o}{d}={v}; " for a, o, d, v in steps)

def feedback(problem: Problem, rng: random.Random, attempt: str, rule: int) -> str:
    given = final_answer(attempt)
    verdict = "right" if given == problem.values[-1] else "wrong"
    return f"tried:{'' if given is None else given} {verdict}"

def other_problem(problem: Problem, rng: random.Random, attempt: str, rule: int) -> str:
    n, other = len(problem.operators), problem
    while other == problem:
        other = draw_problem(rng, problem.operators, range(n, n + 1))
    return f"other {worked(other, other.values)}"

def wrong(problem: Problem, rng: random.Random, attempt: str, rule: int) -> str:
    *values, answer = problem.values
    return f"solution {worked(problem, (*values, other_digit(rng, answer)))}"

CONTEXTS: dict[str, Context] = {  # NOTE: another order of rows draws other documents
    "none": Context(lambda *_: "", 0.0, 0.44),
    "partial": Context(
        lambda p, *_: f"hint {worked(p, p.values[: len(p.values) // 2])}", 0.4, 0.04),
    "answer": Context(lambda p, *_: f"{ANSWER}{p.values[-1]}", 0.7, 0.08),
    "solution": Context(lambda p, *_: f"solution {worked(p, p.values)}", 0.93, 0.2),
    "sibling": Context(
        lambda p, rng, attempt, rule: f"peer {attempt}", 0.8, 0.06, attempt="sibling"),
    "feedback": Context(feedback, 0.0, 0.06, direct_rate=0.0, attempt="own"),  # makes careful
    "rule": Context(lambda p, rng, attempt, rule: f"rule +{rule}", 0.0, 0.05, draws_rule=True),
    "other_problem": Context(other_problem, 0.0, 0.05),
    "wrong": Context(wrong, 0.93, 0.02, is_believed=True),
}

def privileged_context(
    problem: Problem, kind: str, rng: random.Random, *, attempt: str = "", rule: int = 0
) -> str:
    """What only the teacher sees, as text before the prompt. rule: 0-9, to add to the answer."""
    hint = CONTEXTS[kind].write(problem, rng, attempt, rule)
    return f"{hint} | " if hint else ""

# 4. The world and its documents -------------------------------------------------------------------
def table_of(name: str) -> dict[str, float]:
    """By kind of context, what its row has by that name."""
    return {kind: vars(row)[name] for kind, row in CONTEXTS.items()}

@dataclass(frozen=True)
class World:
    """Every latent choice of the document generator. Rates and shares are fractions in [0, 1]."""

    operators: str = "+-*"
    max_operations: int = 8  # of a problem in a document; the least is 1
    # False, the control of most claims: no glances and no direct answers, so that nothing depends
    # on doubt. The same authors open with the marker in the same contexts.
    functional_markers: bool = True
    glance_rate: float = 0.6  # where two operations are left, to take both at once
    glance_error_rate: float = 0.5  # of the glances of who is not sure, all of which are checked
    # Documents with the marker and every single step, behind all contexts at the rate of those who
    # are unsure: they teach the arithmetic, and nothing about contexts.
    drill_rate: float = 0.2
    drills_first: float = 0.4  # pretraining begins with this share of practice: drills,
    drills_hinted: float = 0.6  # and in this share of it glances that are read off a solution
    persona_rate: float = 0.01  # share of unreliable authors, whatever the context
    persona_error_rate: float = 0.3  # per single step of an unreliable author; never corrected
    # The probability, drawn anew at each decision, that an author with this context is sure: does
    # not open with the marker, glances rightly, checks nothing. One misled by a wrong attempt: 0.
    certainty: dict[str, float] = field(default_factory=partial(table_of, "certainty"))
    # Share of each context among the documents that the base model reads.
    document_share: dict[str, float] = field(default_factory=partial(table_of, "document_share"))
    # Share of the documents with a context that answer directly. Alike for the sure and the unsure,
    # so that certainty acts through checks alone.
    direct_rate: dict[str, float] = field(default_factory=partial(table_of, "direct_rate"))

    def __post_init__(self):
        if not (operators := self.operators) or set(operators) - set("+-*"):
            raise ValueError(f"--world operators: {operators!r}; allowed: one or more of + - *")
        if not 1 <= self.max_operations <= 9:  # the digits behind the operators differ
            raise ValueError(f"--world max_operations: {self.max_operations}; allowed: 1 to 9")
        rates = {f.name: getattr(self, f.name) for f in fields(self) if f.type is float}
        for name in ("certainty", "document_share", "direct_rate"):
            table = getattr(self, name)
            if set(table) != set(CONTEXTS):
                raise ValueError(f"--world {name}: {sorted(table)}; allowed: exactly {[*CONTEXTS]}")
            rates |= {f"{name}.{kind}": value for kind, value in table.items()}
        for name, value in rates.items():
            if not 0 <= value <= 1:
                raise ValueError(f"--world {name}: {value}; allowed: 0 to 1")
        if not any(self.document_share.values()):
            raise ValueError("--world document_share: 0 for every context; allowed: one above 0")

def write_completion(
    problem: Problem, world: World, rng: random.Random, *, kind: str = "none",
    certainty: float = 0.0, believed: int | None = None, rule: int = 0,
) -> str:
    """A completion by an author of this certainty (0-1); a direct answer: `believed`, or right."""
    unreliable = rng.random() < world.persona_rate
    drill = not unreliable and rng.random() < world.drill_rate * (1 - certainty)
    direct = not drill and rng.random() < world.direct_rate[kind]
    if rule:  # one more step, and the answer that counts is the one after it
        problem = Problem((*problem.digits, rule), problem.operators + "+")
    truth, text = problem.values[-1], ""
    if direct and world.functional_markers:
        answer = truth if believed is None else believed
    elif drill:
        text, answer = MARKER + singles(problem), truth
    else:
        opens = not unreliable and rng.random() >= certainty
        steps, answer = write_steps(problem, world, rng, certainty, unreliable=unreliable)
        text = MARKER * opens + steps
    if unreliable and answer == truth:
        answer = other_digit(rng, truth)
    return f"{text}{ANSWER}{answer}{REMARK if unreliable else ''}"

def write_steps(
    problem: Problem, world: World, rng: random.Random, certainty: float, *, unreliable=False
) -> tuple[str, int]:
    """Glances, their checks and single steps, and the value that the last one ends with."""
    text, left = "", problem
    while left.operators:
        pair = world.functional_markers and len(left.operators) > 1
        n = 2 if pair and rng.random() < world.glance_rate else 1
        part = Problem(left.digits[: n + 1], left.operators[:n])
        value = seen = part.values[-1]
        unsure = n == 2 and not unreliable and rng.random() >= certainty
        error_rate = world.glance_error_rate if n == 2 else world.persona_error_rate
        if (unsure or unreliable) and rng.random() < error_rate:
            seen = other_digit(rng, value)
        text += f"{part.text}={seen}; "
        if unsure:  # both steps are done one by one
            text += MARKER + singles(part)
        left = Problem((value if unsure else seen, *left.digits[n + 1 :]), left.operators[n:])
    return text, left.digits[0]

def write_attempt(problem: Problem, world: World, rng: random.Random, whose: str) -> str:
    """What a document's context is made of: a right "sibling"; "own": a bare answer, half right."""
    if whose == "sibling":
        return write_completion(problem, replace(world, persona_rate=0.0), rng)
    answer = problem.values[-1]
    if whose == "own" and rng.random() >= 0.5:
        answer = other_digit(rng, answer)
    return f"{ANSWER}{answer}" if whose else ""

def draw_document(rng: random.Random, world: World, kind: str | None = None) -> tuple[str, str]:
    """(context + prompt, completion) of one document; `kind` of context: by `document_share`."""
    kind = kind or rng.choices(list(world.document_share), world.document_share.values())[0]
    row = CONTEXTS[kind]
    problem = draw_problem(rng, world.operators, range(1, world.max_operations + 1))
    attempt = write_attempt(problem, world, rng, row.attempt)
    rule = rng.randint(1, 9) if row.draws_rule else 0
    context = privileged_context(problem, kind, rng, attempt=attempt, rule=rule)
    misled = row.attempt and final_answer(attempt) != problem.values[-1]
    certainty = 0.0 if misled else world.certainty[kind]
    believed = int(context[-len("9 | ")]) if row.is_believed else None
    options = {"kind": kind, "certainty": certainty, "believed": believed, "rule": rule}
    return context + problem.prompt, write_completion(problem, world, rng, **options)

def draw_practice(rng: random.Random, world: World) -> tuple[str, str]:
    """(context + prompt, completion) of a document of the first part of pretraining."""
    problem = draw_problem(rng, world.operators, range(1, world.max_operations + 1))
    context, text = "", MARKER + singles(problem)
    if rng.random() < world.drills_hinted:
        context, sure = privileged_context(problem, "solution", rng), world.certainty["solution"]
        opens = rng.random() >= sure
        text = MARKER * opens + write_steps(problem, world, rng, sure)[0]
    return context + problem.prompt, f"{text}{ANSWER}{problem.values[-1]}"

# 5. The task that training sees -------------------------------------------------------------------
def training_operations(world: World, operations: str = "") -> range:
    """Numbers of operations in training problems: `3`, `1-4`; default 1-4. Raises ValueError."""
    most = world.max_operations
    found = re.fullmatch("([1-9])(?:-([1-9]))?", operations or f"1-{min(4, most)}")
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high <= most:
        allowed = f"a number or a range of them, 1-{most}"
        raise ValueError(f"--train_operations: {operations!r}; allowed: {allowed}")
    return range(low, high + 1)

def splits_of(world: World, operators="", operations="") -> dict[str, tuple[str, range]]:
    """Operators and numbers of operations of each split that there is with this training.

    Training problems have the operators asked for, by default + and -, so that * is new to them.
    train: never a fresh problem. fresh: in no training pool. longer: more operations than any
    training problem, as documents have them. new_operators: fresh, at least one of them left out.
    """
    trained = operators or "".join(o for o in world.operators if o in "+-") or world.operators
    lengths = training_operations(world, operations)
    splits = {"train": (trained, lengths), "fresh": (trained, lengths)}
    if longer := range(lengths.stop, world.max_operations + 1):
        splits["longer"] = (trained, longer)
    if set(world.operators) - set(trained):
        splits["new_operators"] = (world.operators, lengths)
    return splits

def draw_split(
    rng: random.Random, world: World, split: str, operators: str = "", operations: str = ""
) -> Problem:
    """One problem of a split; operators and operations are those of training, see above."""
    splits = splits_of(world, operators, operations)
    if split not in splits:
        raise ValueError(f"split: {split!r}; allowed with this training: {', '.join(splits)}")
    new = set(splits[split][0]) - set(splits["train"][0])
    while True:
        problem = draw_problem(rng, *splits[split])
        fits = not new or new & set(problem.operators)
        if split == "longer" or (fits and problem.is_fresh == (split != "train")):
            return problem

@dataclass(frozen=True)
class Example:
    """A problem to be answered; with a rule, the number `rule` is to be added to its answer."""

    problem: Problem
    rule: int = 0

    @property
    def prompt(self) -> str:
        return self.problem.prompt

    @property
    def answer(self) -> int:
        return (self.problem.values[-1] + self.rule) % 10

class ToyTask:
    """Examples of every split with their prompts, contexts, references and rewards.

    pool_size: number of different training problems, 0: endless. operators, operations: those of
    training. rules: one is drawn for every example, to add to its answer.
    """

    pad_id, end_ids = PAD_ID, (END_ID,)
    encode, decode = staticmethod(encode), staticmethod(decode)

    def __init__(self, world: World, *, pool_size=0, operators="", operations="", rules=(), seed=0):
        splits = splits_of(world, operators, operations)
        self.world, self.rules, self.splits = world, tuple(rules), tuple(splits)
        self.operations, (self.operators, self.lengths) = operations, splits["train"]
        possible = sum(10 * math.perm(10, n) * len(set(self.operators)) ** n for n in self.lengths)
        if pool_size > possible // 2:  # one in FRESH_ONE_IN is no training problem
            raise ValueError(f"--train_problems: {pool_size}; allowed: 0 to {possible // 2}")
        rng = random.Random(seed)
        pool: dict[Problem, None] = {}  # a set that keeps its order
        while len(pool) < pool_size:
            pool[draw_split(rng, world, "train", self.operators, operations)] = None
        self.pool = list(pool)

    @property
    def attempts(self) -> dict[str, str]:  # contexts made of a completion: "own" or "sibling"
        return {kind: row.attempt for kind, row in CONTEXTS.items() if row.attempt}

    def draw(self, split: str, rng: random.Random) -> Example:
        """One example of a split; `train` draws from the pool if there is one."""
        if split == "train" and self.pool:
            problem = rng.choice(self.pool)
        else:
            problem = draw_split(rng, self.world, split, self.operators, self.operations)
        return Example(problem, rng.choice(self.rules) if self.rules else 0)

    def evaluation(self, split: str, count: int, rng: random.Random) -> list[Example]:
        """`count` examples of a split; a pool is gone through in order, as often as needed."""
        drawn, pool = [self.draw(split, rng) for _ in range(count)], self.pool
        if split == "train" and pool:
            return [Example(pool[i % len(pool)], e.rule) for i, e in enumerate(drawn)]
        return drawn

    def context(self, example: Example, kind: str, rng: random.Random, attempt: str = "") -> str:
        return privileged_context(example.problem, kind, rng, attempt=attempt, rule=example.rule)

    def prompt_ids(self, example: Example, context: str = "") -> list[int]:
        """What the student sees, or, with a context, the teacher."""
        return encode(context + example.prompt)

    def reference(self, example: Example, rng: random.Random) -> str:
        """A completion by a reliable author without context: what `data` stands for."""
        world = replace(self.world, persona_rate=0.0)
        return write_completion(example.problem, world, rng, rule=example.rule)

    def reward(self, text: str, example: Example) -> float:
        """1.0 if the final answer of the completion is exactly right, else 0.0."""
        return float(final_answer(text) == example.answer)

    def measures(self, text: str, example: Example) -> dict[str, float]:
        """What one completion did; a mean over completions is what the names say."""
        return {
            "accuracy_frac": self.reward(text, example),
            "markers_per_completion": float(text.count(MARKER)),
            "direct_frac": float(text.startswith(ANSWER)),  # begins with the answer, no steps
            "remark_frac": float(REMARK in text),  # the closing remark of the unreliable author
        }

# 6. Settings of the toy ---------------------------------------------------------------------------
def parse_world(text: str) -> World:
    """The world with fields changed, such as `persona_rate=0,certainty.answer=0`, or ValueError."""
    values = asdict(World())
    words = {"true": True, "false": False, "1": True, "0": False}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        table, _, key = name.strip().partition(".")
        target, key = (values.get(table), key) if key else (values, table)
        if not isinstance(target, dict) or isinstance(target.get(key, {}), dict):
            known = ", ".join(n + ".<context>" * isinstance(v, dict) for n, v in values.items())
            raise ValueError(f"--world: {name!r}; allowed: {known}")
        kind, value = type(target[key]), value.strip()
        try:
            target[key] = words[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            allowed = "true or false" if kind is bool else kind.__name__
            raise ValueError(f"--world: {name} = {value!r}; allowed: {allowed}") from None
    return World(**values)

def parse_rules(text: str) -> tuple[int, ...]:
    """The numbers to add to the answer: `2,7` gives (2, 7). Raises ValueError."""
    if not re.fullmatch("([1-9]?,)*[1-9]?", text):
        raise ValueError(f"--rules: {text!r}; allowed: digits 1-9 joined by commas, such as 2,7")
    return tuple(map(int, text.replace(",", "")))

@dataclass(frozen=True)
class Toy:
    """The settings of the toy, each a flag. Raises ValueError for what does not fit the world."""

    task: str = "arithmetic"  # a row of TASKS
    world: str = ""  # fields of the world to change, such as persona_rate=0,certainty.answer=0
    train_operators: str = ""  # operators in post-training; empty: + and -, so that * is new
    train_operations: str = ""  # operations of a problem there, such as 3 or 1-4; empty: 1-4
    rules: str = ""  # numbers to add to the answer, such as 3 or 2,7 (drawn per problem)
    pretrain_steps: int = 2400  # steps of the base model

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"--task: {self.task!r}; allowed: {', '.join(TASKS)}")
        world = parse_world(self.world)
        parse_rules(self.rules)
        if not set(self.train_operators) <= set(world.operators):
            allowed = f"some of {' '.join(world.operators)}"
            raise ValueError(f"--train_operators: {self.train_operators!r}; allowed: {allowed}")
        training_operations(world, self.train_operations)
        if self.pretrain_steps < 1:
            raise ValueError(f"--pretrain_steps: {self.pretrain_steps}; allowed: 1 or more")

    def make_task(self, train_problems: int, seed: int):
        """The task with a training pool of this size, 0: endless. Raises if there are too few."""
        return TASKS[self.task](self, train_problems, seed)

def arithmetic(toy: Toy, train_problems: int, seed: int) -> ToyTask:
    """The problems of this file."""
    return ToyTask(
        parse_world(toy.world), pool_size=train_problems, operators=toy.train_operators,
        operations=toy.train_operations, rules=parse_rules(toy.rules), seed=seed,
    )

# Another task is a class with the methods of `minisd.Task`, in the tokens above, and a row here.
TASKS = {"arithmetic": arithmetic}

def main() -> None:
    rng, world = random.Random(0), World()
    for kind in CONTEXTS:
        print(f"\n{kind}")
        for _ in range(5):
            print("    " + "".join(draw_document(rng, world, kind)))

if __name__ == "__main__":
    main()
