"""Laws of the toy world: its arithmetic, its contexts, its splits, and its switches.

Shares are compared with their exact values within four standard errors, from seeded generators.
"""

import dataclasses
import math
import random
import re

import pytest

import toy_tasks
from toy_tasks import (
    ANSWER,
    CONTEXTS,
    MARKER,
    REMARK,
    VOCABULARY,
    Problem,
    ToyTask,
    World,
    decode,
    draw_document,
    draw_problem,
    draw_split,
    encode,
    final_answer,
    grade,
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


def test_unknown_context_is_refused_by_name():
    """A typo that trains without any context."""
    with pytest.raises(ValueError, match="context: 'hint'; allowed: none, answer"):
        privileged_context(CHAIN, "hint", rng())


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
    for seed, kind in enumerate(CONTEXTS[1:], start=1):
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
            wrong = grade(text, CHAIN.values[-1]).reward == 0
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


@pytest.mark.parametrize(
    "change, named",
    [
        ({"operators": ""}, "world operators: ''"),
        ({"operators": "+/"}, "world operators: '\\+/'"),
        ({"max_operations": 0}, "world max_operations: 0"),
        ({"slip_rate": 1.1}, "world slip_rate: 1.1; allowed: 0 to 1"),
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
    """A reference that is marked wrong, or a rule that the grade does not know."""
    task, generator = ToyTask(World(), rules=rules), rng(0)
    seen = set()
    for _ in range(200):
        example = task.draw("fresh", generator)
        seen.add(example.rule)
        reference = task.reference(example, generator)
        assert task.grade(reference, example).reward == 1.0
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
    assert grade(completion, 7).reward == float(answer == 7)


def test_grade_by_hand():
    """A marker counted once per text, or a step taken for a direct answer."""
    result = grade("wait 3*7=2; wait 3*7=1; answer 1 demo", 1)
    assert (result.reward, result.markers, result.direct, result.remark) == (1.0, 2, False, True)
    result = grade("answer 4", 1)
    assert (result.reward, result.markers, result.direct, result.remark) == (0.0, 0, True, False)


def test_running_the_file_prints_documents_of_every_kind(capsys):
    """A demonstration that no longer runs."""
    toy_tasks.main()
    printed = capsys.readouterr().out
    assert all(f"\n{kind}\n" in printed for kind in CONTEXTS)
    assert len(printed.splitlines()) == len(CONTEXTS) * 7


def test_training_on_one_length_draws_that_length_alone():
    """Catches a pool, or endless problems, of lengths that post-training should not see."""
    for pool_size in (0, 5):
        task = ToyTask(toy_tasks.World(), pool_size=pool_size, operators="+", operations=3)
        for split in ("train", "fresh"):
            drawn = [task.draw(split, random.Random(i)).problem.operators for i in range(30)]
            assert set(drawn) == {"+++"}
