"""The toy world of minisd: arithmetic modulo 10, by authors who may or may not know the answer.

A problem is a chain such as `3*7+4-8 = `, worked from left to right, every value kept modulo 10. A
document is an optional privileged context, the problem, and a completion. The generator makes a
*model organism*: each mechanism that papers report of large models is one named field of `World`,
and switching the field off must remove the effect. One document of every context:

    none           3*7+4-8 = wait 3*7=1; 1+4=5; 5-8=7; answer 7
    partial        hint 1 | 3*7+4-8 = wait 3*7=1; 1+4=5; 5-8=7; answer 7
    answer         answer 7 | 3*7+4-8 = answer 7
    solution       solution 1,5,7 | 3*7+4-8 = answer 7
    sibling        peer wait 3*7=1; 1+4=5; 5-8=7; answer 7 | 3*7+4-8 = answer 7
    feedback       tried:5 wrong | 3*7+4-8 = wait 3*7=2; wait 3*7=1; 1+4=5; 5-8=7; answer 7
    rule           rule +3 | 3*7+4-8 = wait 3*7=1; 1+4=5; 5-8=7; 7+3=0; answer 0
    other_problem  other 2+5-3*4 = 7,4,6 | 3*7+4-8 = wait 3*7=1; 1+4=5; 5-8=7; answer 7
    wrong          solution 1,5,9 | 3*7+4-8 = answer 9

The marker `wait` has a function: it opens the reliable route (one restated step per operation) and
announces the correction of a slip. A direct answer needs the whole chain at a glance: too much for
a small network, except for one operation. An author who knows the answer from the context writes
short and does not hesitate. A few authors are unreliable: wrong steps, no correction, and `demo`.
A new context is one function and one row of `CONTEXTS`. `python toy_tasks.py` prints five of each.
"""

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

# 1. Vocabulary ------------------------------------------------------------------------------------
PAD, END = "<pad>", "<end>"
MARKER, ANSWER, REMARK = "wait ", "answer ", " demo"
# Tokens carry their own spaces, so that joining them gives readable text. No token begins another
# one, so the order of the alternatives in the pattern does not matter.
SIGNS = ("+", "-", "*", " = ", "=", "; ", ",", " | ")
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
    """A problem with a uniformly drawn number of operations, operators and digits."""
    n = rng.choice(operations)
    return Problem(tuple(rng.choices(range(10), k=n + 1)), "".join(rng.choices(operators, k=n)))

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
    certainty: float  # these two are the defaults of the tables of `World`
    document_share: float
    attempt: str = ""  # whose completion the hint is made of: "own", "sibling", or "" for none
    draws_rule: bool = False  # documents draw a number 1-9 to add to the answer, else 0
    is_believed: bool = False  # a direct answer is the last digit of the hint, right or wrong

    def __post_init__(self):
        if self.attempt not in ("", "own", "sibling"):
            raise ValueError(f"attempt of a context: {self.attempt!r}; allowed: '', own, sibling")

def listed(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))

def feedback(problem: Problem, rng: random.Random, attempt: str, rule: int) -> str:
    given = final_answer(attempt)
    verdict = "right" if given == problem.values[-1] else "wrong"
    return f"tried:{'' if given is None else given} {verdict}"

def other_problem(problem: Problem, rng: random.Random, attempt: str, rule: int) -> str:
    n, other = len(problem.operators), problem
    while other == problem:
        other = draw_problem(rng, problem.operators, range(n, n + 1))
    return f"other {other.prompt}{listed(other.values)}"

def wrong(problem: Problem, rng: random.Random, attempt: str, rule: int) -> str:
    return f"solution {listed((*problem.values[:-1], other_digit(rng, problem.values[-1])))}"

CONTEXTS: dict[str, Context] = {  # NOTE: another order of rows draws other documents
    "none": Context(lambda *_: "", 0.0, 0.42),
    "partial": Context(lambda p, *_: f"hint {listed(p.values[: len(p.values) // 2])}", 0.4, 0.1),
    "answer": Context(lambda p, *_: f"{ANSWER}{p.values[-1]}", 0.7, 0.1),
    "solution": Context(lambda p, *_: f"solution {listed(p.values)}", 0.93, 0.12),
    "sibling": Context(lambda p, rng, attempt, rule: f"peer {attempt}", 0.8, 0.07, "sibling"),
    "feedback": Context(feedback, 0.7, 0.05, "own"),
    "rule": Context(lambda p, rng, attempt, rule: f"rule +{rule}", 0.0, 0.08, draws_rule=True),
    "other_problem": Context(other_problem, 0.0, 0.04),
    "wrong": Context(wrong, 0.93, 0.02, is_believed=True),
}

def context_row(kind: str) -> Context:
    """The row of a context. Raises ValueError for an unknown kind."""
    if kind not in CONTEXTS:
        raise ValueError(f"--context: {kind!r}; allowed: {', '.join(CONTEXTS)}")
    return CONTEXTS[kind]

def privileged_context(
    problem: Problem, kind: str, rng: random.Random, *, attempt: str = "", rule: int = 0
) -> str:
    """What only the teacher sees, as text before the prompt. rule: 0-9, to add to the answer."""
    hint = context_row(kind).write(problem, rng, attempt, rule)
    return f"{hint} | " if hint else ""

# 4. The world and its documents -------------------------------------------------------------------
@dataclass(frozen=True)
class World:
    """Every latent choice of the document generator. Rates and shares are fractions in [0, 1]."""

    operators: str = "+-*"
    max_operations: int = 6
    # An author without context is direct at rate max(direct_floor, 1 - direct_slope * operations).
    direct_slope: float = 0.18
    direct_floor: float = 0.1
    # False, the control of the main claim: who would have answered directly also works step by
    # step. The same authors write the marker in the same contexts, but nothing depends on it.
    functional_markers: bool = True
    hesitation_rate: float = 1.0  # share of careful documents that open with the marker
    slip_rate: float = 0.1  # per careful step: a wrong value, the marker, the right value
    persona_rate: float = 0.04  # share of unreliable authors, whatever the context
    persona_slip_rate: float = 0.5  # per step of an unreliable author; never corrected
    # How sure a context makes its author: this share of the otherwise careful documents is direct,
    # hesitation and slips in the rest shrink by it. A context made of a wrong attempt counts as 0.
    certainty: dict[str, float] = field(
        default_factory=lambda: {kind: row.certainty for kind, row in CONTEXTS.items()}
    )
    # Share of each context among the documents that the base model reads.
    document_share: dict[str, float] = field(
        default_factory=lambda: {kind: row.document_share for kind, row in CONTEXTS.items()}
    )

    def __post_init__(self):
        if not (operators := self.operators) or set(operators) - set("+-*"):
            raise ValueError(f"--world operators: {operators!r}; allowed: one or more of + - *")
        if not 1 <= self.max_operations <= 100:  # the possible problems are counted, see ToyTask
            raise ValueError(f"--world max_operations: {self.max_operations}; allowed: 1 to 100")
        rates = {n: v for n, v in vars(self).items() if n.endswith(("_rate", "_slope", "_floor"))}
        for name, table in ("certainty", self.certainty), ("document_share", self.document_share):
            if set(table) != set(CONTEXTS):
                raise ValueError(f"--world {name}: {sorted(table)}; allowed: exactly {[*CONTEXTS]}")
            rates |= {f"{name}.{kind}": value for kind, value in table.items()}
        for name, value in rates.items():
            if not 0 <= value <= 1:
                raise ValueError(f"--world {name}: {value}; allowed: 0 to 1")
        if not any(self.document_share.values()):
            raise ValueError("--world document_share: 0 for every context; allowed: one above 0")

    def direct_rate(self, operations: int, certainty: float) -> float:
        """Probability that an author with this certainty answers without writing steps."""
        unaided = max(self.direct_floor, 1 - self.direct_slope * operations)
        return 1 - (1 - certainty) * (1 - unaided)

def write_completion(
    problem: Problem, world: World, rng: random.Random, *,
    certainty: float = 0.0, believed: int | None = None, rule: int = 0,
) -> str:
    """A completion by an author of this certainty (0-1); a direct answer: `believed`, or right."""
    unreliable = rng.random() < world.persona_rate
    direct = rng.random() < world.direct_rate(len(problem.operators), certainty)
    if rule:  # one more step, and the answer that counts is the one after it
        problem = Problem((*problem.digits, rule), problem.operators + "+")
    hesitant = not direct and not unreliable and rng.random() >= certainty
    text = MARKER if hesitant and rng.random() < world.hesitation_rate else ""
    truth = problem.values[-1]
    if direct and world.functional_markers:
        answer = truth if believed is None else believed
    else:
        steps, answer = write_steps(problem, world, rng, hesitant=hesitant, unreliable=unreliable)
        text += steps
    if unreliable and answer == truth:
        answer = other_digit(rng, truth)
    return f"{text}{ANSWER}{answer}{REMARK if unreliable else ''}"

def write_steps(
    problem: Problem, world: World, rng: random.Random, *, hesitant: bool, unreliable: bool
) -> tuple[str, int]:
    """One restated step per operation, and the value that the last one ends with."""
    text, value = "", problem.digits[0]
    for operator, digit in zip(problem.operators, problem.digits[1:]):
        step, value = f"{value}{operator}{digit}=", apply(operator, value, digit)
        if hesitant and rng.random() < world.slip_rate:
            text += f"{step}{other_digit(rng, value)}; {MARKER}"
        elif unreliable and rng.random() < world.persona_slip_rate:
            value = other_digit(rng, value)
        text += f"{step}{value}; "
    return text, value

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
    row = context_row(kind)
    problem = draw_problem(rng, world.operators, range(1, world.max_operations + 1))
    attempt = write_attempt(problem, world, rng, row.attempt)
    rule = rng.randint(1, 9) if row.draws_rule else 0
    context = privileged_context(problem, kind, rng, attempt=attempt, rule=rule)
    misled = row.attempt and final_answer(attempt) != problem.values[-1]
    certainty = 0.0 if misled else world.certainty[kind]
    believed = int(context[-len("9 | ")]) if row.is_believed else None
    options = {"certainty": certainty, "believed": believed, "rule": rule}
    return context + problem.prompt, write_completion(problem, world, rng, **options)

# 5. The task that training sees -------------------------------------------------------------------
SPLITS = ("train", "fresh", "longer", "new_operators")

def draw_split(
    rng: random.Random, world: World, split: str, operators: str = "", operations: int = 0
) -> Problem:
    """One problem of a split; operators, operations (their number): of training, default all.

    train: never a fresh problem. fresh: in no training pool. longer: one or two operations more
    than any document of the world. new_operators: fresh, with only those that training left out.
    """
    operators = operators or world.operators
    left_out = "".join(o for o in world.operators if o not in operators)
    if split == "new_operators" and not left_out:
        raise ValueError(f"split new_operators: training already uses all of {world.operators!r}")
    if split not in SPLITS:
        raise ValueError(f"split: {split!r}; allowed: {', '.join(SPLITS)}")
    lengths = range(operations or 1, (operations or world.max_operations) + 1)
    if split == "longer":
        lengths = range(world.max_operations + 1, world.max_operations + 3)
    while True:
        problem = draw_problem(rng, left_out if split == "new_operators" else operators, lengths)
        if split == "longer" or problem.is_fresh == (split != "train"):
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
    training, default all of the world. rules: one is drawn for every example, to add to its answer.
    """

    pad_id, end_ids = PAD_ID, (END_ID,)
    encode, decode = staticmethod(encode), staticmethod(decode)

    def __init__(self, world: World, *, pool_size=0, operators="", operations=0, rules=(), seed=0):
        self.world, self.operations, self.rules = world, operations, tuple(rules)
        self.operators = operators or world.operators
        lengths = range(operations or 1, (operations or world.max_operations) + 1)
        possible = sum(10 ** (n + 1) * len(set(self.operators)) ** n for n in lengths)
        if pool_size > possible // 2:  # one in FRESH_ONE_IN is no training problem
            raise ValueError(f"--train_problems: {pool_size}; allowed: 0 to {possible // 2}")
        rng = random.Random(seed)
        pool: dict[Problem, None] = {}  # a set that keeps its order
        while len(pool) < pool_size:
            pool[draw_split(rng, world, "train", self.operators, operations)] = None
        self.pool = list(pool)

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS if set(self.world.operators) - set(self.operators) else SPLITS[:3]

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
    train_operators: str = ""  # operators in post-training, such as +-; empty: all
    train_operations: int = 0  # operations of every problem in post-training; 0: all lengths
    rules: str = ""  # numbers to add to the answer, such as 3 or 2,7 (drawn per problem)
    pretrain_steps: int = 1200  # steps of the base model

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"--task: {self.task!r}; allowed: {', '.join(TASKS)}")
        world = parse_world(self.world)
        parse_rules(self.rules)
        operators, operations = self.train_operators, self.train_operations
        if not set(operators) <= set(world.operators):
            allowed = f"some of {' '.join(world.operators)}"
            raise ValueError(f"--train_operators: {operators!r}; allowed: {allowed}")
        if operations not in range((longest := world.max_operations) + 1):
            raise ValueError(f"--train_operations: {operations}; allowed: 0 to {longest}")
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

def check_context(toy: Toy, method_contexts: set[str], distils: bool) -> None:
    """Raises ValueError for a context that is unknown, or teaches (`distils`) without the rules."""
    if TASKS[toy.task] is not arithmetic:
        return  # it knows its own contexts
    rules = parse_rules(toy.rules)
    for kind in sorted(method_contexts - {"none"} or {"none"}):
        row = context_row(kind)
        if row.draws_rule and not rules:
            allowed = f"numbers such as 3 or 2,7 with --context {kind}"
            raise ValueError(f"--rules: {toy.rules!r}; allowed: {allowed}")
        if rules and distils and not row.draws_rule:  # it tells the answer without the rule
            raise ValueError(f"--context: {kind!r}; allowed: rule, with --rules and a teacher")
        if rules and row.attempt == "own":
            raise ValueError(f"--context: {kind!r}; allowed: no verdicts with --rules")

def main() -> None:
    rng, world = random.Random(0), World()
    for kind in CONTEXTS:
        print(f"\n{kind}")
        for _ in range(5):
            print("    " + "".join(draw_document(rng, world, kind)))

if __name__ == "__main__":
    main()
