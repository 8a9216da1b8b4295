"""Laws of flags: which contexts of the toy can teach what."""

import pytest

from lab.flags import check_context
from toy_tasks import CONTEXTS, Context, Toy

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


def test_an_unknown_context_is_refused_by_name_and_a_new_row_is_not(monkeypatch):
    """A typo that trains without any context, or a second list of the contexts."""
    row = Context(lambda p, rng, attempt, rule: "hint ", 0.5, 0.0)
    monkeypatch.setitem(CONTEXTS, "checklist", row)
    check_context(Toy(), {"checklist"}, True)
    for contexts in ({"solution", "chess"}, {"chess"}):
        with pytest.raises(ValueError, match=r"^--context: 'chess'; allowed: none, .*, checklist$"):
            check_context(Toy(), contexts, True)
