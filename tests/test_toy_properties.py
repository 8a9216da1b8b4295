"""Laws of the toy world for any tokens, problems and worlds, drawn by hypothesis.

The same examples in every run. A failure prints the smallest example that it could find.
"""

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st
from reading import read

import toy_tasks

# max_examples: of each law, so that the file takes seconds.
laws = settings(derandomize=True, database=None, deadline=None, max_examples=60)

TOKENS = st.lists(st.sampled_from(toy_tasks.VOCABULARY[2:]), max_size=12)
DIGITS = st.integers(0, 9)


@laws
@given(TOKENS, st.text(max_size=12))
def test_encoding_is_a_bijection_on_its_alphabet(tokens, text):
    """Catches tokens that can be read in two ways, and text that is silently dropped."""
    ids = [toy_tasks.TOKEN_ID[token] for token in tokens]
    assert toy_tasks.decode(ids) == "".join(tokens)
    assert toy_tasks.encode("".join(tokens)) == ids
    for mixed in (text, "".join(tokens) + text):
        try:
            assert toy_tasks.decode(toy_tasks.encode(mixed)) == mixed
        except ValueError as error:
            assert "no token for" in str(error)


@laws
@given(
    st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 9)), min_size=1), st.integers(0, 9)
)
def test_problems_survive_parsing_and_are_worked_modulo_ten(steps, first):
    """Catches an operator that is lost, and a value that is reduced wrongly when negative."""
    text = str(first) + "".join(f"{o}{d}" for o, d in steps)
    problem = toy_tasks.Problem.parse(text)
    assert problem.text == text and toy_tasks.Problem.parse(problem.text) == problem
    value, values = first, []
    for operator, digit in steps:  # reduced at the end alone
        value = {"+": value + digit, "-": value - digit, "*": value * digit}[operator]
        values.append(value % 10)
    assert list(problem.values) == values


@laws
@given(st.text(st.sampled_from("019+-* \u0663"), max_size=6) | st.text(max_size=6))
def test_a_text_is_a_problem_or_is_refused(text):
    """Catches a text that is read as another one: digits of other scripts, a line break."""
    try:
        assert toy_tasks.Problem.parse(text).text == text
    except ValueError as error:
        assert str(error).startswith("problem: ")


@laws
@given(TOKENS, DIGITS)
def test_measures_are_those_of_the_tokens(tokens, answer):
    """Catches an answer of two digits taken for one, and an earlier answer taken for the last."""
    task = toy_tasks.ToyTask(toy_tasks.World())
    example = toy_tasks.Example(toy_tasks.Problem((0, answer), "+"))
    measures = task.measures("".join(tokens), example)
    marks = [i for i, token in enumerate(tokens) if token == toy_tasks.ANSWER]
    given_ = []
    for token in tokens[marks[-1] + 1 :] if marks else ():
        if not token.isdigit():
            break
        given_.append(token)
    assert task.reward("".join(tokens), example) == float(given_ == [str(answer)])
    assert measures == {
        "accuracy_frac": given_ == [str(answer)],
        "markers_per_completion": tokens.count(toy_tasks.MARKER),
        "direct_frac": tokens[:1] == [toy_tasks.ANSWER],
        "remark_frac": toy_tasks.REMARK in tokens,
    }


RATES = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
TABLES = st.fixed_dictionaries(dict.fromkeys(toy_tasks.CONTEXTS, RATES))
WORLDS = st.builds(
    toy_tasks.World,
    operators=st.sampled_from(["+", "*", "+-", "-*", "+-*"]), max_operations=st.integers(1, 9),
    functional_markers=st.booleans(), glance_rate=RATES, glance_error_rate=RATES, drill_rate=RATES,
    drills_hinted=RATES, persona_rate=RATES, persona_error_rate=RATES, certainty=TABLES,
    direct_rate=TABLES,
)


@laws
@given(st.integers(0, 2**32), st.sampled_from([*toy_tasks.CONTEXTS, "practice"]), WORLDS)
def test_documents_of_any_world_can_be_read_back(seed, kind, world):
    """Catches a document outside the vocabulary, of another problem, or that no author writes."""
    rng = random.Random(seed)
    if kind == "practice":
        prompt, completion = toy_tasks.draw_practice(rng, world)
    else:
        prompt, completion = toy_tasks.draw_document(rng, world, kind)
    assert toy_tasks.decode(toy_tasks.encode(prompt + completion)) == prompt + completion
    *context, text = prompt.removesuffix(" = ").split(" | ")
    problem = toy_tasks.Problem.parse(text)
    assert problem.prompt == prompt[-len(problem.prompt) :]
    assert kind == "practice" or len(context) == (kind != "none")
    assert 1 <= len(problem.operators) <= world.max_operations
    assert set(problem.operators) <= set(world.operators)
    if kind == "rule":
        problem = toy_tasks.Problem.parse(text + context[0].removeprefix("rule "))
    author = read(problem, completion)
    right = author.answer == problem.values[-1]
    if author.remarks:
        assert not right and not author.opens and not any(checked for _, checked in author.glances)
    else:
        assert all(author.singles) and all(fits or checked for fits, checked in author.glances)
        assert right or (kind == "wrong" and author.last is None)
        assert author.last in (None, author.answer)
    assert world.functional_markers or (author.last is not None and not author.glances)


@laws
@given(st.integers(0, 2**32), WORLDS, st.text("+-*", max_size=3), st.integers(1, 9), st.data())
def test_splits_of_any_world_are_what_they_say(seed, world, operators, low, data):
    """Catches a fresh problem that is trained on, and a split that has nothing new."""
    operators = "".join(o for o in operators if o in world.operators)
    high = data.draw(st.integers(low, max(low, world.max_operations)))
    operations = data.draw(st.sampled_from([f"{low}-{high}", f"{low}", ""]))
    try:
        task = toy_tasks.ToyTask(world, operators=operators, operations=operations)
    except ValueError as error:
        assert str(error).startswith("--train_operations: ")
        assert not 1 <= low <= high <= world.max_operations
        return
    trained, rng = set(task.operators), random.Random(seed)
    for split in task.splits:
        problem = task.draw(split, rng).problem
        n, used = len(problem.operators), set(problem.operators)
        assert n <= world.max_operations and len(set(problem.digits[1:])) == n
        assert (n > max(task.lengths)) if split == "longer" else (n in task.lengths)
        assert split == "longer" or problem.is_fresh == (split != "train")
        assert used <= set(world.operators)
        assert bool(used - trained) == (split == "new_operators")


@laws
@given(st.text(st.sampled_from("0123489-\u0663 ,"), max_size=5) | st.text(max_size=5))
@example("\u0663")
@example("9" * 5000)
def test_operations_are_a_range_or_are_refused(text):
    """Catches a range that is read as another one: turned round, of other scripts, half."""
    try:
        found = toy_tasks.training_operations(toy_tasks.World(), text)
    except ValueError as error:
        assert str(error).startswith("--train_operations: ")
        return
    low, high = found[0], found[-1]
    assert 1 <= low <= high <= 8 and found == range(low, high + 1)
    assert text in ({f"{low}-{high}"} | ({str(low)} if low == high else set()) | {""})
