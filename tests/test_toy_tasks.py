"""Laws of the toy world: its arithmetic, its contexts, its authors, its splits, and its switches.

Shares are compared with their exact values within four standard errors, from seeded generators.
"""

import copy
import dataclasses
import math
import random
import re
import zlib

import pytest
from reading import read

import toy_tasks
from toy_tasks import (
    ANSWER,
    CONTEXTS,
    MARKER,
    REMARK,
    VOCABULARY,
    Context,
    Example,
    Problem,
    Toy,
    ToyTask,
    World,
    decode,
    draw_document,
    draw_practice,
    draw_problem,
    draw_split,
    encode,
    final_answer,
    parse_world,
    privileged_context,
    write_completion,
)

CHAIN = Problem.parse("3*7+4-8")
NEVER = dict.fromkeys(CONTEXTS, 0.0)
CALM = World(persona_rate=0.0)
STEPS = World(persona_rate=0.0, drill_rate=0.0, direct_rate=NEVER)  # decides at every step


def rng(seed=0):
    return random.Random(seed)


def changed(world, **changes):
    """The world with other fields; of a table, the named rows alone."""
    for name, value in changes.items():
        if isinstance(value, dict):
            changes[name] = getattr(world, name) | value
    return dataclasses.replace(world, **changes)


def documents(world, kind=None, count=250, seed=0):
    generator = rng(seed)
    return [draw_document(generator, world, kind) for _ in range(count)]


def problem_of(prompt):
    """The problem of a document, with the step that a rule adds."""
    *context, text = prompt.removesuffix(" = ").split(" | ")
    rule = re.fullmatch(r"rule (\+\d)", *context) if context else None
    return Problem.parse(text + (rule[1] if rule else ""))


def readings(world, kind="none", **options):
    """What the authors of documents did."""
    return [read(problem_of(p), c) for p, c in documents(world, kind, **options)]


def glances(world, kind="none", **options):
    """(is it right, is it checked) of all glances of many documents."""
    return [glance for reading in readings(world, kind, **options) for glance in reading.glances]


def share(items, condition=bool):
    return sum(map(bool, map(condition, items))) / len(items)


def assert_share(items, expected, condition=bool):
    observed, count = share(items, condition), len(items)
    standard_error = math.sqrt(expected * (1 - expected) / count)
    assert abs(observed - expected) <= 4 * standard_error, (observed, expected)


def is_direct(reading):
    return reading.last is None


# Arithmetic and text ------------------------------------------------------------------------------


def test_chains_are_worked_from_left_to_right_modulo_ten():
    """Precedence of * over +, or a negative remainder."""
    assert CHAIN.values == (1, 5, 7)  # 3*7=21 -> 1, 1+4=5, 5-8=-3 -> 7
    assert Problem.parse("2+3*4").values == (5, 0)
    assert Problem.parse("0-9").values == (1,)
    assert CHAIN.prompt == "3*7+4-8 = " and CHAIN.text == "3*7+4-8"


def test_digits_behind_operators_differ_and_all_lengths_are_alike():
    """A digit used twice: the last one used would no longer say where a chain stands."""
    generator = rng(0)
    problems = [draw_problem(generator, "+-", range(2, 10)) for _ in range(800)]
    assert all(len({*p.digits[1:]}) == len(p.digits) - 1 == len(p.operators) for p in problems)
    for n in range(2, 10):
        assert_share(problems, 1 / 8, lambda p, n=n: len(p.operators) == n)
    assert {p.digits[0] for p in problems} == {p.digits[2] for p in problems} == set(range(10))


@pytest.mark.parametrize("text", ["", "3", "3+", "+3", "3++4", "13+4", "3/4", "3+4 "])
def test_what_is_no_problem_is_refused_by_name(text):
    """A malformed problem that is read as another one."""
    with pytest.raises(ValueError, match=r"problem: .*allowed: digits joined by"):
        Problem.parse(text)


def test_every_document_survives_encoding_and_decoding():
    """A token missing from the vocabulary, or a text cut into other tokens than it was made of."""
    for kind in CONTEXTS:
        for prompt, completion in documents(World(persona_rate=0.2), kind, count=60):
            text = prompt + completion
            assert decode(encode(text)) == text
            # Prompt and completion are encoded apart in training and together in pretraining.
            assert encode(prompt) + encode(completion) == encode(text)
    assert set(encode("".join(VOCABULARY[2:]))) == set(range(2, len(VOCABULARY)))


def test_no_token_begins_another():
    """A text that can be cut into tokens in two ways."""
    pairs = ((a, b) for a in VOCABULARY for b in VOCABULARY if a != b)
    assert not [(a, b) for a, b in pairs if b.startswith(a)]
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_padding_and_end_are_not_text():
    """An end token that shows in the printed samples."""
    assert decode([toy_tasks.PAD_ID, *encode("answer 7"), toy_tasks.END_ID]) == "answer 7"


@pytest.mark.parametrize("text, bad", [("3+4=x", "'x'"), ("wait3", "'w'"), ("3 + 4", "' '")])
def test_text_outside_the_vocabulary_is_refused_by_its_first_character(text, bad):
    """Characters dropped in silence."""
    with pytest.raises(ValueError, match=f"no token for {bad}"):
        encode(text)


# Contexts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, options, expected",
    [
        ("none", {}, ""),
        ("answer", {}, "answer 7 | "),
        ("partial", {}, "hint 3*7=1 | "),
        ("solution", {}, "solution 3*7=1+4=5-8=7 | "),
        ("sibling", {"attempt": "3*7=1; answer 7"}, "peer 3*7=1; answer 7 | "),
        ("feedback", {"attempt": "answer 7"}, "tried:7 right | "),
        ("feedback", {"attempt": "3*7=1; answer 5"}, "tried:5 wrong | "),
        ("feedback", {"attempt": "3*7=1; "}, "tried: wrong | "),
        ("rule", {"rule": 3}, "rule +3 | "),
    ],
)
def test_contexts_by_hand(kind, options, expected):
    """A context that tells more, or other, than its name says."""
    assert privileged_context(CHAIN, kind, rng(), **options) == expected
    encode(expected)


@pytest.mark.parametrize(
    "text, hint", [("3*7", ""), ("3*7+4", "3*7=1"), ("1+2+3+4+5", "1+2=3+3=6")]
)
def test_a_hint_is_the_first_half_of_the_chain(text, hint):
    """A hint with a first digit and nothing done, or one that tells the answer of a single step."""
    assert privileged_context(Problem.parse(text), "partial", rng()) == f"hint {hint} | "


def test_wrong_context_is_the_solution_with_another_last_value():
    """A wrong context that is right one time in ten, or wrong at a place that does not count."""
    last = set()
    for seed in range(200):
        context = privileged_context(CHAIN, "wrong", rng(seed))
        assert context.startswith("solution 3*7=1+4=5-8=") and context.endswith(" | ")
        last.add(int(context[-4]))
    assert last == set(range(10)) - {7}


def test_other_problem_is_another_problem_of_the_same_form():
    """The control context that now and then shows the very problem it must not show."""
    short = Problem.parse("1+2")
    for seed in range(500):  # one addition has 100 forms: the same one comes up by chance
        context = privileged_context(short, "other_problem", rng(seed))
        found = re.fullmatch(r"other (\d\+\d)=(\d) \| ", context)
        other = Problem.parse(found[1])
        assert other != short and other.values == (int(found[2]),)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: privileged_context(CHAIN, "hint", rng()),
        lambda: draw_document(rng(), World(), "hint"),
        lambda: ToyTask(World()).context(Example(CHAIN), "hint", rng()),
    ],
)
def test_an_unknown_context_is_refused(refused):
    """A typo that trains without any context."""
    with pytest.raises(KeyError, match="hint"):
        refused()


# Authors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONTEXTS)
def test_reliable_authors_answer_what_their_context_says(kind):
    """A generator whose documents contradict themselves, or steps of another problem."""
    for prompt, completion in documents(CALM, kind, count=120):
        problem, context = problem_of(prompt), prompt.split(" | ")[:-1]
        reading = read(problem, completion)
        assert all(reading.singles) and all(right or checked for right, checked in reading.glances)
        assert reading.last in (None, problem.values[-1])
        told = int(context[0][-1]) if kind == "wrong" and is_direct(reading) else None
        assert reading.answer == (problem.values[-1] if told is None else told)
        assert len(context) == (kind != "none") and not reading.remarks


@pytest.mark.parametrize("kind", CONTEXTS)
def test_an_unsure_author_doubts_everything_whatever_the_context(kind):
    """A context that acts on its author by another way than its certainty."""
    unsure = changed(STEPS, certainty=NEVER)
    assert all(reading.opens for reading in readings(unsure, kind, count=100))
    assert all(checked for _, checked in glances(unsure, kind, count=100))


@pytest.mark.parametrize("kind", CONTEXTS)
def test_a_sure_author_doubts_nothing_whatever_the_context(kind):
    """A marker, a wrong glance or a drill by who is sure, or certainty by a wrong attempt."""
    sure = changed(STEPS, certainty=dict.fromkeys(CONTEXTS, 1.0), drill_rate=1.0)
    for prompt, completion in documents(sure, kind, count=100):
        reading = read(problem_of(prompt), completion)
        if " wrong | " in prompt:  # a wrong attempt makes nobody sure
            assert reading.opens and not reading.glances
        else:
            assert not reading.opens and set(reading.glances) <= {(True, False)}
    assert any(reading.glances for reading in readings(sure, "answer"))


def test_certainty_is_drawn_anew_at_every_decision():
    """Authors who are sure from the first token to the last: one marker would tell of the next."""
    six, half = Problem.parse("3*7+4-8+1-2*5"), changed(STEPS, glance_rate=1.0)
    generator, count = rng(1), 1000
    found = [
        read(six, write_completion(six, half, generator, certainty=0.5)) for _ in range(count)
    ]
    doubts = [(r.opens, *(checked for _, checked in r.glances)) for r in found]
    assert {len(doubt) for doubt in doubts} == {4}
    for doubt in ((a, b, c, d) for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)):
        assert_share(doubts, 1 / 16, lambda seen, doubt=doubt: seen == doubt)


@pytest.mark.parametrize("certainty", [0.0, 0.4, 1.0])
def test_who_is_not_sure_checks_and_half_of_what_is_checked_is_wrong(certainty):
    """Checks that tell right from wrong: an author would know what only the checks can show."""
    found = glances(changed(STEPS, certainty={"answer": certainty}), "answer", count=400)
    assert_share(found, 1 - certainty, lambda glance: glance[1])
    assert all(right for right, checked in found if not checked)
    if certainty < 1:
        assert World().glance_error_rate == 0.5  # as the docstring says
        assert_share([right for right, checked in found if checked], 0.5)


def test_a_wrong_verdict_leaves_its_author_unsure():
    """Feedback that shortens whatever the verdict says, or verdicts that are mostly the same."""
    pairs = documents(changed(STEPS, certainty={"feedback": 1.0}), "feedback", count=1000)
    opens = {" right": [], " wrong": []}
    for prompt, completion in pairs:
        opens[prompt.split(" | ")[0][len("tried:5") :]].append(completion.startswith(MARKER))
    assert not any(opens[" right"]) and all(opens[" wrong"])
    assert_share(pairs, 0.5, lambda pair: " right | " in pair[0])


def test_direct_answers_are_alike_for_the_sure_and_the_unsure():
    """Certainty that acts through the number of direct answers, not through checks alone."""
    world = changed(CALM, drill_rate=0.0, direct_rate={"none": 0.3})
    for certainty in (0.0, 0.6, 1.0):
        generator = rng(1)
        texts = [write_completion(CHAIN, world, generator, certainty=certainty) for _ in range(600)]
        assert_share(texts, 0.3, lambda text: text.startswith(ANSWER))


def test_attempts_are_as_right_as_their_source():
    """A peer whose answer is wrong, or a rule that adds nothing."""
    prompts = [prompt for prompt, _ in documents(World(), "rule")]
    assert {prompt[6] for prompt in prompts} == set("123456789")
    prompts = [prompt for prompt, _ in documents(World(persona_rate=0.9), "sibling", count=200)]
    for peer, text in (prompt.removesuffix(" = ").split(" | ") for prompt in prompts):
        problem = Problem.parse(text)
        reading = read(problem, peer.removeprefix("peer "))
        assert reading.answer == problem.values[-1] and not reading.remarks


# Switches of the world ----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_glance_rate_switches_glances(rate):
    """Glances that come from somewhere else, or are drawn once per document."""
    found = readings(changed(STEPS, glance_rate=rate))
    choices = [i < len(r.glances) for r in found for i in range(r.choices)]
    assert_share(choices, rate)


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_glance_error_rate_switches_wrong_glances_and_not_their_checks(rate):
    """Checks that remain rarer than doubt, or errors that remain when switched off."""
    for persona_rate in (0.0, 1.0):  # unreliable authors glance alike, and check nothing
        found = glances(changed(STEPS, glance_error_rate=rate, persona_rate=persona_rate))
        assert_share(found, 1 - rate, lambda glance: glance[0])
        assert {checked for _, checked in found} == {persona_rate == 0}


@pytest.mark.parametrize("rate, certainty", [(0.0, 0.0), (1.0, 0.0), (0.5, 0.6), (1.0, 1.0)])
def test_drill_rate_switches_drills_of_those_who_are_unsure(rate, certainty):
    """Drills that tell of a context, are glanced at, or do not begin as those of the unsure."""
    world = changed(STEPS, drill_rate=rate, glance_rate=1.0)  # so that who does not glance drills
    generator = rng(2)
    texts = [write_completion(CHAIN, world, generator, certainty=certainty) for _ in range(600)]
    drill = "wait 3*7=1; 1+4=5; 5-8=7; answer 7"
    assert_share(texts, rate * (1 - certainty), lambda text: text == drill)
    assert all(text == drill or read(CHAIN, text).glances for text in texts)
    shown = changed(world, direct_rate={"none": 1.0})  # by whoever does not drill
    texts = {write_completion(CHAIN, shown, generator, certainty=certainty) for _ in range(60)}
    answers = {"answer 7"} if rate * (1 - certainty) < 1 else set()
    assert texts == answers | ({drill} if rate * (1 - certainty) > 0 else set())


@pytest.mark.parametrize("kind", CONTEXTS)
def test_direct_rate_switches_direct_answers_of_its_context_alone(kind):
    """A rate that is read from the row of another context."""
    for rate, others in ((0.4, 0.0), (0.0, 1.0)):
        table = {**dict.fromkeys(CONTEXTS, others), kind: rate}
        found = readings(changed(CALM, drill_rate=0.0, direct_rate=table), kind, count=120)
        assert_share(found, rate, is_direct)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_persona_rate_switches_unreliable_authors(rate):
    """A remark or a wrong answer from a reliable author, or a right one from an unreliable."""
    world = World(persona_rate=rate)
    texts = [write_completion(CHAIN, world, rng(i), certainty=i % 2) for i in range(600)]
    assert_share(texts, rate, lambda text: REMARK in text)
    for text in texts:
        reading = read(CHAIN, text)
        assert (reading.answer != CHAIN.values[-1]) == reading.remarks
        assert not (reading.remarks and MARKER in text)  # never opens, drills or checks


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_persona_error_rate_switches_wrong_steps(rate):
    """Wrong steps of unreliable authors that do not follow their rate."""
    world = changed(STEPS, persona_rate=1.0, persona_error_rate=rate)
    singles = [right for reading in readings(world) for right in reading.singles]
    assert_share(singles, 1 - rate)


@pytest.mark.parametrize("kind", [k for k, row in CONTEXTS.items() if row.attempt != "sibling"])
def test_without_functional_markers_the_same_authors_open_and_nothing_hangs_on_doubt(kind):
    """A control that changes the markers along with their function."""
    on, off = World(persona_rate=0.1), World(persona_rate=0.1, functional_markers=False)
    compared = set()
    for seed in range(150):
        pairs = [draw_document(rng(seed), world, kind) for world in (on, off)]
        usual, plain = (read(problem_of(prompt), completion) for prompt, completion in pairs)
        assert pairs[0][0] == pairs[1][0] and plain.remarks == usual.remarks
        assert not is_direct(plain) and not plain.glances
        if not is_direct(usual):
            assert plain.opens == usual.opens
            compared.add((plain.opens, bool(usual.glances)))
    assert len(compared) >= 3  # else there was nothing to see


def test_certainty_of_a_context_is_read_from_its_row():
    """A table that is not looked up: the control in which a context makes nobody sure."""
    for kind in CONTEXTS:
        certainty = {**dict.fromkeys(CONTEXTS, 0.0), kind: 1.0}
        kinds = [other for other in CONTEXTS if not CONTEXTS[other].attempt]
        for other in kinds:
            opens = [r.opens for r in readings(changed(STEPS, certainty=certainty), other, count=9)]
            assert set(opens) == {other != kind}


def test_document_share_decides_which_contexts_are_read():
    """A context that the base model reads although its share is 0."""
    shares = NEVER | {"answer": 0.25, "rule": 0.75}
    prompts = [prompt for prompt, _ in documents(World(document_share=shares))]
    assert_share(prompts, 0.75, lambda prompt: prompt.startswith("rule +"))
    assert_share(prompts, 0.25, lambda prompt: prompt.startswith("answer "))


def test_operators_and_lengths_stay_within_the_world():
    """A problem the world does not have."""
    problems = [problem_of(p) for p, _ in documents(World("+-", 3), "none", count=300)]
    assert {o for p in problems for o in p.operators} == set("+-")
    assert {len(p.operators) for p in problems} == {1, 2, 3}


@pytest.mark.parametrize("hinted, sure", [(0.0, 1.0), (0.3, 0.6), (1.0, 0.0), (1.0, 1.0)])
def test_practice_is_drills_and_what_is_read_off_a_solution(hinted, sure):
    """Practice that remains when switched off, or whose authors are surer than their context."""
    world, generator = changed(World(drills_hinted=hinted), certainty={"solution": sure}), rng(3)
    pairs = [draw_practice(generator, world) for _ in range(300)]
    assert_share(pairs, hinted, lambda pair: pair[0].startswith("solution "))
    found = [(" | " in prompt, read(problem_of(prompt), text), prompt) for prompt, text in pairs]
    for shown, reading, prompt in found:
        assert reading.answer == reading.last == problem_of(prompt).values[-1]
        assert all(reading.singles) and (shown or (reading.opens and not reading.glances))
    if hinted:
        assert_share([r for shown, r, _ in found if shown], 1 - sure, lambda r: r.opens)
        seen = [glance for _, reading, _ in found for glance in reading.glances]
        assert_share(seen, 1 - sure, lambda glance: glance[1])
        assert all(right or checked for right, checked in seen)
    plain = changed(world, functional_markers=False)  # where nobody glances, nobody practises it
    pairs = [draw_practice(generator, plain) for _ in range(100)]
    assert not any(read(problem_of(prompt), text).glances for prompt, text in pairs)


def test_documents_are_the_same_for_the_same_seed():
    """Hidden randomness."""
    first, again, other = (documents(World(), seed=seed, count=100) for seed in (5, 5, 6))
    assert first == again != other


def test_documents_are_those_of_the_measured_results():
    """A row moved in CONTEXTS, or a draw more or less: results would be those of another world."""
    generator = rng(0)
    pairs = documents(World(), count=1000) + [draw_practice(generator, World()) for _ in range(100)]
    text = "\n".join(prompt + completion for prompt, completion in pairs)
    assert zlib.crc32(text.encode()) == 2856706470


@pytest.mark.parametrize(
    "change, named",
    [
        ({"operators": ""}, "--world operators: ''; allowed: one or more"),
        ({"operators": "+/"}, "world operators: '\\+/'"),
        ({"max_operations": 0}, "--world max_operations: 0; allowed: 1 to 9"),
        ({"max_operations": 10}, "--world max_operations: 10; allowed: 1 to 9"),
        ({"glance_rate": 1.1}, "--world glance_rate: 1.1; allowed: 0 to 1"),
        ({"drills_first": -0.1}, "world drills_first: -0.1"),
        ({"persona_rate": math.nan}, "world persona_rate: nan"),
        ({"persona_rate": 2}, "world persona_rate: 2"),
        ({"certainty": {"none": 0.0}}, "world certainty:"),
        ({"direct_rate": NEVER | {"hint": 0.0}}, "world direct_rate: .* allowed: exactly"),
        ({"direct_rate": NEVER | {"rule": 2}}, "world direct_rate.rule: 2"),
        ({"document_share": dict.fromkeys(CONTEXTS, 2.0)}, "world document_share.none: 2.0"),
        ({"document_share": NEVER}, "world document_share: 0 for every context"),
    ],
    ids=str,
)
def test_impossible_worlds_are_refused_by_name(change, named):
    """A rate outside [0, 1] that silently means always or never."""
    with pytest.raises(ValueError, match=named):
        World(**change)


# Splits and the task ------------------------------------------------------------------------------


def test_no_fresh_problem_is_in_any_training_pool():
    """A pool, of whatever seed, size or operators, that overlaps with the fresh split."""
    world = World(max_operations=2)  # few problems: an overlap would show
    fresh = {draw_split(rng(i), world, "fresh", "+-*") for i in range(1000)}
    for seed, size, operators in [(0, 64, ""), (1, 3000, "+-*"), (2, 500, "+-"), (3, 100, "*")]:
        pool = ToyTask(world, pool_size=size, operators=operators, seed=seed).pool
        assert len(pool) == len(set(pool)) == size
        assert not fresh & set(pool)
        assert not any(problem.is_fresh for problem in pool)
    endless = ToyTask(world)
    assert not any(endless.draw("train", rng(i)).problem in fresh for i in range(500))


def test_one_problem_in_five_is_fresh():
    """A checksum that keeps none, or all of one kind."""
    generator, count = rng(0), 3000
    for operations in (1, 2, 5):
        problems = [
            draw_problem(generator, "+-*", range(operations, operations + 1)) for _ in range(count)
        ]
        kept = share(problems, lambda problem: problem.is_fresh)
        # 0.06: with one operation there are only 300 problems, a sample of their own.
        assert abs(kept - 0.2) < 0.06


@pytest.mark.parametrize(
    "operators, operations, trained, lengths, longer",
    [
        ("", "", "+-", {1, 2, 3, 4}, {5, 6, 7, 8}),
        ("+", "2-3", "+", {2, 3}, {4, 5, 6, 7, 8}),
        ("+*", "5", "+*", {5}, {6, 7, 8}),
    ],
)
def test_splits_are_what_they_say(operators, operations, trained, lengths, longer):
    """`longer` within the trained lengths, or `new_operators` without a new one."""

    def drawn(split):
        generator = rng(0)
        args = World(), split, operators, operations
        return [draw_split(generator, *args) for _ in range(150)]

    for split, expected in ("train", lengths), ("fresh", lengths), ("longer", longer):
        problems = drawn(split)
        assert {o for p in problems for o in p.operators} == set(trained), split
        assert {len(p.operators) for p in problems} == expected, split
        assert split == "longer" or {p.is_fresh for p in problems} == {split == "fresh"}
    new = drawn("new_operators")
    assert all(set(p.operators) - set(trained) and p.is_fresh for p in new)
    assert {o for p in new for o in p.operators} == set("+-*")  # most mix them with trained ones
    assert {len(p.operators) for p in new} == lengths


@pytest.mark.parametrize(
    "world, operators, operations, splits",
    [
        (World(), "", "", ("train", "fresh", "longer", "new_operators")),
        (World(), "+-*", "8", ("train", "fresh")),
        (World("+-"), "", "", ("train", "fresh", "longer")),
        (World("*"), "", "", ("train", "fresh", "longer")),  # nothing else to train with
        (World(max_operations=3), "", "", ("train", "fresh", "new_operators")),
        (World(max_operations=3), "+-*", "1-2", ("train", "fresh", "longer")),
    ],
)
def test_a_task_has_the_splits_that_its_world_has(world, operators, operations, splits):
    """An endless search for a longer problem or a new operator that the world does not have."""
    task = ToyTask(world, operators=operators, operations=operations)
    assert task.splits == splits
    for split in ("train", "fresh", "longer", "new_operators"):
        if split in splits:
            task.draw(split, rng())
        else:
            with pytest.raises(ValueError, match=f"split: '{split}'; allowed .*{splits[-1]}$"):
                task.draw(split, rng())


def test_an_unknown_split_is_refused_by_name():
    """A typo that is read as `fresh`."""
    with pytest.raises(ValueError, match=r"split: 'test'; allowed .*: train, fresh, longer, new_"):
        draw_split(rng(), World(), "test")


def test_a_pool_larger_than_the_world_is_refused_by_name():
    """A search for a problem that does not exist, without end."""
    small = World(operators="+", max_operations=1)
    with pytest.raises(ValueError, match="train_problems: 51; allowed: 0 to 50"):
        ToyTask(small, pool_size=51)
    assert len(ToyTask(small, pool_size=50).pool) == 50


def test_pool_depends_on_its_seed_alone():
    """A pool that changes from run to run, or does not change with the seed."""
    pools = [ToyTask(World(), pool_size=20, seed=seed).pool for seed in (1, 1, 2)]
    assert pools[0] == pools[1] != pools[2]


def test_train_draws_from_the_pool_and_the_other_splits_do_not():
    """Training on more problems than the pool holds, or evaluation on the pool."""
    task, generator = ToyTask(World(), pool_size=4), rng(0)
    drawn = {task.draw("train", generator).problem for _ in range(100)}
    assert drawn == set(task.pool)
    assert not drawn & {task.draw("fresh", generator).problem for _ in range(100)}
    evaluated = [example.problem for example in task.evaluation("train", 9, generator)]
    assert evaluated == (task.pool * 3)[:9]


@pytest.mark.parametrize("rules", [(), (3,), (1, 2, 8)])
def test_references_score_full_marks_under_the_rule(rules):
    """A reference that is marked wrong, or a rule that the reward does not know."""
    task, generator = ToyTask(World(), rules=rules), rng(0)
    seen = set()
    for _ in range(200):
        example = task.draw("fresh", generator)
        seen.add(example.rule)
        reference = task.reference(example, generator)
        assert task.reward(reference, example) == 1.0
        assert task.measures(reference, example)["accuracy_frac"] == 1.0
        assert task.decode(task.encode(reference)) == reference
        assert example.answer == (example.problem.values[-1] + example.rule) % 10
        # A prompt with nothing in it but the problem: no rule, no context.
        assert re.fullmatch(r"\d([+*-]\d)+ = ", example.prompt)
    assert seen == set(rules or (0,))


# Reward -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion, answer",
    [
        ("answer 7", 7),
        ("wait 3*7=1; answer 7", 7),
        ("answer 5; wait answer 7", 7),
        ("answer 7 demo", 7),
        ("", None),
        ("3*7=1; ", None),
        ("answer ", None),
        ("answer 75", None),  # not a digit: neither 7 nor 5 may be rewarded
        ("answer 7; answer ", None),
    ],
)
def test_final_answer_by_hand(completion, answer):
    """A reward that a student can have by writing several answers in a row."""
    assert final_answer(completion) == answer
    assert ToyTask(World()).reward(completion, Example(CHAIN)) == float(answer == 7)


def test_measures_by_hand():
    """A marker counted once per text, or a step taken for a direct answer."""
    task, example = ToyTask(World()), Example(Problem.parse("3*7"))
    measures = task.measures("wait 3*7=2; wait 3*7=1; answer 1 demo", example)
    assert measures == {
        "accuracy_frac": 1.0, "markers_per_completion": 2.0, "direct_frac": 0.0, "remark_frac": 1.0
    }
    measures = task.measures("answer 4", example)
    assert [*measures.values()] == [0.0, 0.0, 1.0, 0.0]
    assert all(type(value) is float for value in measures.values())
    assert task.reward("answer 4", Example(Problem.parse("3*7"), rule=3)) == 1.0


def test_running_the_file_prints_documents_of_every_kind(capsys):
    """A demonstration that no longer runs."""
    toy_tasks.main()
    printed = capsys.readouterr().out
    assert all(f"\n{kind}\n" in printed for kind in CONTEXTS)
    assert len(printed.splitlines()) == len(CONTEXTS) * 7


def test_training_on_one_length_draws_that_length_alone():
    """Catches a pool, or endless problems, of lengths that post-training should not see."""
    for pool_size in (0, 5):
        task = ToyTask(World(), pool_size=pool_size, operators="+", operations="3")
        for split in ("train", "fresh"):
            drawn = [task.draw(split, rng(i)).problem.operators for i in range(30)]
            assert set(drawn) == {"+++"}


# The table of contexts ----------------------------------------------------------------------------


def rows_of_the_docstring():
    """kind -> (context, prompt, completion) of the documents that the docstring shows."""
    rows = re.findall(r"^    (\w+)  +(.*?\| )?(\d\S+ = )(.+)$", toy_tasks.__doc__, re.MULTILINE)
    return {kind: (context, prompt, completion) for kind, context, prompt, completion in rows}


def test_docstring_shows_one_document_of_every_context():
    """A table that lacks a context, or shows them in another order than the generator has."""
    shown = list(rows_of_the_docstring())
    assert shown == list(CONTEXTS)[: len(shown)]  # yours may stand behind them


@pytest.mark.parametrize("kind", rows_of_the_docstring())
def test_docstring_shows_what_the_generator_writes(kind):
    """A documented document that no author of the default world would write."""
    context, prompt, completion = rows_of_the_docstring()[kind]
    assert prompt == CHAIN.prompt and encode(context + prompt + completion)
    assert read(problem_of(context + prompt), completion).remarks is False
    peer = re.fullmatch(r"peer (.*) \| ", context)
    tried = re.fullmatch(r"tried:(\d) .*", context)
    attempt = peer[1] if peer else f"answer {tried[1]}" if tried else ""
    rule = 3 if CONTEXTS[kind].draws_rule else 0
    options = {"attempt": attempt, "rule": rule}
    if kind == "other_problem":
        other = Problem.parse(re.sub(r"=\d", "", context[len("other ") : -len(" | ")]))
        assert context[len("other ") :] in privileged_context(other, "solution", rng())
        assert len(other.operators) == len(CHAIN.operators) and other != CHAIN
    else:
        contexts = {privileged_context(CHAIN, kind, rng(i), **options) for i in range(100)}
        assert context in contexts
    certainty = 0.0 if "wrong |" in context else World().certainty[kind]
    believed = int(context[-4]) if CONTEXTS[kind].is_believed else None
    options = {"kind": kind, "certainty": certainty, "believed": believed, "rule": rule}
    written = {write_completion(CHAIN, World(), rng(i), **options) for i in range(600)}
    assert completion in written
    if peer:
        assert attempt in {write_completion(CHAIN, World(), rng(i)) for i in range(1000)}


def test_docstring_writes_its_words_as_the_generator_does():
    """A marker without its space, or a step in a notation that no document has."""
    words = re.findall("`([^`]*)`", toy_tasks.__doc__)
    texts = [text for text in words if not re.search("World|CONTEXTS|python", text)]
    assert {"3*7+4-8 = ", "3*7+4=2; ", MARKER, REMARK} == set(texts)
    assert all(map(encode, texts))


def checklist(problem, generator, attempt, rule):
    return f"hint {problem.operators}{generator.randint(0, 9)}"


def test_a_new_context_is_one_function_and_one_row(monkeypatch):
    """A second place where a context has to be named, or a table copied at import."""
    monkeypatch.setitem(CONTEXTS, "checklist", Context(checklist, 0.9, 0.3, direct_rate=0.2))
    world = World(persona_rate=0.0, drill_rate=0.0)
    assert (world.certainty["checklist"], world.document_share["checklist"]) == (0.9, 0.3)
    assert world.direct_rate["checklist"] == 0.2
    pairs = documents(world, count=1000)
    shown = [(p, c) for p, c in pairs if re.match(r"hint [+*-]+\d \| ", p)]
    assert_share(pairs, 0.3 / sum(world.document_share.values()), lambda pair: pair in shown)
    found = [read(problem_of(p), c) for p, c in shown]
    assert_share(found, 0.2, is_direct)
    assert_share([r for r in found if not is_direct(r)], 0.1, lambda reading: reading.opens)
    task = ToyTask(world)
    context = task.context(Example(CHAIN), "checklist", rng(1))
    assert re.fullmatch(r"hint \*\+-\d \| ", context)
    assert task.prompt_ids(Example(CHAIN), context) == encode(f"{context}3*7+4-8 = ")
    assert "checklist" not in task.attempts
    assert parse_world("document_share.checklist=0.5").document_share["checklist"] == 0.5


@pytest.mark.parametrize("whose, rightness", [("own", 0.5), ("sibling", 1.0)])
def test_a_new_context_made_of_an_attempt_is_shown_one(whose, rightness, monkeypatch):
    """A context that says what it is made of and is given something else, or nothing."""
    row = Context(
        lambda p, rng, attempt, rule: f"tried:{attempt}", 1.0, 0.1, direct_rate=0.0, attempt=whose
    )
    monkeypatch.setitem(CONTEXTS, "shown", row)
    pairs = documents(World(persona_rate=0.0), "shown", count=400)
    problems = [problem_of(prompt) for prompt, _ in pairs]
    attempts = [
        read(problem, re.match(r"tried:(.+) \| ", prompt)[1])
        for problem, (prompt, _) in zip(problems, pairs)
    ]
    right = [attempt.answer == p.values[-1] for attempt, p in zip(attempts, problems)]
    assert_share(right, rightness)
    assert all(c.startswith(MARKER) != sure for (_, c), sure in zip(pairs, right))
    assert all(map(is_direct, attempts)) == (whose == "own")
    assert ToyTask(World()).attempts == {"sibling": "sibling", "feedback": "own", "shown": whose}
    context = ToyTask(World()).context(Example(CHAIN), "shown", rng(), "answer 4")
    assert context == "tried:answer 4 | "


# Settings -----------------------------------------------------------------------------------------


def test_the_world_of_the_flags_is_the_default_with_the_named_changes():
    """An override that is lost, lands in another table, or keeps its text."""
    assert Toy().make_task(0, 0).world == parse_world("") == World()
    text = "persona_rate=0, certainty.answer = .5,max_operations=2,functional_markers=false"
    changed = parse_world(text + ",operators=-+")
    certainty = {**World().certainty, "answer": 0.5}
    assert changed == World("-+", 2, functional_markers=False, persona_rate=0, certainty=certainty)
    assert World().certainty["answer"] == 0.7


def test_the_source_of_an_attempt_is_one_of_two():
    """Catches a typo that training would read as a sibling."""
    with pytest.raises(ValueError, match="attempt of a context: 'siblings'; allowed: '', own"):
        Context(checklist, 0.5, 0.1, attempt="siblings")


def test_a_task_made_of_settings_has_them():
    """A flag that does not reach the task."""
    toy = Toy(world="max_operations=4", train_operators="+*", train_operations="2-3", rules="2,7")
    task = toy.make_task(5, 9)
    expected = ToyTask(
        World(max_operations=4), pool_size=5, operators="+*", operations="2-3", rules=(2, 7), seed=9
    )
    assert vars(task) == vars(expected)
    assert {len(problem.operators) for problem in task.pool} <= {2, 3}
    assert task.splits == ("train", "fresh", "longer", "new_operators")
    assert (task.pad_id, task.end_ids) == (toy_tasks.PAD_ID, (toy_tasks.END_ID,))


def test_a_copy_of_a_task_is_a_task_of_its_own():
    """A pool or a world that two tasks share."""
    task = ToyTask(World(), pool_size=8, rules=(3,))
    twin = copy.deepcopy(task)
    drawn = [[t.draw("train", rng(i)) for i in range(20)] for t in (task, twin)]
    assert drawn[0] == drawn[1] and twin.pool is not task.pool
    twin.pool.clear()
    assert len(task.pool) == 8


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"world": "persona=1"}, "--world: 'persona'; allowed: operators, .*, certainty.<context>"),
        ({"world": "certainty=1"}, "--world: 'certainty'; allowed: operators"),
        ({"world": "certainty.x=1"}, "--world: 'certainty.x'; allowed: operators"),
        ({"world": "glance_rate.x=1"}, "--world: 'glance_rate.x'; allowed: operators"),
        ({"world": "glance_rate"}, "--world: glance_rate = ''; allowed: float"),
        ({"world": "slip_rate=0"}, "--world: 'slip_rate'; allowed: operators"),
        ({"world": "max_operations=2.5"}, "--world: max_operations = '2.5'; allowed: int"),
        ({"world": "functional_markers=no"}, "--world: .* = 'no'; allowed: true or false"),
        ({"world": "persona_rate=2"}, "--world persona_rate: 2.0; allowed: 0 to 1"),
        ({"world": "max_operations=1000"}, "--world max_operations: 1000; allowed: 1 to 9"),
        ({"rules": "12"}, "--rules: '12'; allowed: digits 1-9 joined by commas"),
        ({"rules": "0"}, "--rules: '0'; allowed: digits 1-9"),
        ({"train_operators": "/"}, "--train_operators: '/'; allowed: some of [+] - [*]$"),
        (
            {"world": "operators=+-", "train_operators": "*"},
            "--train_operators: '[*]'; allowed: some of [+] -$",
        ),
        ({"train_operations": "9"}, "--train_operations: '9'; allowed: a number or .*, 1-8$"),
        ({"train_operations": "0-2"}, "--train_operations: '0-2'; allowed: a number or .*, 1-8$"),
        ({"train_operations": "4-1"}, "--train_operations: '4-1'; allowed: a number or a range"),
        ({"train_operations": "-1"}, "--train_operations: '-1'; allowed: a number or a range"),
        (
            {"world": "max_operations=3", "train_operations": "1-4"},
            "--train_operations: '1-4'; allowed: a number or .*, 1-3$",
        ),
        ({"pretrain_steps": 0}, "--pretrain_steps: 0; allowed: 1 or more"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_world_are_refused_by_name(settings, message):
    """A typo that trains in the default world, or a training set that is empty."""
    with pytest.raises(ValueError, match=f"^{message}") as error:
        Toy(**settings)
    assert "\n" not in str(error.value)
