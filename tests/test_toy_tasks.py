"""Laws of the toy world: its arithmetic, its contexts, its splits, and its switches.

Shares are compared with their exact values within four standard errors, from seeded generators.
"""

import copy
import dataclasses
import math
import random
import re
import zlib

import pytest

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
    check_context,
    decode,
    draw_document,
    draw_problem,
    draw_split,
    encode,
    final_answer,
    parse_world,
    privileged_context,
    write_completion,
)

CHAIN = Problem.parse("3*7+4-8")
CALM = World(persona_rate=0.0, slip_rate=0.0)  # nothing random but direct or careful


def rng(seed=0):
    return random.Random(seed)


def documents(world, kind=None, count=600, seed=0):
    generator = rng(seed)
    return [draw_document(generator, world, kind) for _ in range(count)]


def completions(world, kind="none", **options):
    return [completion for _, completion in documents(world, kind, **options)]


def share(items, condition):
    return sum(map(bool, map(condition, items))) / len(items)


def assert_share(observed, expected, count):
    standard_error = math.sqrt(expected * (1 - expected) / count)
    assert abs(observed - expected) <= 4 * standard_error, (observed, expected)


def is_direct(completion):
    return completion.startswith(ANSWER)


def with_certainty(world, **changes):
    return dataclasses.replace(world, certainty={**world.certainty, **changes})


# Arithmetic and text ------------------------------------------------------------------------------


def test_chains_are_worked_from_left_to_right_modulo_ten():
    """Precedence of * over +, or a negative remainder."""
    assert CHAIN.values == (1, 5, 7)  # 3*7=21 -> 1, 1+4=5, 5-8=-3 -> 7
    assert Problem.parse("2+3*4").values == (5, 0)
    assert Problem.parse("0-9").values == (1,)
    assert CHAIN.prompt == "3*7+4-8 = " and CHAIN.text == "3*7+4-8"


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
        ("partial", {}, "hint 1 | "),
        ("solution", {}, "solution 1,5,7 | "),
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


def test_wrong_context_is_the_solution_with_another_last_value():
    """A wrong context that is right one time in ten, or wrong at a place that does not count."""
    last = set()
    for seed in range(200):
        context = privileged_context(CHAIN, "wrong", rng(seed))
        assert context.startswith("solution 1,5,") and context.endswith(" | ")
        last.add(int(context[-4]))
    assert last == set(range(10)) - {7}


def test_other_problem_is_another_problem_of_the_same_form():
    """The control context that now and then shows the very problem it must not show."""
    short = Problem.parse("1+2")
    for seed in range(500):  # one addition has 100 forms: the same one comes up by chance
        context = privileged_context(short, "other_problem", rng(seed))
        found = re.fullmatch(r"other (\d\+\d) = (\d) \| ", context)
        other = Problem.parse(found[1])
        assert other != short and other.values == (int(found[2]),)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: privileged_context(CHAIN, "hint", rng()),
        lambda: draw_document(rng(), World(), "hint"),
        lambda: ToyTask(World()).context(Example(CHAIN), "hint", rng()),
        lambda: check_context(Toy(), {"solution", "hint"}, True),
    ],
)
def test_unknown_context_is_refused_by_name(refused):
    """A typo that trains without any context."""
    with pytest.raises(ValueError, match="--context: 'hint'; allowed: none, partial"):
        refused()


@pytest.mark.parametrize("kind", CONTEXTS)
def test_documents_of_reliable_authors_answer_what_their_context_says(kind):
    """A generator whose documents contradict themselves."""
    world = dataclasses.replace(World(), persona_rate=0.0)
    for prompt, completion in documents(world, kind, count=200):
        *context, text = prompt.removesuffix(" = ").split(" | ")
        truth = Problem.parse(text).values[-1]
        if kind == "rule":
            truth = (truth + int(context[0].removeprefix("rule +"))) % 10
        if kind == "wrong" and is_direct(completion):
            truth = int(context[0][-1])  # who answers directly repeats the last value shown
        assert final_answer(completion) == truth
        assert len(context) == (kind != "none")


def test_written_steps_are_the_steps_of_the_problem():
    """Steps that do not follow from the value before, or a slip that is carried on."""
    for prompt, completion in documents(World(persona_rate=0.0, slip_rate=0.4), "none", count=300):
        if is_direct(completion):
            continue
        problem = Problem.parse(prompt.removesuffix(" = "))
        kept = re.sub(r"\d.\d=\d; wait ", "", completion).removeprefix(MARKER)
        before = (problem.digits[0], *problem.values)
        steps = zip(before, problem.operators, problem.digits[1:], problem.values)
        written = "".join(f"{a}{o}{b}={c}; " for a, o, b, c in steps)
        assert kept == f"{written}{ANSWER}{problem.values[-1]}"


# Switches of the world ----------------------------------------------------------------------------


def test_direct_answers_come_at_their_rate():
    """A rate that ignores the number of operations, or certainty applied to the careful share."""
    world = dataclasses.replace(CALM, direct_slope=0.25, direct_floor=0.1)
    count = 800
    for text, unaided in [("1+2", 0.75), ("1+2+3", 0.5), ("1+2+3+4+5+6", 0.1)]:
        for certainty in (0.0, 0.6):
            generator = rng(1)
            texts = [
                write_completion(Problem.parse(text), world, generator, certainty=certainty)
                for _ in range(count)
            ]
            expected = unaided + certainty * (1 - unaided)
            assert_share(share(texts, is_direct), expected, count)


def test_direct_floor_and_slope_switch_direct_answers_off_and_on():
    """Direct answers that come from somewhere else than the two fields."""
    never = dataclasses.replace(CALM, direct_slope=1.0, direct_floor=0.0)
    always = dataclasses.replace(CALM, direct_floor=1.0)
    assert not any(map(is_direct, completions(never)))
    assert all(map(is_direct, completions(always)))


def test_certainty_zero_makes_a_context_like_none():
    """A context that shortens its author's answer by another way than its certainty."""
    flat = dataclasses.replace(World(), certainty=dict.fromkeys(CONTEXTS, 0.0))
    count = 1500
    base = share(completions(flat, "none", count=count), is_direct)
    for seed, kind in enumerate([*CONTEXTS][1:], start=1):
        observed = share(completions(flat, kind, count=count, seed=seed), is_direct)
        difference = math.sqrt(2 * base * (1 - base) / count)
        assert abs(observed - base) <= 4 * difference, kind


def test_certainty_one_makes_every_reliable_author_direct():
    """A certainty that only scales the rate of the unaided author."""
    assert all(map(is_direct, completions(with_certainty(World(), answer=1.0), "answer")))


def test_certainty_shrinks_hesitation_and_slips_of_the_careful():
    """An author who knows the answer and still hesitates like one who does not."""
    world = dataclasses.replace(World(), persona_rate=0.0, direct_slope=1.0, direct_floor=0.0)
    generator, count = rng(3), 1000
    texts = [write_completion(CHAIN, world, generator, certainty=0.4) for _ in range(count)]
    careful = [text for text in texts if not is_direct(text)]
    assert_share(share(texts, is_direct), 0.4, count)
    assert_share(share(careful, lambda x: x.startswith(MARKER)), 0.6, len(careful))
    assert not any(MARKER in x for x in careful if not x.startswith(MARKER))


def test_hesitation_rate_switches_the_opening_marker():
    """An opening marker that is not tied to its rate, or a rate that touches corrections."""
    for rate in (0.0, 0.3, 1.0):
        world = dataclasses.replace(CALM, hesitation_rate=rate)
        careful = [x for x in completions(world) if not is_direct(x)]
        assert_share(share(careful, lambda x: x.startswith(MARKER)), rate, len(careful))
    slips_only = World(persona_rate=0.0, hesitation_rate=0.0, slip_rate=0.5)
    careful = [x for x in completions(slips_only) if not is_direct(x)]
    assert not any(x.startswith(MARKER) for x in careful) and any(MARKER in x for x in careful)


def test_slip_rate_switches_slips():
    """Slips at another rate per step, or slips that remain when switched off."""
    for rate in (0.0, 0.2):
        world = World(persona_rate=0.0, slip_rate=rate, direct_slope=1.0, direct_floor=0.0)
        generator, count = rng(4), 500
        texts = [write_completion(CHAIN, world, generator) for _ in range(count)]
        slips = sum(x.count(MARKER) - 1 for x in texts)  # each careful text opens with one
        assert_share(slips / (3 * count), rate, 3 * count)


def test_persona_rate_switches_unreliable_authors():
    """A remark or a wrong answer from a reliable author, or a right one from an unreliable."""
    for rate in (0.0, 0.3, 1.0):
        texts = [write_completion(CHAIN, World(persona_rate=rate), rng(i)) for i in range(600)]
        assert_share(share(texts, lambda x: REMARK in x), rate, 600)
        for text in texts:
            wrong = final_answer(text) != CHAIN.values[-1]
            assert wrong == (REMARK in text)
            assert not (wrong and MARKER in text)  # never hesitates, never corrects


def test_persona_slip_rate_switches_wrong_steps():
    """Wrong steps of unreliable authors that do not follow their rate."""
    for rate in (0.0, 0.5):
        world = World(persona_rate=1.0, persona_slip_rate=rate, direct_slope=1, direct_floor=0.0)
        texts = [write_completion(CHAIN, world, rng(i)) for i in range(600)]
        first = [text.startswith("3*7=1; ") for text in texts]
        assert_share(sum(first) / 600, 1 - rate, 600)


def test_functional_markers_off_keeps_the_markers_and_ends_direct_answers():
    """A control that changes the markers along with their function."""
    on, off = World(), World(functional_markers=False)
    count = 1500
    for kind in ("none", "solution", "answer"):
        marked = [
            share(completions(world, kind, count=count, seed=seed), lambda x: MARKER in x)
            for seed, world in enumerate((on, off))
        ]
        spread = math.sqrt(2 * max(marked[0] * (1 - marked[0]), 0.01) / count)
        assert abs(marked[0] - marked[1]) <= 4 * spread, kind
        assert any(map(is_direct, completions(on, kind)))
        assert not any(map(is_direct, completions(off, kind)))


def test_a_wrong_verdict_leaves_its_author_as_unsure_as_none():
    """Feedback that shortens whatever the verdict says."""
    world = with_certainty(CALM, feedback=1.0)
    pairs = documents(world, "feedback", count=1500)
    right = [c for p, c in pairs if " right | " in p]
    wrong = [c for p, c in pairs if " wrong | " in p]
    assert len(right) + len(wrong) == 1500
    assert_share(len(right) / 1500, 0.5, 1500)
    assert all(map(is_direct, right))
    rates = [world.direct_rate(n, 0.0) for n in range(1, world.max_operations + 1)]
    assert_share(share(wrong, is_direct), sum(rates) / len(rates), len(wrong))


def test_document_share_decides_which_contexts_are_read():
    """A context that the base model reads although its share is 0."""
    shares = {**dict.fromkeys(CONTEXTS, 0.0), "answer": 0.25, "rule": 0.75}
    prompts = [p for p, _ in documents(World(document_share=shares))]
    assert_share(share(prompts, lambda p: p.startswith("rule +")), 0.75, 600)
    assert_share(share(prompts, lambda p: p.startswith("answer ")), 0.25, 600)


def test_operators_and_lengths_stay_within_the_world():
    """A problem the world does not have."""
    world = World(operators="+-", max_operations=3)
    problems = [draw_split(rng(i), world, "train") for i in range(300)]
    assert {o for p in problems for o in p.operators} == set("+-")
    assert {len(p.operators) for p in problems} == {1, 2, 3}


def test_documents_are_the_same_for_the_same_seed():
    """Hidden randomness."""
    assert documents(World(), seed=5) == documents(World(), seed=5) != documents(World(), seed=6)


def test_documents_are_those_of_the_measured_results():
    """A row moved in CONTEXTS, or a draw more or less: results would be those of another world."""
    text = "\n".join(prompt + completion for prompt, completion in documents(World(), count=1000))
    assert zlib.crc32(text.encode()) == 1222935174


def test_documents_draw_their_rule_among_nine_and_their_siblings_from_the_reliable():
    """A rule that adds nothing, or a peer whose answer is wrong."""
    prompts = [prompt for prompt, _ in documents(World(), "rule")]
    assert {prompt[6] for prompt in prompts} == set("123456789")
    prompts = [prompt for prompt, _ in documents(World(persona_rate=0.9), "sibling")]
    for peer, text in (prompt.removesuffix(" = ").split(" | ") for prompt in prompts):
        assert final_answer(peer) == Problem.parse(text).values[-1] and REMARK not in peer


@pytest.mark.parametrize(
    "change, named",
    [
        ({"operators": ""}, "--world operators: ''; allowed: one or more"),
        ({"operators": "+/"}, "world operators: '\\+/'"),
        ({"max_operations": 0}, "world max_operations: 0"),
        ({"slip_rate": 1.1}, "--world slip_rate: 1.1; allowed: 0 to 1"),
        ({"direct_floor": -0.1}, "world direct_floor: -0.1"),
        ({"persona_rate": math.nan}, "world persona_rate: nan"),
        ({"certainty": {"none": 0.0}}, "world certainty:"),
        ({"document_share": dict.fromkeys(CONTEXTS, 2.0)}, "world document_share.none: 2.0"),
    ],
)
def test_impossible_worlds_are_refused_by_name(change, named):
    """A rate outside [0, 1] that silently means always or never."""
    with pytest.raises(ValueError, match=named):
        World(**change)


# Splits and the task ------------------------------------------------------------------------------


def test_no_fresh_problem_is_in_any_training_pool():
    """A pool, of whatever seed, size or operators, that overlaps with the fresh split."""
    world = World(max_operations=2)  # few problems: an overlap would show
    fresh = {draw_split(rng(i), world, "fresh") for i in range(2000)}
    for seed, size, operators in [(0, 64, ""), (1, 3000, ""), (2, 500, "+-"), (3, 700, "*")]:
        if operators == "*":
            size = 100
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


def test_splits_are_what_they_say():
    """`longer` within the trained lengths, or `new_operators` mixed with trained ones."""
    world = World()
    longer = [draw_split(rng(i), world, "longer") for i in range(100)]
    assert {len(p.operators) for p in longer} == {7, 8}
    new = [draw_split(rng(i), world, "new_operators", "+-") for i in range(100)]
    assert {o for p in new for o in p.operators} == {"*"} and all(p.is_fresh for p in new)
    trained = [draw_split(rng(i), world, "fresh", "+-") for i in range(100)]
    assert {o for p in trained for o in p.operators} == {"+", "-"}
    assert {len(p.operators) for p in trained} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    "split, named",
    [("new_operators", "training already uses all of"), ("test", "split: 'test'; allowed: train")],
)
def test_impossible_splits_are_refused_by_name(split, named):
    """An endless search, or a typo that is read as `fresh`."""
    with pytest.raises(ValueError, match=named):
        draw_split(rng(), World(), split)


def test_a_pool_larger_than_the_world_is_refused_by_name():
    """A search for a problem that does not exist, without end."""
    small = World(operators="+", max_operations=1)
    with pytest.raises(ValueError, match="train_problems: 100; allowed: 0 to 50"):
        ToyTask(small, pool_size=100)
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
        task = ToyTask(World(), pool_size=pool_size, operators="+", operations=3)
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
    peer = re.fullmatch(r"peer (.*) \| ", context)
    tried = re.fullmatch(r"tried:(\d) .*", context)
    attempt = peer[1] if peer else f"answer {tried[1]}" if tried else ""
    rule = 3 if CONTEXTS[kind].draws_rule else 0
    options = {"attempt": attempt, "rule": rule}
    if kind == "other_problem":
        shown = re.fullmatch(r"other (\S+) = (\S+) \| ", context)
        other = Problem.parse(shown[1])
        assert ",".join(map(str, other.values)) == shown[2] and other != CHAIN
        assert len(other.operators) == len(CHAIN.operators)
    else:
        contexts = {privileged_context(CHAIN, kind, rng(i), **options) for i in range(100)}
        assert context in contexts
    certainty = 0.0 if "wrong |" in context else World().certainty[kind]
    believed = int(context[-4]) if CONTEXTS[kind].is_believed else None
    options = {"certainty": certainty, "believed": believed, "rule": rule}
    written = {write_completion(CHAIN, World(), rng(i), **options) for i in range(1000)}
    assert completion in written
    if peer:
        assert attempt in {write_completion(CHAIN, World(), rng(i)) for i in range(1000)}


def checklist(problem, generator, attempt, rule):
    return f"hint {problem.operators}{generator.randint(0, 9)}"


def test_a_new_context_is_one_function_and_one_row(monkeypatch):
    """A second place where a context has to be named, or a table copied at import."""
    monkeypatch.setitem(CONTEXTS, "checklist", Context(checklist, 0.9, 0.3))
    world = World(persona_rate=0.0, direct_slope=1.0, direct_floor=0.0)
    assert world.certainty["checklist"] == 0.9 and world.document_share["checklist"] == 0.3
    pairs = documents(world, count=1000)
    shown = [c for p, c in pairs if re.match(r"hint [+*-]+\d \| ", p)]
    assert_share(len(shown) / 1000, 0.3 / sum(world.document_share.values()), 1000)
    assert_share(share(shown, is_direct), 0.9, len(shown))
    task = ToyTask(world)
    context = task.context(Example(CHAIN), "checklist", rng(1))
    assert re.fullmatch(r"hint \*\+-\d \| ", context)
    assert task.prompt_ids(Example(CHAIN), context) == encode(f"{context}3*7+4-8 = ")
    assert "checklist" not in task.attempts
    assert parse_world("document_share.checklist=0.5").document_share["checklist"] == 0.5
    check_context(Toy(), {"checklist"}, True)
    with pytest.raises(ValueError, match=r"--context: 'chess'; allowed: .*, checklist$"):
        check_context(Toy(), {"chess"}, True)


@pytest.mark.parametrize("whose, certainty", [("own", 0.5), ("sibling", 1.0)])
def test_a_new_context_made_of_an_attempt_is_shown_one(whose, certainty, monkeypatch):
    """A context that says what it is made of and is given something else, or nothing."""
    row = Context(lambda p, rng, attempt, rule: f"tried:{attempt}", 1.0, 0.1, whose)
    monkeypatch.setitem(CONTEXTS, "shown", row)
    calm = World(persona_rate=0.0, slip_rate=0.0)
    pairs = documents(calm, "shown", count=800)
    attempts = [re.match(r"tried:(.+) \| ", prompt)[1] for prompt, _ in pairs]
    texts = [prompt.split(" | ")[-1].removesuffix(" = ") for prompt, _ in pairs]
    right = [final_answer(a) == Problem.parse(t).values[-1] for a, t in zip(attempts, texts)]
    assert_share(sum(right) / 800, certainty, 800)
    assert all(is_direct(c) for (_, c), sure in zip(pairs, right) if sure)
    assert all(map(is_direct, attempts)) == (whose == "own")
    assert ToyTask(World()).attempts == {"sibling": "sibling", "feedback": "own", "shown": whose}
    context = ToyTask(World()).context(Example(CHAIN), "shown", rng(), "answer 4")
    assert context == "tried:answer 4 | "


def test_the_source_of_an_attempt_is_one_of_two():
    """A typo that training would read as a sibling."""
    with pytest.raises(ValueError, match="attempt of a context: 'siblings'; allowed: '', own"):
        Context(checklist, 0.5, 0.1, "siblings")


# Settings -----------------------------------------------------------------------------------------


def test_the_world_of_the_flags_is_the_default_with_the_named_changes():
    """An override that is lost, lands in another table, or keeps its text."""
    assert Toy().make_task(0, 0).world == parse_world("") == World()
    text = "persona_rate=0, certainty.answer = .5,max_operations=2,functional_markers=false"
    changed = parse_world(text + ",operators=-+")
    certainty = {**World().certainty, "answer": 0.5}
    assert changed == World("-+", 2, functional_markers=False, persona_rate=0, certainty=certainty)
    assert World().certainty["answer"] == 0.7


def test_a_task_made_of_settings_has_them():
    """A flag that does not reach the task."""
    toy = Toy(world="max_operations=4", train_operators="+-", train_operations=3, rules="2,7")
    task = toy.make_task(5, 9)
    expected = ToyTask(
        World(max_operations=4), pool_size=5, operators="+-", operations=3, rules=(2, 7), seed=9
    )
    assert vars(task) == vars(expected)
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
        ({"world": "slip_rate.x=1"}, "--world: 'slip_rate.x'; allowed: operators"),
        ({"world": "slip_rate"}, "--world: slip_rate = ''; allowed: float"),
        ({"world": "max_operations=2.5"}, "--world: max_operations = '2.5'; allowed: int"),
        ({"world": "functional_markers=no"}, "--world: .* = 'no'; allowed: true or false"),
        ({"world": "persona_rate=2"}, "--world persona_rate: 2.0; allowed: 0 to 1"),
        ({"world": "max_operations=1000"}, "--world max_operations: 1000; allowed: 1 to 100"),
        ({"rules": "12"}, "--rules: '12'; allowed: digits 1-9 joined by commas"),
        ({"rules": "0"}, "--rules: '0'; allowed: digits 1-9"),
        ({"train_operators": "/"}, "--train_operators: '/'; allowed: some of [+] - [*]$"),
        (
            {"world": "operators=+-", "train_operators": "*"},
            "--train_operators: '[*]'; allowed: some of [+] -$",
        ),
        ({"train_operations": 7}, "--train_operations: 7; allowed: 0 to 6"),
        ({"train_operations": -1}, "--train_operations: -1; allowed: 0 to 6"),
        ({"pretrain_steps": 0}, "--pretrain_steps: 0; allowed: 1 or more"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_world_are_refused_by_name(settings, message):
    """A typo that trains in the default world, or a training set that is empty."""
    with pytest.raises(ValueError, match=f"^{message}") as error:
        Toy(**settings)
    assert "\n" not in str(error.value)


NEEDS_A_RULE = "--rules: '{}'; allowed: numbers such as 3 or 2,7 with --context rule"
NEEDS_THE_CONTEXT = "--context: '{}'; allowed: rule, with --rules and a teacher"


@pytest.mark.parametrize(
    "rules, contexts, distils, message",
    [
        ("", {"rule"}, True, NEEDS_A_RULE.format("")),
        (",", {"none", "rule"}, False, NEEDS_A_RULE.format(",")),
        ("3", {"solution"}, True, NEEDS_THE_CONTEXT.format("solution")),
        ("3", {"rule", "answer"}, True, NEEDS_THE_CONTEXT.format("answer")),
        ("3", {"none"}, True, NEEDS_THE_CONTEXT.format("none")),
        ("3", {"none", "feedback"}, False, "--context: 'feedback'; allowed: no verdicts"),
        ("3", {"rule", "none"}, True, ""),
        ("3", {"solution", "none"}, False, ""),
        ("3", set(), False, ""),
        ("", {"solution", "feedback", "none"}, True, ""),
    ],
)
def test_rules_and_contexts_that_contradict_each_other_are_refused(
    rules, contexts, distils, message
):
    """A teacher that knows the answer without the rule, or feedback that contradicts the reward."""
    if not message:
        return check_context(Toy(rules=rules), contexts, distils)
    with pytest.raises(ValueError, match=f"^{message}"):
        check_context(Toy(rules=rules), contexts, distils)
