"""Prompts of real checkpoints: chat templates, their arguments, ends of turns, control tokens."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_real_checkpoints import SMALL, make_checkpoint, words, write_lines

import train_gpt
from lab import hf, report, templates
from lab.data_checks import part_told
from lab.templates import Chat
from lab.text_tasks import CONTEXT_TEMPLATES, TextContext, TextExample, TextTask, read_jsonl
from minisd import METHODS, Method, Row

transformers = pytest.importorskip("transformers")

# Templates in the manner of the families, each with what its turns end with.
HEADER = "<|head|>{{ m.role }}</head>\n\n"
LLAMA3 = (
    "<s>{% for m in messages %}" + HEADER + "{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant</head>\n\n{% endif %}")
CHATML = (
    "{% for m in messages %}<|head|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}")
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}")
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}")
LAST_OPEN = (  # the last turn is left open; </s> stands between turns
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if m.role == 'assistant' and not loop.last %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}")
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}")
USERS_ONLY = (
    "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('only users') }}{% endif %}"
    "<|head|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|head|>{% endif %}")
THINKING = (
    CHATML.removesuffix("{% endif %}")
    + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}")
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
SPECIAL = ["<pad>", "<s>", "</s>", "<|eot|>", "<|head|>"]


def make_tokenizer(template=CHATML, eos: str = "</s>"):
    """Bytes and control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token=eos)
    made.chat_template = template
    return made


def examples(count: int = 24, **fields) -> list[TextExample]:
    fields = {"solution": "Take the number and add one to it."} | fields
    return [TextExample(f"What is {i} + 1?", str(i + 1), **fields) for i in range(count)]


def make_task(template=CHATML, *, rows=None, options=(), **fields) -> TextTask:
    tokenizer = make_tokenizer(template)
    return TextTask(rows or examples(**fields), tokenizer, chat=Chat(tokenizer, *options))


def outcome(task: TextTask, method: Method = METHODS["sdpo"]) -> dict[str, list[str]]:
    """What failed and what is warned of, in words."""
    checks = task.prompt_checks(method)
    return {name: [f"{what} ({reading})" for what, passed, reading in checks if passed is kind]
            for name, kind in (("failed", False), ("warned", None))}


# The end of a turn --------------------------------------------------------------------------------


@pytest.mark.parametrize("template, tail, ends", [
    (LLAMA3, "", ["<|eot|>", "</s>"]),
    (CHATML, "", ["<|eot|>", "</s>"]),
    (LLAMA2, " ", ["</s>"]),
    (PHI, "", ["<|eot|>", "</s>"]),
    (LAST_OPEN, "", ["</s>"]),
    (PLAIN, "", ["</s>"]),
    (USERS_ONLY, "", ["</s>"]),
    (CHATML.replace("<|eot|>", "\n\n<|eot|>"), "\n\n", ["<|eot|>", "</s>"]),
    ({"default": LLAMA3, "tool_use": PLAIN}, "", ["<|eot|>", "</s>"]),
    (None, "", ["</s>"]),
], ids=str)
def test_a_turn_ends_as_the_template_ends_it(template, tail, ends):
    """Catches completions that all run to the limit, and references with another end."""
    task = make_task(template)
    tokens = task.tokenizer.convert_ids_to_tokens
    assert tokens(list(task.end_ids)) == ends
    answer = [*task.encode("It is 3."), task.end_ids[0]]  # as a supervised row has it
    assert task.tokenizer.decode(answer) == f"It is 3.{tail}{ends[0]}"
    if template not in (None, LAST_OPEN, PLAIN, USERS_ONLY):
        turn = task.tokenizer.apply_chat_template(
            templates.turns("?", "It is 3."), tokenize=False)
        assert task.tokenizer.decode(answer) in turn


def test_an_end_between_turns_counts_if_the_checkpoint_knows_it():
    """Catches the next speaker's header taken for an end, and an end that only stands between."""
    open_end = make_tokenizer(LAST_OPEN.replace("</s>", "<|eot|>"))
    eot, eos = open_end.convert_tokens_to_ids(["<|eot|>", "</s>"])
    assert TextTask(examples(), open_end, end_ids=(eot,)).end_ids == (eot, eos)
    assert TextTask(examples(), open_end).end_ids == (eos,)


def test_an_end_that_the_template_leaves_out_is_warned_of():
    """Catches a silent guess; an end is silent where the template shows it."""
    assert any("turns end with </s> (chat template writes no control token" in said
               for said in outcome(make_task(PLAIN))["warned"])
    assert outcome(make_task(LLAMA3)) == {"failed": [], "warned": []}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> dict[str, str]:
    init, data = make_checkpoint(tmp_path_factory.mktemp("templates"))
    return {"init": init, "data": data}


def changed(checkpoint: dict, tmp_path, template=None, **files) -> dict[str, str]:
    """A copy of the checkpoint with another template and other fields in its JSON files."""
    init = tmp_path / "init"
    shutil.copytree(checkpoint["init"], init)
    if template is not None:
        (init / "chat_template.jinja").write_text(template)
    for name, fields in files.items():
        path = init / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return checkpoint | {"init": str(init)}


@pytest.mark.parametrize("value", ["260", 323, -1, True, 2.0, [2, "5"], [2, 99999], [[2]], {}])
@pytest.mark.parametrize("file", ["generation_config", "config"])
def test_an_end_that_is_no_token_is_named(file, value, checkpoint, tmp_path):
    """Catches a traceback for "260", and ends that are never written: 99999, -1, true."""
    flags = changed(checkpoint, tmp_path, **{file: {"eos_token_id": value}})
    with pytest.raises(ValueError) as error:
        hf.load(flags["init"])
    said = str(error.value)
    assert said.startswith(f"{flags['init']}/{file}.json: ") and "\n" not in said
    assert "eos_token_id" in said and repr(value) in said


# Student and teacher ------------------------------------------------------------------------------


def content(changed: str) -> str:
    """A template that does something to what the user says."""
    return CHATML.replace("{{ m.content }}", changed)


@pytest.mark.parametrize("template, said", [
    (content("{{ m.content[:12] }}"), "what they are given (16 of 16 teacher's prompts are the st"),
    (content("Hello"), "what they are given (16 of 16 teacher's prompts are the student's)"),
    (content("{% for x in m.content if x.type == 'text' %}{{ x.text }}{% endfor %}"), "are given"),
    (content("{{ m.content.split('\n\n')[0] }}"), "16 of 16 teacher's prompts are the student's"),
    (content("{{ m.content }}{{ 'Hint!' if 'solution' in m.content }}"), "16 of 16 prompts differ"),
    (content("{% if 'solution' in m.content %}A tutor.{% endif %}{{ m.content }}"), "differ"),
    (content("{{ m.content[:70] }}"), "16 of 16 prompts differ elsewhere"),
    (CHATML.partition("{% if")[0], "a generation prompt (before an answer stands "),
    (CHATML.partition("{% if")[0].replace("<|head|>", ""), "a generation prompt (before"),
    ("{% for m in messages %}{{ m.content }}<|eot|>\n{% endfor %}", "32 of 32 end with '<|eot|>'"),
    ("{% for m in messages %}{{ m.content }}</s>{% endfor %}", "32 of 32 end with '</s>'"),
    (content("{{ m.content }}{{ range(9) | random }}"), "without chance"),
    (content("{{ m.content }}{{ lipsum() }}"), "without chance"),
], ids=str)
def test_a_template_that_breaks_the_comparison_fails(template, said):
    """Catches a teacher that sees what its student sees, or something else than the context."""
    assert said in " ".join(outcome(make_task(template))["failed"])


def test_each_honest_template_passes():
    """Catches a check that a family's own template could never pass."""
    kinds = ("answer", "sibling", "wrong", "other_problem", "partial", "feedback", "rule")
    honest = (LLAMA3, LLAMA2, PHI, LAST_OPEN, THINKING, DATED, None)
    cases = [(CHATML, kind) for kind in kinds] + [(t, "solution") for t in honest]
    for template, kind in cases:
        method = Method(**vars(METHODS["sdpo"]) | {"context": kind})
        task = make_task(template, feedback="Too small.", rule="Use your fingers for it.")
        assert outcome(task, method)["failed"] == [], (template, kind)


def test_a_template_that_ignores_the_problem_fails_without_a_teacher():
    """Catches rewards for answers to a question that was never asked."""
    rewards = Method(**vars(METHODS["grpo"]) | {"context": "none", "teacher": "live"})
    failed = outcome(make_task(content("Hello")), rewards)["failed"]
    assert failed == ["prompts show what they are given (one prompt for 16 problems)"]


def test_a_template_that_rewrites_the_text_is_warned_of():
    """Catches a problem that reaches the model cut or escaped."""
    for change in ("m.content | replace('+', 'plus')", "m.content | replace('What', '')"):
        warned = outcome(make_task(content("{{ " + change + " }}")))["warned"]
        assert "the chat template changes the text in 16 of 32" in warned[0]
    assert "in 16 of 32" in outcome(make_task(content("{{ m.content | tojson }}")))["warned"][0]


def test_a_base_tokenizer_that_ends_its_prompts_fails():
    """Catches add_eos_token: every completion would begin behind the end."""
    from tokenizers import processors

    task = make_task(None)
    task.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 257), ("</s>", 258)])
    assert "32 of 32 end with '</s>'" in outcome(task)["failed"][0]


@pytest.mark.parametrize("kind, prompt", [
    ("solution", "What is {}? Hint: take  the number and add one to it."),
    ("answer", "What is {}? The correct final answer is 5."),
    ("rule", "What is {}? Always count on your fingers."),
    ("feedback", "What is {}? You forgot to carry the one."),
])
def test_privileged_text_in_a_problem_fails(kind, prompt):
    """Catches a data set whose problems hold what only the teacher should see."""
    fields = {"solution": "Take the number and add one to it.", "answer": "5",
              "rule": "Always count on your fingers.", "feedback": "You forgot to carry the one."}
    method = Method(**vars(METHODS["sdpo"]) | {"context": kind})
    honest = [TextExample(f"What is {i}?", **fields) for i in range(24)]
    assert outcome(make_task(rows=honest), method)["failed"] == []
    leaky = [*honest[:22], TextExample(prompt.format(22), **fields)]
    name = repr(leaky[-1].prompt[:40])
    said = f"no privileged text in the student's prompt (problems with it: 1, first {name})"
    assert outcome(make_task(rows=leaky), method)["failed"] == [said]


STEPS = "She sold 48/2 = 24 clips in May. In both months that makes 48 + 24 = 72 clips, no more."


@pytest.mark.parametrize("added, part", [
    ("(The answer is 72.)", "the answer"), ("#### 72", "the answer"), ("Hint: 72", "the answer"),
    ("She sold 48/2=24 in May.", "a step"), ("Note: 48 + 24 = $72", ""),
    ("In both months that makes some clips, no more.", ""),
    ("Clips in May. In both months that makes 48 + 24.", "10 words in a row"),
    ("The answer is not 720 or 72.5, nor 72%.", ""), ("She sold 48 clips in April.", ""),
    ("Is 148/2 = 24?", ""), ("She sold 48/2 = 240.", ""),
], ids=str)
def test_a_part_of_the_privileged_text_is_warned_of(added, part):
    """Catches a hint of the data set's own, of which the whole-text comparison knows nothing."""
    rows = examples()
    rows[5] = TextExample(f"How many clips in all? {added}", "72", solution=STEPS)
    said = outcome(make_task(rows=rows))
    name = f"first {rows[5].prompt[:40]!r}: {part})"
    words = [f"no part of it in a problem (problems with it: 1, {name}"] if part else []
    assert said == {"failed": [], "warned": words}


def test_givens_that_a_solution_repeats_are_no_part_of_it():
    """Catches a warning at honest data."""
    for e in read_jsonl(Path(__file__).parents[2] / "lab/data/word_problems.jsonl"):
        assert not part_told(e.prompt, e.answer, f"{e.solution} \\boxed{{{e.answer}}}")
    given = "James spends 40 years teaching. His partner has been teaching for 10 years less."
    told = "His partner has been teaching for 40-10=30 years. Together they have 70 years."
    assert not part_told(given, "70", told)
    start = time.process_time()
    part_told("1" * 50_000, "1", "1" * 50_000 + " word" * 50_000)
    assert time.process_time() - start < 2


def test_the_comparison_is_of_the_ids_that_are_trained_on():
    """Catches a check of rendered text while the tokens are others."""
    task = make_task()
    honest = task.prompt_ids
    task.prompt_ids = lambda example, context="": honest(example, "The correct final answer is 5.")
    assert "teacher's prompts are the student's" in outcome(task)["failed"][0]
    task.prompt_ids = lambda example, context="": honest(example, context)[bool(context):]
    assert "16 of 16 prompts differ elsewhere" in outcome(task)["failed"][0]
    task.prompt_ids = lambda example, context="": [*honest(example, context), task.end_ids[-1]]
    assert "32 of 32 end with '</s>'" in outcome(task)["failed"][0]
    shown = "\n\nA correct solution:\nTake the number and add one to it."
    task.prompt_ids = lambda example, context="": honest(example, f"{context} {shown}")
    assert "no privileged text" in " ".join(outcome(task)["failed"])


def test_a_generation_prompt_that_leaves_something_to_the_model_is_warned_of():
    """Catches a run that is refused because its answers open a channel of their own."""
    template = content("{{ '<|head|>' if m.role == 'assistant' }}{{ m.content }}")
    said = outcome(make_task(template))
    assert said["failed"] == [] and said["warned"][0].startswith("a generation prompt (before an")


def test_a_context_of_a_new_row_is_compared_too(monkeypatch):
    """Catches checks that know the kinds of this file alone."""
    row = TextContext("\n\nA friend says:\n{attempt}", attempt="own")
    monkeypatch.setitem(CONTEXT_TEMPLATES, "friend", row)
    method = Method(**vars(METHODS["sdpo"]) | {"context": "friend"})
    assert outcome(make_task(), method) == {"failed": [], "warned": []}
    assert outcome(make_task(content("{{ m.content[:12] }}")), method)["failed"]


# Templates that do not work -----------------------------------------------------------------------


@pytest.mark.parametrize("template, said", [
    ("{% for m in messages %}{{ m.content }", "TemplateSyntaxError"),
    ("{% if true %}", "TemplateSyntaxError"),
    ("{{ m.content }}", "'m' is undefined"),
    ("{{ raise_exception('no system\nmessage given') }}", "no system message given"),
    ("{{ messages[0].content + 1 }}", "TypeError: "),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ messages.__class__.__mro__ }}", "SecurityError"),
    ("{{ now() }}", "'now' is undefined"),
    ("{{ messages | nonsense }}", "nonsense"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("", "renders nothing"), (" \n", "renders nothing"),
    ("{% for m in messages if m.role == 'system' %}x{% endfor %}", "renders nothing"),
    ({"rag": CHATML, "tool_use": CHATML}, "'rag', 'tool_use'; allowed: one that is named 'def"),
    ({}, "an empty list; allowed: one that is named 'default'"),
    ({"default": "{% if %}"}, "TemplateSyntaxError"),
], ids=str)
def test_a_template_that_does_not_work_is_one_line(template, said):
    """Catches a traceback through three libraries, and prompts of nothing."""
    with pytest.raises(ValueError) as error:
        task = make_task(template)
        task.check_fit(["solution"], 4, 10**6)
    message = str(error.value)
    assert "chat template" in message and said in message and "\n" not in message
    if isinstance(template, str):
        assert " ".join(template.split())[:16] in message


@pytest.mark.parametrize("flags, template, said", [
    ({}, "{% for m in messages %}{{ m.content }", "init/chat_template.jinja: chat template '{% fo"),
    ({}, "{{ raise_exception('no users') }}", "TemplateError: no users"),
    ({}, content("Hello"), "start-up check failed: prompts show what they are given (16 of 16"),
    ({"template": '{"enable_thinkin": false}'}, THINKING, "--template: 'enable_thinkin'; allowed:"),
    ({"method": "grpo", "teacher_template": '{"enable_thinking": false}'}, THINKING,
     "--teacher_template reaches the teacher alone"),
], ids=str)
def test_a_run_with_a_wrong_template_is_refused_before_step_1(
    flags, template, said, checkpoint, tmp_path, capsys
):
    """Catches a check that no run makes, and a run that leaves a folder behind."""
    template = template.replace("<|eot|>", "<|im_end|>").replace("<|head|>", "<|im_start|>")
    there = changed(checkpoint, tmp_path, template)
    with pytest.raises(ValueError) as error:
        train_gpt.main(words(**SMALL | {"max_new_tokens": 4, "out_dir": tmp_path / "run"} | there
                             | flags))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# What a template is given -------------------------------------------------------------------------


@pytest.mark.parametrize("text, why", [
    ("{", "Expecting"), ("[1]", "(list)"), ("false", "(bool)"), ("enable_thinking=false", "Expect"),
    ('{"a": 1, "a": 2}', "a name twice"), ('{"a": NaN}', "(NaN)"), ('{"a": "\\ud800"}', "surrog"),
    ("[" * 100_000, "recursion"), ("{'a': 1}", "Expecting"), (" ", "Expecting"),
], ids=lambda x: x[:20])
@pytest.mark.parametrize("flag", ["template", "teacher_template"])
def test_arguments_that_are_no_json_object_are_refused(flag, text, why):
    """Catches a misspelt object that reaches no template."""
    with pytest.raises(ValueError) as error:
        hf.Checkpoint(init="a", data=__file__, **{flag: text})
    assert str(error.value).startswith(f"--{flag}: {text!r} (") and why in str(error.value)
    assert str(error.value).endswith('; allowed: a JSON object such as {"enable_thinking": false}')


@pytest.mark.parametrize("flags, said", [
    ({"template": "{}"}, "--template: '{}'; allowed: only with --init"),
    ({"teacher_template": "{}"}, "--teacher_template: '{}'; allowed: only with --init"),
    ({"template_date": "today"}, "--template_date: 'today'; allowed: a day such as 2025-01-31"),
    ({"template_date": "2025-02-30"}, "--template_date: '2025-02-30'; allowed"),
    ({"template_date": "20250101"}, "--template_date: '20250101'; allowed"),
    ({"template_date": ""}, "--template_date: ''; allowed"),
])
def test_template_flags_of_no_use_are_refused(flags, said):
    """Catches a flag that is read by nobody."""
    with pytest.raises(ValueError) as error:
        hf.Checkpoint(**flags)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("text, template, name", [
    ('{"messages": []}', CHATML, "messages"), ('{"x": 1}', CHATML, "x"),
    ('{"tokenize": true}', "{{ tokenize }}" + CHATML, "tokenize"), ('{"": 1}', CHATML, ""),
    ('{"enable_think": false}', THINKING, "enable_think"),
])
@pytest.mark.parametrize("flag", ["template", "teacher_template"])
def test_arguments_that_a_template_never_looks_at_are_refused(flag, text, template, name):
    """Catches a misspelt argument, and one that would take the place of the messages."""
    with pytest.raises(ValueError) as error:
        Chat(make_tokenizer(template), **{flag: text})
    said = f"--{flag}: {name!r}; allowed: what the chat template looks at, but for the messages"
    assert str(error.value) == said


def test_arguments_need_a_template():
    """Catches arguments that a base checkpoint ignores."""
    with pytest.raises(ValueError, match=r"--template: .*; allowed: none, as there is no chat"):
        Chat(make_tokenizer(None), '{"enable_thinking": false}')


NO_THOUGHTS = '{"enable_thinking": false}'


def test_both_prompts_get_the_arguments_unless_the_teacher_has_its_own():
    """Catches a student that thinks under a teacher that does not."""
    example, context = examples(1)[0], "\n\nA hint."

    def prompts(*options) -> list[bool]:
        task = make_task(THINKING, options=options)
        ids = (task.prompt_ids(example), task.prompt_ids(example, context))
        return [task.tokenizer.decode(row).endswith("<think>\n\n</think>\n\n") for row in ids]

    assert prompts() == [False, False] and prompts(NO_THOUGHTS) == [True, True]
    assert prompts(NO_THOUGHTS, "{}") == [True, False]
    assert prompts("", NO_THOUGHTS) == [False, True]


def test_a_teacher_with_arguments_of_its_own_is_warned_of():
    """Catches prompts that differ in silence, and a warning where nothing differs."""
    task = make_task(THINKING, options=(NO_THOUGHTS, "{}"))
    assert outcome(task) == {"failed": [], "warned": [
        "prompts differ in the context alone (16 of 16 prompts differ elsewhere, by "
        "--teacher_template)"]}
    assert outcome(make_task(THINKING, options=(NO_THOUGHTS,))) == {"failed": [], "warned": []}
    same = outcome(make_task(THINKING, options=("", '{"enable_thinking": true}')))
    assert same["warned"][0].startswith("--teacher_template reaches the teacher alone (allowed: ")
    changes_nothing = outcome(make_task(THINKING, options=('{"enable_thinking": "false"}',)))
    assert changes_nothing["warned"] == [
        "--template changes the prompt (the template renders the same without it)"]


def test_arguments_and_date_are_stored_and_shown(checkpoint, tmp_path, monkeypatch, capsys):
    """Catches a run that nobody can repeat because its prompts are not on record."""
    monkeypatch.setattr(report, "draw_curves", lambda path, *_: path.touch())
    template = (DATED + "{{ note }}").replace("<|eot|>", "<|im_end|>")
    there = changed(checkpoint, tmp_path, template.replace("<|head|>", "<|im_start|>"))
    flags = {"template": '{"note": ""}', "template_date": "2024-07-26", "steps": 1}
    folder = tmp_path / "run"
    train_gpt.main(words(**SMALL | there | flags | {"out_dir": folder}))
    out = capsys.readouterr()
    assert 'template={"note": ""} template_date=2024-07-26' in out.out
    assert "today is 2024-07-26 ok" in out.out and "a generation prompt ok" in out.out
    assert "turns end with <|im_end|> ok" in out.out
    assert "warning: start-up check in doubt: --template changes the prompt" in out.err
    stored = json.loads((folder / "config.json").read_text())["settings"]["checkpoint"]
    assert stored["template"] == '{"note": ""}' and stored["template_date"] == "2024-07-26"


def test_a_template_is_told_the_same_day_every_day():
    """Catches prompts that change at midnight, and a clock that stays wrong for others."""
    from transformers.utils import chat_template_utils

    clock = chat_template_utils.datetime
    text = make_task(DATED).chat.text("Hello")
    assert text.startswith("Today is 01 Jan 2025.\n")
    assert make_task(DATED, options=("", "", "2024-02-29")).chat.text("").startswith(
        "Today is 29 Feb 2024.")
    assert chat_template_utils.datetime is clock
    assert not any("today" in what for what, *_ in make_task(CHATML).prompt_checks(METHODS["sdpo"]))


# Control tokens in data ---------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, LLAMA3, None], ids=["chatml", "llama3", "base"])
@pytest.mark.parametrize("token", SPECIAL[1:])
def test_a_control_token_in_a_text_is_its_letters(template, token):
    """Catches a problem that ends its own turn, or opens another."""
    example = TextExample(f"What is {token}?", "1", solution=f"One{token}.")
    task = make_task(template, rows=[example, *examples()])
    i = task.tokenizer.convert_tokens_to_ids(token)
    for context in ("", f"\n\nA correct solution:\nOne{token}."):
        ids = task.prompt_ids(example, context)
        plain = task.prompt_ids(TextExample("What is it?", "1"), context and "\n\nOne.")
        assert ids.count(i) == plain.count(i)
        assert task.tokenizer.decode(ids).count(token) > plain.count(i)
    assert i not in task.encode(task.reference(example))
    assert task.decode(task.encode(f"a{token}b")) == f"a{token}b" + task.tail


def test_letters_that_are_no_control_token_are_encoded_as_ever():
    """Catches prompts that change because of how control tokens are looked for."""
    task = make_task()
    example = TextExample("What is \u00e9\u4e2d < | > \U0001f600 ?", "1")
    rendered = task.tokenizer.apply_chat_template(
        templates.turns(task.content(example)), tokenize=False, add_generation_prompt=True)
    assert task.prompt_ids(example) == task.tokenizer.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %} a"])
@pytest.mark.parametrize("field", ["prompt", "solution"])
def test_a_control_token_that_has_no_letters_is_refused_with_its_line(template, field, tmp_path):
    """Catches an end token in a problem, of a tokenizer that knows whole words alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from lab.text_tasks import read_jsonl

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "a": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<end>")
    tokenizer.chat_template = template
    rows = [{"prompt": f"What is {i} ?", "answer": "1", "solution": "a"} for i in range(24)]
    rows[7] |= {field: "a <end> a"}
    data = write_lines(tmp_path / "data.jsonl", rows)
    with pytest.raises(ValueError) as error:
        TextTask(read_jsonl(data), tokenizer).check_fit(["none", "solution"], 4, 1000)
    said = str(error.value)
    assert said.startswith(f"--data {data} line 8: ") and "'<end>'" in said and "\n" not in said
    rows[7] |= {field: "a <unk> a"}  # as any other unknown word
    if template is None:
        data = write_lines(tmp_path / "data.jsonl", rows)
        TextTask(read_jsonl(data), tokenizer).check_fit(["none", "solution"], 4, 1000)


# Thinking -----------------------------------------------------------------------------------------


def cut(task: TextTask, *texts: str, limit: int = 40) -> str:
    """What is said of completions, cut at the limit or with an end."""
    example, rows = examples(1)[0], []
    for text in texts:
        ids = [*task.tokenizer.encode(text, add_special_tokens=False), task.end_ids[0]][:limit]
        rows.append(Row(example, {"none": ""}, ids=ids))
    return task.cut_thoughts(rows, "none", limit)


LONG, SHORT = "<think>\n" + "Let me see. " * 9, "<think>\nTwo.\n</think>\n\n2"


def test_thoughts_that_are_cut_are_warned_of():
    """Catches a run in which no completion ever gets to its answer."""
    task = make_task(THINKING)
    assert cut(task, LONG, LONG, SHORT) == (
        "--max_new_tokens 40 cuts 2 of 3 completions inside their thinking; allowed: more, or "
        "--template '{\"enable_thinking\": false}'")
    for texts in ((LONG, SHORT), (SHORT, SHORT), ("x" * 99,) * 2, (SHORT + "x" * 99,) * 2):
        assert cut(task, *texts) == ""
    opened = make_task(CHATML.replace("assistant\n{", "assistant\n<think>\n{"))
    assert "cuts 2 of 2" in cut(opened, "x" * 99, "y" * 99)
    assert "--template" not in cut(opened, LONG) and cut(opened, "2</think>" + "x" * 99) == ""
    assert "cuts 1 of 1" in cut(task, LONG.replace("<think>", "[THINK]"))


def test_a_run_warns_of_cut_thoughts(capsys):
    """Catches a warning that no run gives."""
    task, log = make_task(THINKING), report.Log(None, [])
    log.file = True
    row = Row(examples(1)[0], {"none": "", "solution": ""}, ids=[65] * 8)
    said = "--max_new_tokens 8 cuts 2 of 2 completions"
    for text in ("<think>\n", "<thin"):
        row.ids = task.tokenizer.encode(text)
        batch = SimpleNamespace(
            rows=[row] * 2, sizes=SimpleNamespace(max_new_tokens=len(row.ids)),
            by_group=lambda: None)
        report.warn_of_flat_signals(METHODS["sdpo"], batch, {"grad_norm": 1.0}, log, 1, task)
    assert capsys.readouterr().err.count(said) == 1
