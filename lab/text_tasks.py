"""Problems in words from a JSONL file: the task that a real checkpoint is trained on.

    1 reading examples   2 contexts and prompts   3 markers   4 the task

A new context is one row of `CONTEXT_TEMPLATES`; rewards stand in lab/graders.py.
"""

import dataclasses
import itertools
import json
import random
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import data_checks, templates
from lab.graders import (  # noqa: F401 (the rewards are known by this name as well)
    TEXT_REWARDS,
    Cut,
    Unfinished,
    last_boxed,
    last_number,
    open_thought,
    read_completion,
    reward_boxed,
    reward_exact,
    reward_last_number,
)
from lab.templates import Chat
from minisd import Method, Row
from toy_tasks import FRESH_ONE_IN

# 1. Reading examples ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextExample:
    """A problem in words; what a dataset does not give is the empty string."""

    prompt: str
    answer: str
    solution: str = ""
    feedback: str = ""
    rule: str = ""
    where: str = field(default="", compare=False, repr=False)  # file and line, for messages


FIELDS = tuple(f.name for f in dataclasses.fields(TextExample) if f.compare)


def read_jsonl(path: str | Path) -> list[TextExample]:
    """Examples from a file with one JSON object a line; blank lines and other fields are ignored.

    Fields: prompt, answer, and optionally solution, feedback, rule; or GSM8K's question and answer.
    Raises ValueError naming file and line: not UTF-8, not JSON, a field that is missing or no text.
    Warns, with line numbers, of a key that stands twice and of a prompt with two answers.
    """
    records, examples = [], []
    # Not splitlines: JSON strings may hold the line separators of Unicode.
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        where = f"{path} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            record = json.loads(text, object_pairs_hook=data_checks.Pairs) if text else None
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 at byte {error.start}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
            raise ValueError(f"{where}: not readable ({str(error)[:80]})") from None
        if text:
            records.append((where, record))
            examples.append(parse_record(record, where))
    if not examples:
        raise ValueError(f"{path}: no examples; allowed: one or more lines of JSON")
    data_checks.warn_of_doubles(records)
    data_checks.warn_of_conflicts(examples)
    return examples


def parse_record(record: Any, where: str) -> TextExample:
    """The example in a decoded line. Raises ValueError that begins with `where`."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {type(record).__name__}; allowed: a JSON object")
    gsm8k = "question" in record and "prompt" not in record
    renamed = record | {"prompt": record["question"]} if gsm8k else record
    values = {}
    for name in FIELDS:
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
        values |= {"solution": solution, "answer": answer.strip()}
        # Thousands alone: the list 3,4 is not 34.
        values["answer"] = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", values["answer"])
    for name in ("prompt", "answer"):
        if not values[name]:
            raise ValueError(f"{where}: field {name!r} is empty")
    return TextExample(**values, where=where)


# 2. Contexts and prompts --------------------------------------------------------------------------

# The one place where student's and teacher's prompts are worded. Both are this template and differ
# in {context} alone, which stands inside, where no chat template strips or reformats it.
PROMPT_TEMPLATE = (
    "{prompt}{context}\n\nReason step by step and put the final answer in \\boxed{{}}."
)


@dataclass(frozen=True)
class TextContext:
    """A row of CONTEXT_TEMPLATES: text with the fields of an example, or {attempt}, in braces."""

    template: str
    attempt: str = ""  # whose completion {attempt} is: "own", "sibling", or "" for none
    of_other: bool = False  # the fields are those of another example, with another answer
    half: bool = False  # of the solution, the first half alone


CONTEXT_TEMPLATES: dict[str, TextContext] = {  # kinds as in toy_tasks.CONTEXTS
    "none": TextContext(""),
    "partial": TextContext("\n\nA correct solution begins like this:\n{solution}", half=True),
    "answer": TextContext("\n\nThe correct final answer is {answer}."),
    "solution": TextContext("\n\nA correct solution:\n{solution}"),
    "sibling": TextContext("\n\nAnother attempt at this problem:\n{attempt}", attempt="sibling"),
    # The data set's own words about some attempt, not a verdict on a completion of the student.
    "feedback": TextContext("\n\nFeedback on an earlier attempt:\n{feedback}"),
    "rule": TextContext("\n\nFollow this rule: {rule}"),
    "other_problem": TextContext(
        "\n\nAnother problem and its solution:\n{prompt}\n{solution}", of_other=True
    ),
    "wrong": TextContext("\n\nThe correct final answer is {answer}.", of_other=True),
}


def template_row(kind: str) -> TextContext:
    """The row of a context. Raises ValueError for an unknown kind."""
    if kind not in CONTEXT_TEMPLATES:
        raise ValueError(f"--context: {kind!r}; allowed: {', '.join(CONTEXT_TEMPLATES)}")
    return CONTEXT_TEMPLATES[kind]


def text_context(
    example: TextExample, kind: str, *, attempt: str = "", other: TextExample | None = None
) -> str:
    """What only the teacher sees, as text that stands behind the problem.

    attempt: a completion of this problem. other: another example, whose problem and solution
    `other_problem` shows and whose answer `wrong` gives out as this one's.
    Raises ValueError for an unknown kind, and where the example lacks what the kind shows.
    """
    row = template_row(kind)
    if row.of_other:
        if other is None or other.answer == example.answer:
            raise ValueError(f"context {kind}: needs another example with another answer")
        example = other
    fields = dataclasses.asdict(example) | {"attempt": attempt}
    if empty := [name for name in fields if f"{{{name}}}" in row.template and not fields[name]]:
        raise ValueError(f"context {kind}: {example.prompt[:40]!r} has no {empty[0]}")
    if row.half:
        words = re.findall(r"\s*\S+", fields["solution"])
        fields["solution"] = "".join(words[: len(words) // 2])
    return row.template.format(**fields)


def user_text(example: TextExample, context: str = "") -> str:
    """What the user says in the student's prompt, or, with a context, in the teacher's."""
    return PROMPT_TEMPLATE.format(prompt=example.prompt, context=context)


# 3. Markers ---------------------------------------------------------------------------------------

# The ten words that Kim et al., arXiv:2603.24472, count.
TEXT_MARKERS = (
    "wait", "hmm", "perhaps", "maybe", "actually",
    "alternatively", "seems", "might", "likely", "check",
)
MARKER_PATTERN = re.compile(rf"\b(?:{'|'.join(TEXT_MARKERS)})\b", re.IGNORECASE)


def count_markers(text: str) -> int:
    """How often the words of TEXT_MARKERS occur: whole words, in upper or lower case."""
    return len(MARKER_PATTERN.findall(text))


# 4. The task --------------------------------------------------------------------------------------


class TextTask:
    """A `minisd.Task` of text examples, in the tokens of a checkpoint.

    fresh: every problem that the checksum of its prompt keeps from training, wherever in the file
    it stands. train: the first pool_size of the others (0: all). Raises ValueError if a split is
    empty, or an answer is such that the reward can never be 1.
    chat: how its prompts are rendered, and so which token ends a completion. end_ids: tokens that
    end one as well, beside the tokenizer's own.
    """

    splits = ("train", "fresh")
    content = staticmethod(user_text)

    def __init__(
        self, examples: list[TextExample], tokenizer: Any, *,
        reward: str = "last_number", pool_size: int = 0, end_ids: tuple[int, ...] = (),
        chat: Chat | None = None,
    ):
        if reward not in TEXT_REWARDS:
            raise ValueError(f"--reward: {reward!r}; allowed: {', '.join(TEXT_REWARDS)}")
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: no eos_token; allowed: one that ends a completion")
        self.tokenizer, self.reward_name, end_id = tokenizer, reward, tokenizer.eos_token_id
        self.chat, known = chat or Chat(tokenizer), (end_id, *end_ids)
        self.tail, self.turn_end = self.chat.turn_end(known)
        first = [self.chat.id_of(self.turn_end)] if self.turn_end else []
        self.end_ids = tuple(dict.fromkeys((*first, *known)))
        self.pad_id = end_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # A template may begin the thought; what closes it is then the completion's to write.
        bare = self.chat.text(self.content(examples[0])) if examples else ""
        self.thought_end = open_thought(bare)
        self.pools: dict[str, list[TextExample]] = {"train": [], "fresh": []}
        for example in examples:
            # Differences that no reader sees aside: no copy of a fresh problem is trained on.
            text = data_checks.split_key(example.prompt)
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
                self.require_gradable(example)

    def require_gradable(self, example: TextExample) -> None:
        """Raises ValueError, naming the line, if the reward can never be 1 for an example."""
        where = f"{example.where}: " if example.where else ""
        try:
            best = self.reward(self.reference(example), example)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None
        if best < 1:
            words = f"reward {self.reward_name}: can never be 1 for the answer {example.answer!r}"
            raise ValueError(where + words)

    @property
    def attempts(self) -> dict[str, str]:
        """Contexts made of a completion: of which one, "own" or "sibling"."""
        return {kind: row.attempt for kind, row in CONTEXT_TEMPLATES.items() if row.attempt}

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
        if template_row(kind).of_other:
            pool = self.pools["train"]
            # Drawn until one is wrong for the reward: 18.0 may be right where 18 is. Where nearly
            # all are right, the first that is not.
            drawn = itertools.chain((rng.choice(pool) for _ in range(100)), pool)
            other = next((e for e in drawn if not self.same_answer(e, example)), None)
        return text_context(example, kind, attempt=attempt, other=other)

    def same_answer(self, other: TextExample, example: TextExample) -> bool:
        """Whether another example's answer earns the reward of this one."""
        same = other.answer == example.answer
        return same or self.reward(self.final_answer(other), example) == 1

    def prompt_ids(self, example: TextExample, context: str = "") -> list[int]:
        """What the student sees, or, with a context, the teacher; through the chat template."""
        return self.chat.ids(self.content(example, context), "teacher" if context else "student")

    def reference(self, example: TextExample, rng: random.Random | None = None) -> str:
        """The solution, if there is one, and the answer in a box; the bare answer for `exact`."""
        solution = "" if self.reward_name == "exact" else f"{example.solution}\n\n"
        return f"{self.thought_end}\n\n{solution}{self.final_answer(example)}".strip()

    def final_answer(self, example: TextExample) -> str:
        """The shortest completion that is right."""
        return example.answer if self.reward_name == "exact" else f"\\boxed{{{example.answer}}}"

    def reward(self, text: str, example: TextExample) -> float:
        """1.0 or 0.0, by the row of TEXT_REWARDS; 0.0 for what `decode` has found to be cut."""
        return TEXT_REWARDS[self.reward_name](text, example.answer)

    def measures(self, text: str, example: TextExample) -> dict[str, float]:
        """What one completion did; a mean over completions is what the names say."""
        return {
            "accuracy_frac": self.reward(text, example),
            "markers_per_completion": float(count_markers(text)),
            "cut_frac": float(isinstance(text, Cut)),
        }

    def check_fit(self, kinds: list[str], max_new_tokens: int, context_window: int) -> None:
        """Raises ValueError if an example lacks what a context shows, or is too long with it."""
        data_checks.check_contexts(kinds, CONTEXT_TEMPLATES, self.pools, FIELDS)
        rng, attempt_tokens = random.Random(0), max_new_tokens * bool(set(kinds) & {*self.attempts})
        for example in (e for pool in self.pools.values() for e in pool):
            contexts = ["", *(self.context(example, kind, rng, attempt=" ") for kind in kinds)]
            try:
                prompt = max(len(self.prompt_ids(example, context)) for context in contexts)
                self.encode(self.reference(example))
            except ValueError as error:
                where = f"--data {example.where}" if example.where else example.prompt[:40]
                raise ValueError(f"{where}: {error}") from None
            tokens = prompt + attempt_tokens + max_new_tokens
            if tokens > context_window:
                raise ValueError(
                    f"--max_new_tokens: {max_new_tokens} makes {tokens} tokens with the prompt "
                    f"{example.prompt[:40]!r}; allowed: {context_window}, its context window"
                )

    def prompt_checks(self, method: Method) -> list[templates.Check]:
        """Start-up checks of the prompts; see lab/templates.py."""
        return templates.prompt_checks(self, method)

    def cut_thoughts(self, rows: list[Row], kind: str, limit: int) -> str:
        """A warning if most completions are cut in the middle of a thought, or nothing."""
        return templates.cut_thoughts(self, rows, kind, limit)

    def encode(self, text: str) -> list[int]:
        """Token ids of a completion, up to the token that ends a turn."""
        return self.chat.encode(text + self.tail)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids; a `Cut` or `Unfinished` earns nothing. See `read_completion`."""
        return read_completion(self.tokenizer, ids, self.end_ids, self.thought_end)
