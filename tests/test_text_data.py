"""Text datasets: reading JSONL, prompts of student and teacher, rewards, epistemic markers."""

import json
from decimal import Decimal

import pytest

import toy_tasks
from toy_tasks import TextExample

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
    assert toy_tasks.read_jsonl(path) == [EXAMPLE, TextExample(prompt="a", answer="b")]


def test_gsm8k_is_read_as_it_is(tmp_path):
    """Catches the solution left in the answer, calculator notes in the context, 1,200 read as 1."""
    answer = "He makes 3*400=$<<3*400=1200>>1200.\nThat is all.\n#### 1,200"
    path = write(tmp_path, {"question": "How much does he make?", "answer": answer})
    expected = TextExample(
        prompt="How much does he make?",
        answer="1200",
        solution="He makes 3*400=$1200.\nThat is all.",
    )
    assert toy_tasks.read_jsonl(path) == [expected]


def test_line_separators_inside_a_text_do_not_split_it(tmp_path):
    """Catches splitlines(), which cuts strings at U+2028; a byte order mark taken for data."""
    line = json.dumps({"prompt": "a\u2028b\u0085c", "answer": "d"}, ensure_ascii=False).encode()
    path = write(tmp_path, b"\xef\xbb\xbf" + line + b"\r", line)
    assert [e.prompt for e in toy_tasks.read_jsonl(path)] == ["a\u2028b\u0085c"] * 2


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
        toy_tasks.read_jsonl(path)
    assert str(error.value).startswith(f"{path} line 3: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_empty_file_is_refused(tmp_path, content):
    """Catches a run without data that divides by zero later."""
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="no examples"):
        toy_tasks.read_jsonl(tmp_path / "data.jsonl")


# Prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [CHAT, BASE], ids=["chat", "base"])
@pytest.mark.parametrize("kind", toy_tasks.CONTEXTS)
def test_teacher_without_its_context_is_the_student(tokenizer, kind):
    """Catches the mismatch of templates: two prompts that differ in more than the context."""
    context = toy_tasks.text_context(EXAMPLE, kind, attempt="I say 7.", other=OTHER)
    student = toy_tasks.text_prompt(tokenizer, EXAMPLE)
    teacher = toy_tasks.text_prompt(tokenizer, EXAMPLE, context)
    start = student.index(EXAMPLE.prompt) + len(EXAMPLE.prompt)
    assert teacher == student[:start] + context + student[start:]
    assert bool(context) == (kind != "none")
    assert student.count("\\boxed{}") == 1


def test_contexts_of_text_are_those_of_the_toy():
    """Catches a kind of context that only one of the two worlds knows."""
    assert tuple(toy_tasks.CONTEXT_TEMPLATES) == toy_tasks.CONTEXTS


def test_contexts_show_what_they_name_and_no_more():
    """Catches an answer where none belongs, and another problem mixed with this one."""
    shown = {
        kind: toy_tasks.text_context(EXAMPLE, kind, attempt="I say 7.", other=OTHER)
        for kind in toy_tasks.CONTEXTS
    }
    assert "is 6." in shown["answer"] and "is 9." in shown["wrong"]
    assert EXAMPLE.solution in shown["solution"] and "I say 7." in shown["sibling"]
    assert shown["partial"].endswith("Each box holds 3 pens.")
    assert OTHER.solution in shown["other_problem"] and "pens" not in shown["other_problem"]
    assert EXAMPLE.feedback in shown["feedback"] and EXAMPLE.rule in shown["rule"]


@pytest.mark.parametrize(
    "kind, message",
    [
        ("hint", "context: 'hint'; allowed: none, answer"),
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
        toy_tasks.text_context(example, kind, other=example)


def test_first_token_is_written_once():
    """Catches two beginning-of-text tokens, one of the chat template and one of the tokenizer."""
    for tokenizer in (CHAT, BASE):
        ids = toy_tasks.text_ids(tokenizer, toy_tasks.text_prompt(tokenizer, EXAMPLE))
        assert ids.count(1) == 1


def test_prompts_go_through_a_real_chat_template():
    """Catches options that the tokenizers of transformers do not take."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    )
    plain = toy_tasks.text_prompt(tokenizer, EXAMPLE)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat = toy_tasks.text_prompt(tokenizer, EXAMPLE)
    assert chat == f"<|user|>{plain.strip()}<|assistant|>"
    assert toy_tasks.text_ids(tokenizer, chat) == [0]


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
    assert toy_tasks.last_number(text) == (None if expected is None else Decimal(expected))


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
    assert toy_tasks.last_boxed(text) == expected


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
    assert toy_tasks.TEXT_REWARDS[name](completion, answer) == expected


def test_answer_without_a_number_is_refused():
    """Catches a reward that is 0 for every completion because it does not fit the dataset."""
    with pytest.raises(ValueError, match="has no number"):
        toy_tasks.reward_last_number("7", "yes")


def test_markers_are_whole_words_in_any_case():
    """Catches `checked` or `mighty` counted, `Wait` or `hmm...` not counted, a word left out."""
    assert toy_tasks.count_markers("Wait, hmm... MAYBE-maybe I might check.") == 6
    assert toy_tasks.count_markers("waiter checked unlikely mighty seemingly actual") == 0
    assert toy_tasks.count_markers(" ".join(toy_tasks.TEXT_MARKERS)) == 10
