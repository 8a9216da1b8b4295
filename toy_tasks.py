"""The toy world of minisd: arithmetic modulo 10, by authors who may or may not know the answer.

A problem is a chain such as `3*7+4-8 = `, worked from left to right, every value kept modulo 10. A
document is an optional privileged context, the problem, and a completion. The generator makes a
*model organism*: each mechanism that papers report of large models is one named field of `World`,
and switching the field off must remove the effect.

    context        what the teacher sees before   the problem    a completion typical after it
    none                                          3*7+4-8 =      wait 3*7=1; 1+4=5; 5-8=7; answer 7
    answer         answer 7 |                     3*7+4-8 =      answer 7
    partial        hint 1 |                       3*7+4-8 =      wait 3*7=1; 1+4=5; 5-8=7; answer 7
    solution       solution 1,5,7 |               3*7+4-8 =      answer 7
    sibling        peer 3*7=1; ...; answer 7 |    3*7+4-8 =      answer 7
    feedback       tried:5 wrong |                3*7+4-8 =      wait 3*7=1; 1+4=5; 5-8=7; answer 7
    rule           rule +3 |                      3*7+4-8 =      wait 3*7=1; ...; 7+3=0; answer 0
    other_problem  other 2+5-3 = 7,4 |            3*7+4-8 =      wait 3*7=1; 1+4=5; 5-8=7; answer 7
    wrong          solution 1,5,9 |               3*7+4-8 =      answer 9

The marker `wait` has a function: it opens the reliable route (one restated step per operation) and
announces the correction of a slip. A direct answer needs the whole chain at a glance, which a small
network cannot do for more than one operation. An author who knows the answer from the context
writes short and does not hesitate. A few authors are unreliable: wrong steps, no correction, and
the closing remark `demo`.

    1 vocabulary   2 the world and its problems   3 privileged contexts and documents
    4 reward and behaviour   5 the task that training sees   6 text datasets, the same task on them

`python toy_tasks.py` prints five documents of every kind.
"""

import dataclasses
import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

# 1. Vocabulary ------------------------------------------------------------------------------------

PAD, END = "<pad>", "<end>"
MARKER, ANSWER, REMARK = "wait ", "answer ", " demo"
# Tokens carry their own spaces, so that joining them gives readable text.
VOCABULARY = (
    *(PAD, END, *"0123456789", *"+-*", " = ", "=", "; ", ",", " | "),
    *(
        MARKER,
        ANSWER,
        REMARK,
        "hint ",
        "solution ",
        "peer ",
        "tried:",
        "rule ",
        "other ",
        " right",
        " wrong",
    ),
)
PAD_ID, END_ID = VOCABULARY.index(PAD), VOCABULARY.index(END)
TOKEN_ID = {token: i for i, token in enumerate(VOCABULARY)}
# No token begins another one, so the order of the alternatives does not matter.
TOKEN_PATTERN = re.compile("|".join(map(re.escape, VOCABULARY)))

CONTEXTS = (
    "none",
    "answer",
    "partial",
    "solution",
    "sibling",
    "feedback",
    "rule",
    "other_problem",
    "wrong",
)
FRESH_ONE_IN = 5  # every fifth problem, by checksum of its text, is kept for the fresh split


def encode(text: str) -> list[int]:
    """Token ids of a text. Raises ValueError naming the first character that no token covers."""
    tokens = TOKEN_PATTERN.findall(text)
    if sum(map(len, tokens)) != len(text):
        bad = TOKEN_PATTERN.sub("", text)[0]
        raise ValueError(
            f"cannot encode {text!r}: no token for {bad!r}; the tokens are {VOCABULARY}"
        )
    return [TOKEN_ID[token] for token in tokens]


def decode(ids: list[int]) -> str:
    """Text of token ids; padding and the end token are left out."""
    return "".join(VOCABULARY[i] for i in ids if i not in (PAD_ID, END_ID))


# 2. The world and its problems --------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Every latent choice of the document generator. Rates and shares are fractions in [0, 1]."""

    operators: str = "+-*"
    max_operations: int = 6
    # Without context an author answers directly at rate
    # max(direct_floor, 1 - direct_slope * operations).
    direct_slope: float = 0.18
    direct_floor: float = 0.1
    # False: the author who would have answered directly also works step by step. The marker is
    # still written by the same authors in the same contexts, but nothing depends on it any more.
    # This is the control of the main claim.
    functional_markers: bool = True
    hesitation_rate: float = 1.0  # share of careful documents that open with the marker
    slip_rate: float = (
        0.1  # per step of a careful document: a wrong value, then the marker and the right one
    )
    persona_rate: float = 0.04  # share of unreliable authors, whatever the context
    persona_slip_rate: float = 0.5  # per step of an unreliable author; never corrected
    # How far a context makes its author sure of the answer: this share of the otherwise careful
    # documents is answered directly, and hesitation and slips in the rest shrink by it. A verdict
    # `wrong` leaves its author as unsure as no context.
    certainty: dict[str, float] = field(
        default_factory=lambda: {
            **{"none": 0.0, "partial": 0.4, "answer": 0.7, "solution": 0.93, "sibling": 0.8},
            **{"feedback": 0.7, "rule": 0.0, "other_problem": 0.0, "wrong": 0.93},
        }
    )
    # Share of each context among the documents that the base model reads.
    document_share: dict[str, float] = field(
        default_factory=lambda: {
            **{"none": 0.42, "partial": 0.1, "answer": 0.1, "solution": 0.12, "sibling": 0.07},
            **{"feedback": 0.05, "rule": 0.08, "other_problem": 0.04, "wrong": 0.02},
        }
    )

    def __post_init__(self):
        if not self.operators or set(self.operators) - set("+-*"):
            raise ValueError(f"world operators: {self.operators!r}; allowed: one or more of + - *")
        if not 1 <= self.max_operations <= 100:  # the possible problems are counted, see ToyTask
            raise ValueError(f"world max_operations: {self.max_operations}; allowed: 1 to 100")
        rates = {
            n: getattr(self, n) for n in vars(self) if n.endswith(("_rate", "_slope", "_floor"))
        }
        for table in ("certainty", "document_share"):
            if set(getattr(self, table)) != set(CONTEXTS):
                raise ValueError(
                    f"world {table}: {sorted(getattr(self, table))}; allowed: exactly {CONTEXTS}"
                )
            rates |= {f"{table}.{kind}": value for kind, value in getattr(self, table).items()}
        for name, value in rates.items():
            if not 0 <= value <= 1:
                raise ValueError(f"world {name}: {value}; allowed: 0 to 1")
        if not any(self.document_share.values()):
            raise ValueError("world document_share: 0 for every context; allowed: one above 0")

    def direct_rate(self, operations: int, certainty: float) -> float:
        """Probability that an author with this certainty answers without writing steps."""
        unaided = max(self.direct_floor, 1 - self.direct_slope * operations)
        return 1 - (1 - certainty) * (1 - unaided)


@dataclass(frozen=True)
class Problem:
    """A chain of operations on digits, worked from left to right modulo 10."""

    digits: tuple[int, ...]
    operators: str

    @cached_property
    def text(self) -> str:
        return str(self.digits[0]) + "".join(
            f"{o}{d}" for o, d in zip(self.operators, self.digits[1:])
        )

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


SPLITS = ("train", "fresh", "longer", "new_operators")


def draw_split(
    rng: random.Random, world: World, split: str, operators: str = "", operations: int = 0
) -> Problem:
    """One problem of a split. operators and operations (their number) are those of post-training;
    default: all of the world.

    train: never a fresh problem. fresh: same distribution, none of them in any training pool.
    longer: one or two more operations than any document of the world. new_operators: fresh, with
    only the operators that training left out.
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


# 3. Privileged contexts and documents -------------------------------------------------------------


def privileged_context(
    problem: Problem, kind: str, rng: random.Random, *, attempt: str = "", rule: int = 0
) -> str:
    """What only the teacher sees, as text that stands before the prompt.

    `attempt`: a completion of this problem; `sibling` shows it, `feedback` says whether its answer
    is right. `rule`: the number 0-9 to add to the answer. Raises ValueError for an unknown kind.
    """
    values = problem.values
    match kind:
        case "none":
            return ""
        case "answer":
            hint = f"{ANSWER}{values[-1]}"
        case "partial":
            hint = "hint " + ",".join(map(str, values[: len(values) // 2]))
        case "solution":
            hint = "solution " + ",".join(map(str, values))
        case "wrong":
            hint = "solution " + ",".join(map(str, (*values[:-1], other_digit(rng, values[-1]))))
        case "sibling":
            hint = f"peer {attempt}"
        case "feedback":
            given = final_answer(attempt)
            shown = "" if given is None else given
            hint = f"tried:{shown} right" if given == values[-1] else f"tried:{shown} wrong"
        case "rule":
            hint = f"rule +{rule}"
        case "other_problem":
            other = problem
            while other == problem:
                other = draw_problem(rng, problem.operators, range(len(values), len(values) + 1))
            hint = f"other {other.prompt}" + ",".join(map(str, other.values))
        case _:
            raise ValueError(f"context: {kind!r}; allowed: {', '.join(CONTEXTS)}")
    return hint + " | "


def other_digit(rng: random.Random, digit: int) -> int:
    """A digit drawn from the nine others."""
    return (digit + rng.randint(1, 9)) % 10


def write_completion(
    problem: Problem,
    world: World,
    rng: random.Random,
    *,
    certainty: float = 0.0,
    believed: int | None = None,
    rule: int = 0,
) -> str:
    """A completion by an author of this certainty (0-1).

    Who answers directly answers `believed` (default: the truth); `rule` is one more step, `+rule`.
    """
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


def draw_document(rng: random.Random, world: World, kind: str | None = None) -> tuple[str, str]:
    """(context + prompt, completion) of one document.

    `kind` of context as in CONTEXTS; default: drawn by `document_share`.
    """
    kind = kind or rng.choices(list(world.document_share), world.document_share.values())[0]
    problem = draw_problem(rng, world.operators, range(1, world.max_operations + 1))
    certainty, believed = world.certainty[kind], None
    attempt = ""
    if kind == "sibling":
        attempt = write_completion(problem, dataclasses.replace(world, persona_rate=0.0), rng)
    if kind == "feedback":
        right = rng.random() < 0.5
        attempt = f"{ANSWER}{problem.values[-1] if right else other_digit(rng, problem.values[-1])}"
        certainty *= right
    rule = rng.randint(1, 9) if kind == "rule" else 0
    context = privileged_context(problem, kind, rng, attempt=attempt, rule=rule)
    if kind == "wrong":
        believed = int(
            context[-len("9 | ")]
        )  # its author cannot know better than the last value shown
    completion = write_completion(
        problem, world, rng, certainty=certainty, believed=believed, rule=rule
    )
    return context + problem.prompt, completion


# 4. Reward and behaviour --------------------------------------------------------------------------


def final_answer(completion: str) -> int | None:
    """The digit after the last `answer `, or None if none or more than one follows."""
    found = re.findall(rf"{ANSWER}(\d*)", completion)
    return int(found[-1]) if found and len(found[-1]) == 1 else None


@dataclass(frozen=True)
class Grade:
    """What one completion did; `reward` is 1.0 if its final answer is exactly right, else 0.0."""

    reward: float
    markers: int  # epistemic markers
    direct: bool  # begins with the answer, no steps
    remark: bool  # has the closing remark of the unreliable author


def grade(completion: str, answer: int) -> Grade:
    """Grade of a completion's text against the expected digit."""
    return Grade(
        reward=float(final_answer(completion) == answer),
        markers=completion.count(MARKER),
        direct=completion.startswith(ANSWER),
        remark=REMARK in completion,
    )


STEP_PATTERN = re.compile(rf"({MARKER})?(\d[+*-]\d=\d)")


def right_steps(problem: Problem) -> list[str]:
    """The steps of a faultless completion, such as `3*7=1`: one token a character."""
    lefts = (problem.digits[0], *problem.values)
    parts = zip(lefts, problem.operators, problem.digits[1:], problem.values)
    return [f"{left}{operator}{digit}={value}" for left, operator, digit, value in parts]


def first_wrong_step(problem: Problem, completion: str) -> int | None:
    """Index in `encode(completion)` of the first wrong token of an uncorrected step, or None.

    The restated steps must be those of the problem in their order; wrong may be the result, an
    operand, the operator, or a step too many. A wrong step is corrected if the next one stands
    behind the marker and is right: until then further attempts behind the marker may be wrong as
    well. A step that comes after it without the marker, or the end, makes it an error. The marker
    may also repeat the last right step. The answer is no step, so a direct completion has none.

    >>> p = Problem.parse("3*7+4")
    >>> first_wrong_step(p, "3*7=1; 1+4=6; wait 1+4=5; answer 5")
    >>> first_wrong_step(p, "3*7=8; 8+4=2; answer 2")
    4
    """
    wanted, done, wrong = right_steps(problem), 0, None
    for found in STEP_PATTERN.finditer(completion):
        marker, step = found.groups()
        if wrong is not None and not marker:
            break  # the author went on from a wrong value
        right = wanted[done] if done < len(wanted) else " " * len(step)
        if step == right:
            done, wrong = done + 1, None
        elif wrong is None and not (marker and done and step == wanted[done - 1]):
            offset = [a == b for a, b in zip(step, right)].index(False)
            wrong = len(encode(completion[: found.start(2)])) + offset
    return wrong


def is_faultless(problem: Problem, completion: str) -> bool:
    """True if every step is restated right at the first go, and then the right answer."""
    parts = [*right_steps(problem), f"{ANSWER}{problem.values[-1]}"]
    return completion.removeprefix(MARKER) == "; ".join(parts)


def force_wrong_step(problem: Problem, completion: str, rng: random.Random) -> str:
    """A faultless completion with one result wrong and all that follows worked from it.

    The step is drawn uniformly; up to its result every token stays as it was.
    """
    steps, end = right_steps(problem), 0
    k = rng.randrange(len(steps))
    for step in steps[: k + 1]:
        end = completion.index(step, end) + len(step)
    wrong = other_digit(rng, problem.values[k])
    rest = Problem((wrong, *problem.digits[k + 2 :]), problem.operators[k + 1 :])
    text, value = write_steps(rest, World(), rng, hesitant=False, unreliable=False)
    return f"{completion[: end - 1]}{wrong}; {text}{ANSWER}{value}"


# 5. The task that training sees ------------------------------------------------------------------


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
    """Examples of every split with their prompts, contexts, references and grades.

    pool_size: number of different training problems (0: endless). operators, operations: those of
    training (default: all of the world). rules: one of these is drawn for every example and counts
    as part of the answer; empty: none.
    """

    pad_id, end_id, end_ids = PAD_ID, END_ID, (END_ID,)

    def __init__(self, world: World, *, pool_size=0, operators="", operations=0, rules=(), seed=0):
        self.world, self.operators, self.rules = world, operators or world.operators, tuple(rules)
        self.operations = operations
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
        held_out = set(self.world.operators) - set(self.operators)
        return ("train", "fresh", "longer", *(("new_operators",) if held_out else ()))

    def draw(self, split: str, rng: random.Random) -> Example:
        """One example of a split; `train` draws from the pool if there is one."""
        if split == "train" and self.pool:
            problem = rng.choice(self.pool)
        else:
            problem = draw_split(rng, self.world, split, self.operators, self.operations)
        return Example(problem, rng.choice(self.rules) if self.rules else 0)

    def evaluation(self, split: str, count: int, rng: random.Random) -> list[Example]:
        """`count` examples of a split; a pool is gone through in order, as often as needed."""
        examples = [self.draw(split, rng) for _ in range(count)]
        if split == "train" and self.pool:
            rules = [example.rule for example in examples]
            pool = (self.pool[i % len(self.pool)] for i in range(count))
            examples = [Example(problem, rule) for problem, rule in zip(pool, rules)]
        return examples

    def context(self, example: Example, kind: str, rng: random.Random, attempt: str = "") -> str:
        return privileged_context(example.problem, kind, rng, attempt=attempt, rule=example.rule)

    def prompt_ids(self, example: Example, context: str = "") -> list[int]:
        """What the student sees, or, with a context, the teacher."""
        return encode(context + example.prompt)

    def reference(self, example: Example, rng: random.Random) -> str:
        """A completion by a reliable author without context: what `data` stands for."""
        world = dataclasses.replace(self.world, persona_rate=0.0)
        return write_completion(example.problem, world, rng, rule=example.rule)

    def grade(self, completion: str, example: Example) -> Grade:
        return grade(completion, example.answer)

    def encode(self, text: str) -> list[int]:
        return encode(text)

    def decode(self, ids: list[int]) -> str:
        return decode(ids)


# 6. Text datasets ---------------------------------------------------------------------------------

# The one place where student's and teacher's prompts are worded. Both are this template and differ
# in {context} alone, which stands inside, where no chat template strips or reformats it.
PROMPT_TEMPLATE = (
    "{prompt}{context}\n\nReason step by step and put the final answer in \\boxed{{}}."
)
CONTEXT_TEMPLATES = {  # keys as in CONTEXTS
    "none": "",
    "answer": "\n\nThe correct final answer is {answer}.",
    "partial": "\n\nA correct solution begins like this:\n{solution}",
    "solution": "\n\nA correct solution:\n{solution}",
    "sibling": "\n\nAnother attempt at this problem:\n{attempt}",
    "feedback": "\n\nFeedback on an earlier attempt:\n{feedback}",
    "rule": "\n\nFollow this rule: {rule}",
    "other_problem": "\n\nAnother problem and its solution:\n{prompt}\n{solution}",
    "wrong": "\n\nThe correct final answer is {answer}.",
}
# The ten words that Kim et al., arXiv:2603.24472, count.
TEXT_MARKERS = (
    *("wait", "hmm", "perhaps", "maybe", "actually"),
    *("alternatively", "seems", "might", "likely", "check"),
)
MARKER_PATTERN = re.compile(rf"\b(?:{'|'.join(TEXT_MARKERS)})\b", re.IGNORECASE)
# A sign counts only where nothing stands before it that it could subtract from.
NUMBER_PATTERN = re.compile(r"(?<![\w.])-?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class TextExample:
    """A problem in words; what a dataset does not give is the empty string."""

    prompt: str
    answer: str
    solution: str = ""
    feedback: str = ""
    rule: str = ""


def read_jsonl(path: str | Path) -> list[TextExample]:
    """Examples from a file with one JSON object a line; blank lines and other fields are ignored.

    Fields: prompt, answer, and optionally solution, feedback, rule; or GSM8K's question and answer.
    Raises ValueError naming file and line: not UTF-8, not JSON, a field that is missing or no text.
    """
    examples = []
    # Not splitlines: JSON strings may hold the line separators of Unicode.
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        where = f"{path} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            record = json.loads(text) if text else None
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 at byte {error.start}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
            raise ValueError(f"{where}: not readable ({str(error)[:80]})") from None
        if text:
            examples.append(parse_record(record, where))
    if not examples:
        raise ValueError(f"{path}: no examples; allowed: one or more lines of JSON")
    return examples


def parse_record(record: Any, where: str) -> TextExample:
    """The example in a decoded line. Raises ValueError that begins with `where`."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {type(record).__name__}; allowed: a JSON object")
    gsm8k = "question" in record and "prompt" not in record
    renamed = record | {"prompt": record["question"]} if gsm8k else record
    values = {}
    for name in (f.name for f in dataclasses.fields(TextExample)):
        required = name in ("prompt", "answer")
        if required and name not in renamed:
            raise ValueError(f"{where}: lacks the field {name!r}")
        value = renamed.get(name)
        value = "" if value is None and not required else value
        if not isinstance(value, str):
            kind = type(value).__name__
            raise ValueError(f"{where}: field {name!r} is {kind}; allowed: text in quotes")
        if re.search("[\ud800-\udfff]", value):  # \ud83d without its other half
            raise ValueError(f"{where}: field {name!r} has half a character (a lone surrogate)")
        values[name] = value.strip()
    if gsm8k:
        solution, mark, answer = values["answer"].rpartition("####")
        if not mark:
            raise ValueError(f"{where}: field 'answer' of a question lacks '#### '")
        # <<48/2=24>> is a note to GSM8K's calculator that no model writes by itself.
        solution = re.sub(r"<<[^>]*>>", "", solution).strip()
        values |= {"solution": solution, "answer": answer.strip().replace(",", "")}
    for name in ("prompt", "answer"):
        if not values[name]:
            raise ValueError(f"{where}: field {name!r} is empty")
    return TextExample(**values)


def text_context(
    example: TextExample, kind: str, *, attempt: str = "", other: TextExample | None = None
) -> str:
    """What only the teacher sees, as text that stands behind the problem.

    `attempt`: a completion of this problem, for `sibling`. `other`: another example, whose problem
    and solution `other_problem` shows and whose answer `wrong` gives out as this one's.
    Raises ValueError for an unknown kind, and where the example lacks what the kind shows.
    """
    if kind not in CONTEXT_TEMPLATES:
        raise ValueError(f"context: {kind!r}; allowed: {', '.join(CONTEXT_TEMPLATES)}")
    if kind in ("other_problem", "wrong"):
        if other is None or other.answer == example.answer:
            raise ValueError(f"context {kind}: needs another example with another answer")
        example = other
    fields = dataclasses.asdict(example) | {"attempt": attempt}
    template = CONTEXT_TEMPLATES[kind]
    if empty := [name for name in fields if f"{{{name}}}" in template and not fields[name]]:
        raise ValueError(f"context {kind}: {example.prompt[:40]!r} has no {empty[0]}")
    if kind == "partial":
        words = re.findall(r"\s*\S+", fields["solution"])
        fields["solution"] = "".join(words[: len(words) // 2])
    return template.format(**fields)


def text_prompt(tokenizer: Any, example: TextExample, context: str = "") -> str:
    """The student's prompt as text, or the teacher's if a context is given; chat form if any."""
    text = PROMPT_TEMPLATE.format(prompt=example.prompt, context=context)
    if not tokenizer.chat_template:
        return text + "\n"
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a prompt; a chat template has written its own first token already."""
    return tokenizer.encode(text, add_special_tokens=not tokenizer.chat_template)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, `$1,234.50` as 1234.50, or None."""
    found = NUMBER_PATTERN.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(re.sub(r"[$,]", "", found[-1])) if found else None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last complete \boxed{...} of a text, or None."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end].strip()
    return None


def reward_last_number(completion: str, answer: str) -> float:
    """1.0 if the last number of the completion is the answer's. Raises if the answer has none."""
    expected = last_number(answer)
    if expected is None:
        raise ValueError(f"reward last_number: the answer {answer!r} has no number")
    return float(last_number(completion) == expected)


def reward_boxed(completion: str, answer: str) -> float:
    r"""1.0 if the last \boxed{} holds the answer: the same number, or the same text but spaces."""
    given = last_boxed(completion)
    if given is None:
        return 0.0
    plain = [re.sub(r"\\[!,;]|\s", "", x).strip("$").removesuffix(".") for x in (given, answer)]
    if all(NUMBER_PATTERN.fullmatch(x) for x in plain):
        return float(last_number(plain[0]) == last_number(plain[1]))
    return float(plain[0] == plain[1])


def reward_exact(completion: str, answer: str) -> float:
    """1.0 if the completion is the answer and nothing else, up to spaces around it."""
    return float(completion.strip() == answer.strip())


TEXT_REWARDS: dict[str, Callable[[str, str], float]] = {
    "last_number": reward_last_number,
    "boxed": reward_boxed,
    "exact": reward_exact,
}


def count_markers(text: str) -> int:
    """How often the words of TEXT_MARKERS occur: whole words, in upper or lower case."""
    return len(MARKER_PATTERN.findall(text))


class TextTask:
    """The interface of ToyTask on text examples and the tokenizer of a checkpoint.

    fresh: every problem that the checksum of its prompt keeps from training, wherever in the file
    it stands. train: the first pool_size of the others (0: all). Raises ValueError if a split is
    empty, or an answer is such that the reward can never be 1.

    end_ids: tokens that end a completion, beside the tokenizer's own (see `minisd.hf_end_ids`).
    """

    splits = ("train", "fresh")

    def __init__(
        self,
        examples: list[TextExample],
        tokenizer: Any,
        *,
        reward: str = "last_number",
        pool_size: int = 0,
        end_ids: tuple[int, ...] = (),
    ):
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: no eos_token; allowed: one that ends a completion")
        self.tokenizer, self.reward, self.end_id = tokenizer, reward, tokenizer.eos_token_id
        self.end_ids = tuple(dict.fromkeys((self.end_id, *end_ids)))
        self.pad_id = self.end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.pools: dict[str, list[TextExample]] = {"train": [], "fresh": []}
        for example in examples:
            # Spaces and capitals aside, so that no copy of a fresh problem is trained on.
            text = " ".join(example.prompt.casefold().split())
            fresh = zlib.crc32(text.encode()) % FRESH_ONE_IN == 0
            self.pools["fresh" if fresh else "train"].append(example)
        self.pools["train"] = self.pools["train"][: pool_size or None]
        for split, pool in self.pools.items():
            if not pool:
                raise ValueError(
                    f"split {split}: none of the {len(examples)} problems; allowed: 1 or more (one "
                    f"in {FRESH_ONE_IN}, by checksum, is kept for the fresh split)"
                )
            for example in pool:
                if self.grade(self.reference(example), example).reward < 1:
                    raise ValueError(
                        f"reward {reward}: can never be 1 for the answer {example.answer!r}"
                    )

    def draw(self, split: str, rng: random.Random) -> TextExample:
        """One example of a split."""
        return rng.choice(self.pools[split])

    def evaluation(self, split: str, count: int, rng: random.Random) -> list[TextExample]:
        """`count` examples of a split, in order, as often as needed."""
        pool = self.pools[split]
        return [pool[i % len(pool)] for i in range(count)]

    def context(
        self, example: TextExample, kind: str, rng: random.Random, attempt: str = ""
    ) -> str:
        """See `text_context`; another problem, where one is shown, is a training problem."""
        other = None
        if kind in ("other_problem", "wrong"):
            others = [e for e in self.pools["train"] if e.answer != example.answer]
            other = rng.choice(others) if others else None
        return text_context(example, kind, attempt=attempt, other=other)

    def prompt_ids(self, example: TextExample, context: str = "") -> list[int]:
        """What the student sees, or, with a context, the teacher; through the chat template."""
        return text_ids(self.tokenizer, text_prompt(self.tokenizer, example, context))

    def reference(self, example: TextExample, rng: random.Random | None = None) -> str:
        """The solution, if there is one, and the answer in a box; the bare answer for `exact`."""
        if self.reward == "exact":
            return example.answer
        return f"{example.solution}\n\n\\boxed{{{example.answer}}}".strip()

    def grade(self, completion: str, example: TextExample) -> Grade:
        """Reward, and markers as `count_markers` counts them.

        `direct` and `remark` are always False: what they mean is defined in the toy world alone.
        """
        reward = TEXT_REWARDS[self.reward](completion, example.answer)
        return Grade(reward, count_markers(completion), direct=False, remark=False)

    def encode(self, text: str) -> list[int]:
        """Token ids of a completion."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids; padding and all other special tokens are left out."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


Task = ToyTask | TextTask


def main() -> None:
    rng, world = random.Random(0), World()
    for kind in CONTEXTS:
        print(f"\n{kind}")
        for _ in range(5):
            prompt, completion = draw_document(rng, world, kind)
            print(f"    {prompt}{completion}")


if __name__ == "__main__":
    main()
