"""Laws of the rewards of text for any text and number, drawn by hypothesis."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from lab import text_tasks

# max_examples: of each law, so that the file takes seconds.
laws = settings(derandomize=True, database=None, deadline=None, max_examples=40)

NUMBER_TEXT = st.text(st.sampled_from("0123456789.,-$ {}\\boxed\u0663"), max_size=20)


@laws
@given(NUMBER_TEXT | st.text(max_size=20), NUMBER_TEXT | st.text(max_size=20))
def test_text_rewards_are_0_or_1_for_any_text(completion, answer):
    """Catches a number that matches the pattern and that Decimal cannot read."""
    for name, reward in text_tasks.TEXT_REWARDS.items():
        try:
            assert reward(completion, answer) in (0.0, 1.0)
        except ValueError as error:
            assert name == "last_number" and re.search("has no number|is no single", str(error))
    assert text_tasks.reward_boxed(f"{completion} \\boxed{{7}}", "7") == 1


@laws
@given(st.decimals(-(10**9), 10**9, places=2), st.booleans())
def test_a_number_is_read_as_it_is_written(number, dollar):
    """Catches commas, dollars, signs or decimals that are cut off."""
    text = f"{number:,}".replace("-", "-$" if dollar else "-")
    assert text_tasks.last_number(f"1 so it is {text}.") == number
