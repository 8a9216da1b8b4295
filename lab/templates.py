"""Prompts of real checkpoints: the chat template, what it is given, and where a turn of it ends.

    1 settings   2 the template of a tokenizer   3 checks before step 1   4 thinking
"""

import contextlib
import functools
import inspect
import json
import random
import re
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

from lab.data_checks import part_told, squeezed
from lab.graders import THOUGHTS, open_thought
from minisd import Method, Row

# 1. Settings --------------------------------------------------------------------------------------

DATE = "2025-01-01"  # any day, but the same one in every run


def read_arguments(flag: str, text: str) -> dict[str, Any]:
    """The keyword arguments in a flag; none in an empty one. Raises ValueError naming the flag."""

    def refuse(why: str) -> None:
        raise ValueError(why)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            refuse("a name twice")
        return found

    try:
        value = json.loads(text or "{}", object_pairs_hook=once, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # refuses half a character
        if isinstance(value, dict):
            return value
        why = f"{type(value).__name__}"
    except (ValueError, RecursionError) as error:  # brackets too deep
        why = " ".join(str(error).split())[:80]
    allowed = 'a JSON object such as {"enable_thinking": false}'
    raise ValueError(f"--{flag}: {text!r} ({why}); allowed: {allowed}")


def is_date(text: str) -> bool:
    """Whether it is a day in the form 2025-01-31."""
    with contextlib.suppress(ValueError):
        return date.fromisoformat(text).isoformat() == text
    return False


# 2. The template of a tokenizer -------------------------------------------------------------------

ASKED, ANSWERED = "Which fruit is it?", "Tangerine"  # what no template writes by itself
Messages = list[dict[str, str]]


def turns(*contents: str) -> Messages:
    """A conversation that a user begins."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


@contextlib.contextmanager
def today(day: str) -> Iterator[None]:
    """Meanwhile `strftime_now` of a chat template tells this day, at midnight."""
    from transformers.utils import chat_template_utils as theirs

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromisoformat(day)

    # NOTE: it is no argument of a template: transformers makes text of every function given.
    kept, theirs.datetime = theirs.datetime, Clock
    try:
        yield
    finally:
        theirs.datetime = kept


class Chat:
    """The prompts of a tokenizer: through its chat template, or plain text where it has none.

    template, teacher_template: JSON objects of keyword arguments for the template; an empty second
    one is the first. day: what a template that asks for today's date is told.
    Raises ValueError, one line, for arguments that no template takes, and for a template that does
    not work.
    """

    def __init__(
        self, tokenizer: Any, template: str = "", teacher_template: str = "", day: str = DATE
    ):
        self.tokenizer, self.day = tokenizer, day
        folder, kind = str(getattr(tokenizer, "name_or_path", "")), "tokenizer_config.json"
        if Path(folder, "chat_template.jinja").exists():
            kind = "chat_template.jinja"
        self.where = f"{folder}/{kind}: chat template" if folder else "chat template"
        self.template = self.default(tokenizer.chat_template)
        given = {"template": template, "teacher_template": teacher_template}
        for flag, text in given.items():
            self.check_arguments(flag, text)
        student = read_arguments("template", template)
        teacher = read_arguments("teacher_template", teacher_template or template)
        self.arguments = {"student": student, "teacher": teacher}
        for who in self.arguments:  # before the data, which would be blamed
            self.text(ASKED, who)

    def default(self, template: str | dict[str, str] | None) -> str | None:
        """The template itself, of several the default one."""
        if not isinstance(template, dict):
            return template
        if "default" not in template:
            names = ", ".join(map(repr, template)) or "an empty list"
            raise ValueError(f"{self.where}: {names}; allowed: one that is named 'default'")
        return template["default"]

    def check_arguments(self, flag: str, text: str) -> None:
        """Raises ValueError, naming the flag, for what the template never looks at."""
        names = read_arguments(flag, text)
        if text and self.template is None:
            raise ValueError(f"--{flag}: {text!r}; allowed: none, as there is no chat template")
        ours = {"messages", *inspect.signature(self.tokenizer.apply_chat_template).parameters}
        mentioned = set(re.findall(r"\w+", str(self.template)))
        for name in names:
            if name in ours or name not in mentioned:
                allowed = "what the chat template looks at, but for the messages"
                raise ValueError(f"--{flag}: {name!r}; allowed: {allowed}")

    def render(
        self, messages: Messages, who: str = "student", *, prompt: bool = True, **options: Any
    ) -> Any:
        """The conversation by the template. Raises ValueError, one line, naming the template."""
        shown = " ".join(str(self.template).split())[:40]
        try:
            with today(self.day):
                made = self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=prompt, **{"tokenize": False} | options,
                    **self.arguments[who])
        except Exception as error:  # code of the checkpoint, in effect: it may raise anything
            kind, words = type(error).__name__, " ".join(str(error).split())[:300]
            raise ValueError(f"{self.where} {shown!r}: {kind}: {words}") from error
        written = made if isinstance(made, str) else self.tokenizer.decode(made)
        if not written.strip():
            raise ValueError(f"{self.where} {shown!r}: renders nothing; allowed: a prompt")
        return made

    def text(self, content: str, who: str = "student") -> str:
        """The prompt of the student or the teacher, in which a user says `content`."""
        return content + "\n" if self.template is None else self.render(turns(content), who)

    def ids(self, content: str, who: str = "student") -> list[int]:
        """Token ids of that prompt; only the template and the tokenizer write control tokens."""
        if self.template is None:
            return self.encode(content + "\n", add_special_tokens=True)
        # A chat template has written its own first token already.
        how = {"tokenize": True, "return_dict": False, "sanitize_control_tokens": True}
        return self.render(turns(content), who, **how)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text in which a control token is nothing but its letters.

        Raises ValueError for a tokenizer that has no other ids for them.
        """
        split = functools.partial(self.tokenizer.encode, split_special_tokens=True)
        for token, i in self.control_tokens.items():
            if token in text and i in split(token, add_special_tokens=False):
                raise ValueError(
                    f"{token!r} is a control token; allowed: a text without it, as this tokenizer "
                    "cannot write its letters")
        return split(text, add_special_tokens=add_special_tokens)

    @functools.cached_property
    def control_tokens(self) -> dict[str, int]:
        """Text and id of the special tokens, but for the one that stands for unknown text."""
        tokens = self.tokenizer.added_tokens_decoder.items()
        unknown = self.tokenizer.unk_token
        return {t.content: i for i, t in tokens if t.special and t.content != unknown}

    def first_control(self, text: str) -> str | None:
        """The first special token in a text, or else the first added one."""
        tokens = self.tokenizer.added_tokens_decoder.values()
        added = [t.content for t in tokens if t.content.strip()]
        for names in (self.control_tokens, added):
            if found := [(text.index(name), -len(name), name) for name in names if name in text]:
                return min(found)[2]
        return None

    def turn_end(self, known: tuple[int, ...]) -> tuple[str, str | None]:
        """What the template writes behind an answer: text, and the token that ends the turn.

        A template may leave out the end of its last turn. Then it is what stands before the next
        turn, if that is one of the `known` ends. ("", None): it writes no such token.
        """
        if self.template is None:
            return "", None
        with contextlib.suppress(ValueError):  # for want of a turn of the assistant
            whole = self.render(turns(ASKED, ANSWERED), prompt=False)
            _, found, tail = whole.rpartition(ANSWERED)
            if found and (token := self.first_control(tail)):
                return tail[: tail.index(token)], token
            whole = self.render(turns(ASKED, ANSWERED, ASKED), prompt=False)
            tail = whole.rpartition(ANSWERED)[2].partition(ASKED)[0]
            if (token := self.first_control(tail)) and self.id_of(token) in known:
                return tail[: tail.index(token)], token
        return "", None

    def id_of(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

    def headers(self, content: str, who: str) -> tuple[str, str]:
        """What is written before an answer: in a prompt, and in a whole conversation.

        The second is empty if the template has no turn of the assistant.
        """
        prompt = self.text(content, who)
        with contextlib.suppress(ValueError):
            whole = self.render(turns(content, ANSWERED), who, prompt=False)
            return prompt, whole.rpartition(ANSWERED)[0]
        return prompt, ""


# 3. Checks before step 1 --------------------------------------------------------------------------

Check = tuple[str, bool | None, str]  # what, whether it passed (None: a warning), reading
PROBES = 16  # problems of each check
LONG = 16  # characters of a privileged text that no problem has by chance
REPEATS = 8  # a choice of two at random is the same so often in one of 128 runs


def prompt_checks(task: Any, method: Method) -> list[Check]:
    """Student's and teacher's prompts of a text task, compared as token ids.

    task: a `lab.text_tasks.TextTask`, with its `chat`.
    """
    chat, rng = task.chat, random.Random(0)
    examples = task.evaluation("train", min(PROBES, len(task.pools["train"])), rng)
    bare, shown = [task.prompt_ids(example) for example in examples], []
    for kind in sorted(set(method.contexts) - {"none"}):
        for example, plain in zip(examples, bare):
            context = task.context(example, kind, rng, task.reference(example))
            shown.append((example, context, plain, task.prompt_ids(example, context)))
    checks = [shown_check(task, examples, bare, shown)]
    if chat.template is not None:
        checks += template_checks(task, method, examples[0])
    ids = [*bare, *(prompt for *_, prompt in shown)]
    last = [last_of(chat.tokenizer, prompt) for prompt in ids]
    ends = [chat.tokenizer.decode(i) for i in last if i in task.end_ids]
    words = f"{len(ends)} of {len(ids)} end with {' or '.join(map(repr, sorted(set(ends))))}"
    checks.append(("no prompt ends with an end token", not ends, words))
    if shown and method.student_context == "none":
        checks += leak_checks(task, sorted(set(method.contexts) - {"none"}))
        checks.append(difference_check(task, shown))
    return checks


def last_of(tokenizer: Any, ids: list[int]) -> int | None:
    """The last token that is more than space."""
    return next((i for i in reversed(ids) if tokenizer.decode(i).strip()), None)


def shown_check(task: Any, examples: list, bare: list, shown: list) -> Check:
    """Whether problems and contexts reach the prompts: fails if none does, warns of changes."""
    what, chat = "prompts show what they are given", task.chat
    ignored = sum(plain == prompt for _, _, plain, prompt in shown)
    if ignored:
        return what, False, f"{ignored} of {len(shown)} teacher's prompts are the student's"
    if len({e.prompt for e in examples}) > 1 and len(set(map(tuple, bare))) == 1:
        return what, False, f"one prompt for {len(examples)} problems"
    pairs = [(e.prompt, chat.text(task.content(e))) for e in examples]
    pairs += [(c, chat.text(task.content(e, c), "teacher")) for e, c, *_ in shown]
    changed = sum(squeezed(given) not in squeezed(text) for given, text in pairs)
    words = f"the chat template changes the text in {changed} of {len(pairs)}"
    return what, None if changed else True, words


def generation_check(chat: Chat, content: str, who: str) -> Check:
    """Whether a prompt goes as far as the answer: fails if the template takes no such wish."""
    prompt, answered = chat.headers(content, who)
    missing = answered.removeprefix(prompt) if answered.startswith(prompt) else ""
    for tag in (tag for pair in THOUGHTS.items() for tag in pair):  # empty thoughts of an answer
        missing = missing.replace(tag, "")
    a, b = prompt.rstrip(), answered.rstrip()
    passed = None if missing.strip() or not (a.startswith(b) or b.startswith(a)) else True
    if missing.strip() and chat.render(turns(content), who, prompt=False) == prompt:
        passed = False
    words = f"before an answer stands {brief(answered)}, in the {who}'s prompt {brief(prompt)}"
    return "a generation prompt", passed, words


def template_checks(task: Any, method: Method, example: Any) -> list[Check]:
    """What one prompt tells of a chat template."""
    chat, content = task.chat, task.content(example)
    found = [generation_check(chat, content, who) for who in ("student", "teacher")]
    checks = [min(found, key=lambda check: (False, None, True).index(check[1]))]
    same = len({chat.text(content) for _ in range(REPEATS)}) == 1
    checks.append(("a template without chance", same, f"{REPEATS} renderings differ"))
    words = f"{chat.where} writes no control token behind an answer"
    ends = chat.tokenizer.convert_ids_to_tokens(task.end_ids[0])
    checks.append((f"turns end with {ends}", True if task.turn_end else None, words))
    if "strftime_now" in chat.template:
        checks.append((f"today is {chat.day}", True, "of the template"))
    if chat.arguments["student"]:
        plain = Chat(chat.tokenizer, day=chat.day).text(content)
        words = "the template renders the same without it"
        passed = True if plain != chat.text(content) else None
        checks.append(("--template changes the prompt", passed, words))
    if chat.arguments["student"] != chat.arguments["teacher"]:
        hidden = method.student_context == "none" and set(method.contexts) != {"none"}
        changes = chat.text(content) != chat.text(content, "teacher")
        words = "allowed: with --context, without --student_context, and another prompt"
        passed = False if not hidden else True if changes else None
        checks.append(("--teacher_template reaches the teacher alone", passed, words))
    return checks


def brief(text: str) -> str:
    """The end of a text, in quotes."""
    return repr(text[-40:])


def leak_checks(task: Any, kinds: list[str]) -> list[Check]:
    """Whether what a context tells stands in a problem already; every problem is looked at.

    As a whole it is refused, a part of it is warned of.
    """
    rng, leaky, partly = random.Random(0), [], []
    for i, example in enumerate(e for pool in task.pools.values() for e in pool):
        students = task.content(example)
        if i < PROBES:  # as the tokens have it, which takes longer
            students = task.tokenizer.decode(task.prompt_ids(example))
        told = [task.context(example, kind, rng, task.reference(example)) for kind in kinds]
        name, parts = example.where or repr(example.prompt[:40]), ()
        if any(text in squeezed(students) for context in told for text in privileged(context)):
            leaky.append(name)
        else:
            parts = (part_told(example.prompt, example.answer, said(context)) for context in told)
        if part := next(filter(None, parts), ""):
            partly.append(f"{name}: {part}")
    words = [f"problems with it: {len(x)}, first {x[0] if x else 'none'}" for x in (leaky, partly)]
    return [("no privileged text in the student's prompt", not leaky, words[0]),
            ("no part of it in a problem", None if partly else True, words[1])]


def difference_check(task: Any, shown: list) -> Check:
    """Whether the prompts are the same but for the context; a teacher's own arguments warn."""
    beyond = 0
    for _, context, plain, prompt in shown:
        students, teachers = (squeezed(task.tokenizer.decode(ids)) for ids in (plain, prompt))
        beyond += tokens_beyond(plain, prompt) > 0 and (
            teachers.replace(squeezed(context), "") != students)
    told = task.chat.arguments["student"] != task.chat.arguments["teacher"]
    words = f"{beyond} of {len(shown)} prompts differ elsewhere" + ", by --teacher_template" * told
    passed = True if not beyond else None if told else False
    return "prompts differ in the context alone", passed, words


def said(context: str) -> str:
    """What a context tells, without the words that introduce it."""
    return re.split(r":\s", context, maxsplit=1)[-1]


def privileged(context: str) -> list[str]:
    """Texts by which a context is recognised: as a whole, and what it tells if that is long."""
    texts = squeezed(context), squeezed(said(context))
    return [text for text in texts if len(text) >= LONG]


def tokens_beyond(plain: list[int], prompt: list[int]) -> int:
    """How many of the student's tokens stand neither before nor behind the teacher's context."""
    before = next((i for i, (a, b) in enumerate(zip(plain, prompt)) if a != b), len(plain))
    rest, other = plain[before:], prompt[before:]
    pairs, most = zip(rest[::-1], other[::-1]), min(len(rest), len(other))
    return len(rest) - next((i for i, (a, b) in enumerate(pairs) if a != b), most)


# 4. Thinking --------------------------------------------------------------------------------------

def cut_thoughts(task: Any, rows: list[Row], kind: str, limit: int) -> str:
    """A warning if most completions of `limit` tokens are cut inside a thought; else empty.

    kind: the context in the prompts that they go on from.
    """
    cut = [row for row in rows if len(row.ids) >= limit and row.ids[-1] not in task.end_ids]
    if 2 * len(cut) <= len(rows):
        return ""
    count = 0
    for row in cut:
        text = task.chat.tokenizer.decode(task.prompt_ids(row.example, row.contexts[kind]))
        text += task.chat.tokenizer.decode(row.ids)
        count += bool(open_thought(text))
    if 2 * count <= len(rows):
        return ""
    names = re.findall(r"\b\w*think\w*\b", str(task.chat.template))
    switch = next((n for n in ("enable_thinking", "thinking") if n in names), "")
    other = f""", or --template '{{"{switch}": false}}'""" if switch else ""
    return (f"--max_new_tokens {limit} cuts {count} of {len(rows)} completions inside their "
            f"thinking; allowed: more{other}")
