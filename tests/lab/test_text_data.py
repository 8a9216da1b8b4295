"""Text datasets: reading JSONL, prompts of student and teacher, rewards, markers, the task."""

import contextlib
import copy
import dataclasses
import json
import random
from decimal import Decimal

import pytest

import toy_tasks
from lab import text_tasks
from lab.templates import Chat
from lab.text_tasks import CONTEXT_TEMPLATES, TextContext, TextExample, TextTask

EXAMPLE = TextExample(
    prompt="Tom has {2} boxes of 3 pens. How many pens?",
    answer="6",
    solution="Each box holds 3 pens.\nSo 2*3 = 6 pens.",
    feedback="The last step is wrong.",
    rule="Answer in dozens.",
)
OTHER = TextExample(prompt="What is 4+5?", answer="9", solution="4+5 = 9")


class Tokenizer:
    """What the prompts need of a tokenizer: a template that trims, as Llama 3's does, and a BOS."""

    def __init__(self, chat_template: str | None):
        self.chat_template = chat_template

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return f"<bos>[user]{messages[0]['content'].strip()}[/user][assistant]"

    def encode(self, text, *, add_special_tokens):
        words = [1] if add_special_tokens else []
        return words + [1] * text.count("<bos>") + [2] * len(text.split())


CHAT, BASE = Tokenizer("a template"), Tokenizer(None)


def text_prompt(tokenizer, *shown) -> str:
    return Chat(tokenizer).text(text_tasks.user_text(*shown))


def write(tmp_path, *lines: object):
    path = tmp_path / "data.jsonl"
    lines = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


# Reading ------------------------------------------------------------------------------------------


def test_own_fields_are_read(tmp_path):
    """Catches an optional field that is dropped, null or blank lines taken for data."""
    full = {name: getattr(EXAMPLE, name) for name in EXAMPLE.__dataclass_fields__}
    path = write(tmp_path, full, b"", {"prompt": " a ", "answer": "b", "rule": None, "id": 7})
    assert text_tasks.read_jsonl(path) == [EXAMPLE, TextExample(prompt="a", answer="b")]


def test_gsm8k_is_read_as_it_is(tmp_path):
    """Catches the solution left in the answer, calculator notes in the context, 1,200 read as 1."""
    answer = "He makes 3*400=$<<3*400=1200>>1200.\nThat is all.\n#### 1,200"
    path = write(tmp_path, {"question": "How much does he make?", "answer": answer})
    expected = TextExample(
        prompt="How much does he make?",
        answer="1200",
        solution="He makes 3*400=$1200.\nThat is all.",
    )
    assert text_tasks.read_jsonl(path) == [expected]
    path = write(tmp_path, {"question": "Which two?", "answer": "#### 3,4"})
    assert text_tasks.read_jsonl(path)[0].answer == "3,4"  # not 34


def test_line_separators_inside_a_text_do_not_split_it(tmp_path):
    """Catches splitlines(), which cuts strings at U+2028; a byte order mark taken for data."""
    line = json.dumps({"prompt": "a\u2028b\u0085c", "answer": "d"}, ensure_ascii=False).encode()
    path = write(tmp_path, b"\xef\xbb\xbf" + line + b"\r", line)
    assert [e.prompt for e in text_tasks.read_jsonl(path)] == ["a\u2028b\u0085c"] * 2


GOOD = {"prompt": "a", "answer": "b"}
BROKEN = {
    "not JSON": (b'{"prompt": "a"', "not JSON"),
    "not UTF-8": (b'{"prompt": "\xe9", "answer": "b"}', "not UTF-8 at byte 12"),
    "not an object": ([1, 2], "list; allowed: a JSON object"),
    "no prompt": ({"answer": "b"}, "lacks the field 'prompt'"),
    "no answer": ({"prompt": "a"}, "lacks the field 'answer'"),
    "no GSM8K answer": ({"question": "a"}, "lacks the field 'answer'"),
    "no GSM8K mark": ({"question": "a", "answer": "b"}, "lacks '#### '"),
    "nothing after the mark": ({"question": "a", "answer": "b\n####"}, "'answer' is empty"),
    "number": ({"prompt": "a", "answer": 7}, "'answer' is int; allowed: text"),
    "null": ({"prompt": None, "answer": "b"}, "'prompt' is NoneType"),
    "list": ({**GOOD, "solution": ["x"]}, "'solution' is list"),
    "empty": ({"prompt": " ", "answer": "b"}, "'prompt' is empty"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_line_is_named(tmp_path, case):
    """Catches a traceback without the line, or a broken example that is trained on."""
    line, message = BROKEN[case]
    path = write(tmp_path, GOOD, b"", line)
    with pytest.raises(ValueError) as error:
        text_tasks.read_jsonl(path)
    assert str(error.value).startswith(f"{path} line 3: ") and message in str(error.value)
    assert "\n" not in str(error.value)


WARNED = [  # lines, and what is said of them; nothing: no warning
    ([GOOD, b'{"prompt": "a b", "answer": "1", "answer": "2"}'], "line 2: the key 'answer' stands"),
    ([GOOD, b'{"id": 1, "id": 2, "prompt": "p", "answer": "1"}'], "line 2: the key 'id' stands"),
    ([b'{"meta": {"a": 1, "a": 2}, "prompt": "p", "answer": "1"}'], ""),
    ([GOOD, b"", {"prompt": " A ", "answer": "c"}], "line 3: the prompt of line 1, 'A', with the"),
    ([{"prompt": "3+1", "answer": "4"}, {"prompt": "\uff13 + 1", "answer": "5"}], "line 2: the p"),
    ([{"question": "q", "answer": "#### 4"}, {"prompt": "q", "answer": "5"}], "answer '5' instead"),
    ([{"prompt": "3+1", "answer": "4"}, {"prompt": "3 +1", "answer": " 4.0 "}], ""),
    ([{"prompt": "1 2", "answer": "4"}, {"prompt": "12", "answer": "5"}], ""),
    ([GOOD, GOOD, GOOD], ""),
]


@pytest.mark.parametrize("lines, said", WARNED, ids=str)
def test_contradictions_are_warned_of_with_their_line(lines, said, tmp_path, capsys):
    """Catches an answer that silently replaces another, and rewards that contradict each other."""
    path = write(tmp_path, *lines)
    text_tasks.read_jsonl(path)
    error = capsys.readouterr().err
    assert error.count("\n") == bool(said) and said in error
    assert not said or error.startswith(f"warning: {path} line ")


def test_many_warnings_are_counted(tmp_path, capsys):
    """Catches a terminal that is flooded, and a line break of the data in a line of ours."""
    lines = [{"prompt": f"a{i // 2}\nb", "answer": f"{i}\n"} for i in range(20)]
    text_tasks.read_jsonl(write(tmp_path, *lines))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and lines[-1] == "warning: and 5 more lines like this"


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_empty_file_is_refused(tmp_path, content):
    """Catches a run without data that divides by zero later."""
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="no examples"):
        text_tasks.read_jsonl(tmp_path / "data.jsonl")


# Prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [CHAT, BASE], ids=["chat", "base"])
@pytest.mark.parametrize("kind", CONTEXT_TEMPLATES)
def test_teacher_without_its_context_is_the_student(tokenizer, kind):
    """Catches the mismatch of templates: two prompts that differ in more than the context."""
    context = text_tasks.text_context(EXAMPLE, kind, attempt="I say 7.", other=OTHER)
    student = text_prompt(tokenizer, EXAMPLE)
    teacher = text_prompt(tokenizer, EXAMPLE, context)
    start = student.index(EXAMPLE.prompt) + len(EXAMPLE.prompt)
    assert teacher == student[:start] + context + student[start:]
    assert bool(context) == (kind != "none")
    assert student.count("\\boxed{}") == 1


def test_contexts_of_text_are_those_of_the_toy():
    """Catches a kind of context that only one of the two worlds knows."""
    assert list(CONTEXT_TEMPLATES) == list(toy_tasks.CONTEXTS)


def test_contexts_show_what_they_name_and_no_more():
    """Catches an answer where none belongs, and another problem mixed with this one."""
    shown = {
        kind: text_tasks.text_context(EXAMPLE, kind, attempt="I say 7.", other=OTHER)
        for kind in CONTEXT_TEMPLATES
    }
    assert "is 6." in shown["answer"] and "is 9." in shown["wrong"]
    assert EXAMPLE.solution in shown["solution"] and "I say 7." in shown["sibling"]
    assert shown["partial"].endswith("Each box holds 3 pens.")
    assert OTHER.solution in shown["other_problem"] and "pens" not in shown["other_problem"]
    assert EXAMPLE.feedback in shown["feedback"] and EXAMPLE.rule in shown["rule"]


@pytest.mark.parametrize(
    "kind, message",
    [
        ("hint", "--context: 'hint'; allowed: none, partial, answer"),
        ("solution", "has no solution"),
        ("partial", "has no solution"),
        ("feedback", "has no feedback"),
        ("rule", "has no rule"),
        ("sibling", "has no attempt"),
        ("wrong", "needs another example"),
        ("other_problem", "needs another example"),
    ],
)
def test_context_that_the_example_cannot_give_is_refused(kind, message):
    """Catches a teacher with an empty context: it would be the student, and teach nothing."""
    example = TextExample(prompt="a", answer="b")
    with pytest.raises(ValueError, match=message):
        text_tasks.text_context(example, kind, other=example)


def test_prompts_go_through_a_real_chat_template():
    """Catches options that the tokenizers of transformers do not take."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    )
    plain = text_prompt(tokenizer, EXAMPLE)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat = text_prompt(tokenizer, EXAMPLE)
    assert chat == f"<|user|>{plain.strip()}<|assistant|>"


# Rewards and markers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("so 3 and 4.", "4"),
        ("it costs $1,234.50.", "1234.50"),
        ("lists 1,2,3", "3"),
        ("-5", "-5"),
        ("we have 10-5", "5"),
        ("a loss of -$7", "-7"),
        ("minus \N{MINUS SIGN}8 degrees", "-8"),
        ("half is .5", "0.5"),
        ("water is H2O", None),
        ("5kg", "5"),
        ("12,3456", "3456"),
        ("", None),
    ],
)
def test_last_number(text, expected):
    """Catches thousands read as lists, differences as signs, full stops as decimals."""
    assert text_tasks.last_number(text) == (None if expected is None else Decimal(expected))


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} and cut off \boxed{4", "3"),
        (r"\boxed {5}", "5"),
        (r"\boxed{}", ""),
        ("none", None),
    ],
)
def test_last_boxed(text, expected):
    """Catches nested braces cut at the first closing one, and a first box taken for the last."""
    assert text_tasks.last_boxed(text) == expected


@pytest.mark.parametrize(
    "name, completion, answer, expected",
    [
        ("last_number", "It is 1,200.0 in all.", "1200", 1.0),
        ("last_number", "It is 1200 or 7", "1200", 0.0),
        ("last_number", "no idea", "1200", 0.0),
        ("boxed", r"so \boxed{$1,200$}", "1200", 1.0),
        ("boxed", r"so \boxed{72.00}, not 5", "72", 1.0),
        ("boxed", r"so \boxed{7}", "72", 0.0),
        ("boxed", r"so \boxed{ x + 1 }", "x+1", 1.0),
        ("boxed", r"so \boxed{1 2}", "3", 0.0),
        ("boxed", "72", "72", 0.0),
        ("exact", " yes\n", "yes", 1.0),
        ("exact", "yes, it is", "yes", 0.0),
    ],
)
def test_rewards(name, completion, answer, expected):
    """Catches numbers compared as text, and a reward for the right number in the wrong place."""
    assert text_tasks.TEXT_REWARDS[name](completion, answer) == expected


def test_answer_without_a_number_is_refused():
    """Catches a reward that is 0 for every completion because it does not fit the dataset."""
    with pytest.raises(ValueError, match="has no number"):
        text_tasks.reward_last_number("7", "yes")


def test_markers_are_whole_words_in_any_case():
    """Catches `checked` or `mighty` counted, `Wait` or `hmm...` not counted, a word left out."""
    assert text_tasks.count_markers("Wait, hmm... MAYBE-maybe I might check.") == 6
    assert text_tasks.count_markers("waiter checked unlikely mighty seemingly actual") == 0
    assert text_tasks.count_markers(" ".join(text_tasks.TEXT_MARKERS)) == 10


# The task ----------------------------------------------------------------------------------------

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_tokenizer():
    """Byte-level BPE with a chat template, trained on a few sentences."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"What is {i} + 1? Reason step by step: it is {i + 1}." for i in range(24)]
    tokenizer.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer()


def examples(count: int = 24, **fields) -> list[TextExample]:
    return [
        TextExample(prompt=f"What is {i} + 1?", answer=str(i + 1), **fields) for i in range(count)
    ]


def test_text_splits_share_no_problem_whatever_the_pool(tokenizer):
    """Catches held-out problems that move into training with another pool size or order."""
    tasks = [TextTask(examples(), tokenizer, pool_size=n) for n in (0, 3)]
    tasks.append(TextTask(examples()[::-1] + examples()[:5], tokenizer))
    held_out = [{e.prompt for e in task.pools["fresh"]} for task in tasks]
    assert held_out[0] == held_out[1] == held_out[2]
    for task in tasks:
        assert not held_out[0] & {e.prompt for e in task.pools["train"]}
    assert tasks[1].pools["train"] == tasks[0].pools["train"][:3]
    again = [dataclasses.replace(e, prompt=f" {e.prompt.upper()} ") for e in examples()]
    copies = TextTask(again, tokenizer).pools["fresh"]
    assert {e.prompt.strip().capitalize() for e in copies} == held_out[0]


@pytest.mark.parametrize("copy", [
    "What is {} +1?", "What is {}\n+\t1 ?", "\ufeffWHAT is {}+\u00a01\uff1f",
    "What is {} + \uff11?", "Wh\u00adat\u200b is {} + 1?",
])
def test_copies_that_look_alike_are_of_one_split(copy, tokenizer):
    """Catches `3+1` and `3 + 1` on both sides: an evaluation on what was trained."""
    fresh = {e.answer for e in TextTask(examples(), tokenizer).pools["fresh"]}
    others = [dataclasses.replace(e, prompt=copy.format(int(e.answer) - 1)) for e in examples()]
    assert {e.answer for e in TextTask(others, tokenizer).pools["fresh"]} == fresh


def test_a_context_that_data_cannot_fill_names_flag_line_and_what_they_can(tmp_path, tokenizer):
    """Catches a gap that is met in the middle of a run, or told without its line."""
    rows = [dataclasses.asdict(e) for e in examples(solution="Add one.", rule="Be short.")]
    rows[20]["solution"] = rows[3]["rule"] = ""
    path = write(tmp_path, *rows)
    task = TextTask(text_tasks.read_jsonl(path), tokenizer)
    can = "line 21 has no solution; allowed with these data: none, answer, sibling, other_problem"
    for kinds, flag, said in (
        (["none", "solution"], "--context", can),
        (["none", "partial"], "--context", "line 21 has no solution"),
        (["none", "rule"], "--context", "line 4 has no rule;"),
        (["feedback", "none"], "--student_context", "line "),
        (["none", "hint"], "--context", ""),
    ):
        with pytest.raises(ValueError) as error:
            task.check_fit(kinds, 8, 10**6)
        assert str(error.value).startswith(f"{flag}: {max(kinds, key=lambda k: k != 'none')!r}; ")
        assert said in str(error.value) and "allowed" in str(error.value)
    task.check_fit(["none", "answer", "wrong", "sibling"], 8, 10**6)
    alike = [dataclasses.replace(e, answer="7") for e in examples(solution="Add one.")]
    with pytest.raises(ValueError, match=r"training problems have the answer '7'.*; allowed"):
        TextTask(alike, tokenizer).check_fit(["none", "wrong"], 8, 10**6)
    for split, refused in (("train", True), ("fresh", False)):  # another one is of training
        task = TextTask(examples(solution="So."), tokenizer)
        task.pools[split][1] = dataclasses.replace(task.pools[split][1], solution="")
        with pytest.raises(ValueError) if refused else contextlib.nullcontext():
            task.check_fit(["none", "other_problem"], 8, 10**6)


def test_text_draws_and_evaluations_come_from_their_split(tokenizer):
    """Catches an evaluation on training problems."""
    task, rng = TextTask(examples(), tokenizer), random.Random(0)
    for split in task.splits:
        pool = task.pools[split]
        assert {task.draw(split, rng) for _ in range(300)} == set(pool)
        assert task.evaluation(split, len(pool) + 2, rng) == [*pool, *pool[:2]]


def test_text_prompts_differ_in_the_context_alone(tokenizer):
    """Catches a student's prompt with the solution, and a teacher's in another template."""
    task, rng = TextTask(examples(solution="Add one."), tokenizer), random.Random(0)
    example = task.draw("train", rng)
    context = task.context(example, "solution", rng)
    student, teacher = (
        tokenizer.decode(task.prompt_ids(example, c), skip_special_tokens=False)
        for c in ("", context)
    )
    assert "Add one." in context and "Add one." not in student
    assert teacher.replace(context, "") == student
    assert student.startswith("<|im_start|>user") and teacher.startswith("<|im_start|>user")
    assert task.decode([*task.encode("It is 3."), task.end_ids[0], task.pad_id]) == "It is 3."


@pytest.mark.parametrize("kind", ["wrong", "other_problem"])
def test_other_problems_are_training_problems_with_another_answer(kind, tokenizer):
    """Catches a held-out problem that leaks through the context of a training problem."""
    task, rng = TextTask(examples(solution="Add one."), tokenizer), random.Random(0)
    example = task.pools["train"][0]
    shown = {task.context(example, kind, rng) for _ in range(300)}
    key, before, after = ("answer", " is ", ".")
    if kind == "other_problem":
        key, before, after = ("prompt", "\n", "\n")
    found = {
        e.prompt
        for e in examples()
        if any(f"{before}{getattr(e, key)}{after}" in text for text in shown)
    }
    assert found == {e.prompt for e in task.pools["train"]} - {example.prompt}


@pytest.mark.parametrize("reward", text_tasks.TEXT_REWARDS)
def test_text_references_score_1_and_garbage_0(reward, tokenizer):
    """Catches data completions that the reward does not recognise, and --reward without effect."""
    task = TextTask(examples(solution="maybe; wait, check"), tokenizer, reward=reward)
    example = task.pools["fresh"][0]
    reference = task.reference(example, random.Random(0))
    markers = 0.0 if reward == "exact" else 3.0
    measures = {"accuracy_frac": 1.0, "markers_per_completion": markers, "cut_frac": 0.0}
    assert task.measures(reference, example) == measures
    assert all(type(value) is float for value in task.measures(reference, example).values())
    assert task.reward(reference, example) == 1.0 and task.reward("nothing", example) == 0.0
    wordy = task.reward(f"It is {example.answer}", example)
    assert wordy == (reward == "last_number")


def test_impossible_text_tasks_are_refused(tokenizer):
    """Catches training on rewards that are always 0, and an evaluation on nothing."""
    with pytest.raises(ValueError, match="split fresh: none of the 1 problems"):
        TextTask(TextTask(examples(), tokenizer).pools["train"][:1], tokenizer)
    with pytest.raises(ValueError, match="has no number"):
        TextTask([TextExample("Who?", "Ada"), *examples()], tokenizer)
    with pytest.raises(ValueError, match="can never be 1 for the answer 'b}'"):
        TextTask([TextExample("What?", "b}"), *examples()], tokenizer, reward="boxed")
    with pytest.raises(ValueError, match="--reward: 'best'; allowed: last_number, boxed, exact"):
        TextTask(examples(), tokenizer, reward="best")
    unending = text_tokenizer()
    unending.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        TextTask(examples(), unending)


@pytest.mark.parametrize("answer", ["12:30", "3,4", "Ada"])
def test_an_answer_that_cannot_be_graded_is_named_with_its_line(answer, tokenizer, tmp_path):
    """Catches an hour of looking for one answer among thousands."""
    rows = [{"prompt": e.prompt, "answer": e.answer} for e in examples()]
    rows[7]["answer"] = answer
    path = write(tmp_path, *rows)
    with pytest.raises(ValueError) as error:
        TextTask(text_tasks.read_jsonl(path), tokenizer)
    assert str(error.value).startswith(f"{path} line 8: reward last_number: the answer {answer!r}")


@pytest.mark.parametrize("reward", text_tasks.TEXT_REWARDS)
def test_a_completion_without_an_end_token_earns_nothing(reward, tokenizer):
    """Catches a right answer that is cut off and counts, and a cut that is not counted."""
    task = TextTask(examples(), tokenizer, reward=reward, end_ids=(1,))
    example = task.pools["train"][0]
    ids = task.encode(task.reference(example))
    for tail, cut in (([], 1.0), ([task.end_ids[0]], 0.0), ([1, task.pad_id, 40], 0.0)):
        text = task.decode([*ids, *tail])
        assert text == task.reference(example)
        measures = task.measures(text, example)
        assert measures["cut_frac"] == cut
        assert task.reward(text, example) == measures["accuracy_frac"] == 1 - cut
        assert task.reward(copy.deepcopy(text), example) == 1 - cut


def test_text_is_cut_at_the_end_token_by_its_id(tokenizer):
    """Catches an end token that is not special, which stays in the answer."""
    task = TextTask(examples(), tokenizer, reward="exact", end_ids=tuple(tokenizer.encode("!")))
    example = task.pools["train"][0]
    text = task.decode([*task.encode(example.answer), *task.encode("! and more"), task.end_ids[0]])
    assert text == example.answer and task.reward(text, example) == 1


@pytest.mark.parametrize("special", [False, True])
def test_a_thought_without_end_earns_nothing(special):
    """Catches an answer inside a thought, also where its marks are special or the prompt's."""
    tokenizer = text_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    task = TextTask(examples(), tokenizer, reward="boxed")
    example, end = task.pools["train"][0], task.end_ids[0]
    box = f"\\boxed{{{example.answer}}}"

    def reward(text: str) -> float:
        decoded = task.decode([*task.encode(text), end])
        assert task.measures(decoded, example)["cut_frac"] == 0
        return task.reward(decoded, example)

    assert reward(f"<think>{box}") == 0 and reward(f"<think>so</think>{box}") == reward(box) == 1
    tokenizer.chat_template = CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n")
    task = TextTask(examples(), tokenizer, reward="boxed")
    assert reward(box) == 0 and reward(f"so</think>{box}") == 1
    assert reward(task.reference(example)) == 1


def test_a_wrong_answer_is_wrong_for_the_reward(tokenizer):
    """Catches `wrong` that shows 7.0 or 14/2 where 7 is right, or never finds a wrong one."""
    same = [TextExample(f"What is {i}?", a) for i, a in enumerate(["7", "7.0", "14/2", "$7"] * 40)]
    for reward in ("last_number", "boxed"):
        task, rng = TextTask(same, tokenizer, reward=reward), random.Random(0)
        with pytest.raises(ValueError, match="needs another example with another answer"):
            task.context(task.pools["train"][0], "wrong", rng)
        task.pools["train"].append(TextExample("What else?", "8"))
        shown = {task.context(task.pools["train"][0], "wrong", rng) for _ in range(9)}
        assert shown == {"\n\nThe correct final answer is 8."}


def test_a_text_task_ends_with_every_given_token_and_the_tokenizers_first(tokenizer):
    """Catches a completion that runs on behind a second end token, or a reference without one."""
    ends = TextTask(examples(), tokenizer, end_ids=(1, tokenizer.eos_token_id)).end_ids
    assert ends == (tokenizer.eos_token_id, 1)
    assert TextTask(examples(), tokenizer).end_ids == (tokenizer.eos_token_id,)
    assert TextTask(examples(), tokenizer).pad_id == tokenizer.pad_token_id


def test_a_copy_of_a_text_task_draws_the_same(tokenizer):
    """Catches state outside of the task."""
    task = TextTask(examples(), tokenizer, reward="boxed")
    twin = copy.deepcopy(task)
    example = task.draw("train", random.Random(3))
    assert twin.draw("train", random.Random(3)) == example
    assert twin.prompt_ids(example) == task.prompt_ids(example)


def test_a_new_context_of_text_is_one_row(tokenizer, monkeypatch):
    """Catches a second place where a context has to be named; feedback taken for an attempt."""
    rows = {
        "critique": TextContext("\n\nYou wrote:\n{attempt}", attempt="own"),
        "mixed_up": TextContext("\n\nNot to be mixed up with:\n{prompt}", of_other=True),
    }
    for kind, row in rows.items():
        monkeypatch.setitem(CONTEXT_TEMPLATES, kind, row)
    task, generator = TextTask(examples(feedback="Too small."), tokenizer), random.Random(0)
    assert task.attempts == {"sibling": "sibling", "critique": "own"}
    example = task.pools["train"][0]
    assert task.context(example, "critique", generator, "It is 7.") == "\n\nYou wrote:\nIt is 7."
    shown = task.context(example, "mixed_up", generator)
    assert any(e.prompt in shown for e in task.pools["train"][1:]) and example.prompt not in shown
    feedback = task.context(example, "feedback", generator, "ignored")
    assert "Too small." in feedback and "ignored" not in feedback
    with pytest.raises(ValueError, match=r"context critique: .* has no attempt"):
        task.context(example, "critique", generator)
    with pytest.raises(ValueError, match=r"--context: 'hint'; allowed: none, .*, mixed_up$"):
        task.context(example, "hint", generator)
