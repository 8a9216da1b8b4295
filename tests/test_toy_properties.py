"""Laws of the toy world for any tokens, problems and worlds, drawn by hypothesis.

The same examples in every run. A failure prints the smallest example that it could find.
"""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

import toy_tasks

# max_examples: of each law, so that the file takes seconds.
laws = settings(derandomize=True, database=None, deadline=None, max_examples=120)

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


SHARES = st.fixed_dictionaries(dict.fromkeys(toy_tasks.CONTEXTS, st.floats(0, 1)))


@laws
@given(st.integers(0, 2**32), st.sampled_from([*toy_tasks.CONTEXTS]), SHARES, st.integers(1, 9))
def test_documents_of_any_world_can_be_read_back(seed, kind, certainty, longest):
    """Catches a document outside the vocabulary, or a prompt that is not its problem."""
    world = toy_tasks.World(max_operations=longest, certainty=certainty, slip_rate=0.5)
    prompt, completion = toy_tasks.draw_document(random.Random(seed), world, kind)
    assert toy_tasks.decode(toy_tasks.encode(prompt + completion)) == prompt + completion
    *context, text = prompt.removesuffix(" = ").split(" | ")
    problem = toy_tasks.Problem.parse(text)
    assert problem.prompt == prompt[-len(problem.prompt) :] and len(context) == (kind != "none")
    assert 1 <= len(problem.operators) <= longest
    assert toy_tasks.final_answer(completion) is not None
