"""After the student's first wrong step the teacher's signal is worth little.

Source: Firth 2026; Zhu et al. 2605.11182; SFD 2605.30833; a thread by Partridge (second-hand).

Published: KL -48 to -69 % and disagreement -75 to -80 % from the first to the last twentieth;
pairwise gradient cosine 20-25 % higher early; teacher accuracy falls on student prefixes.

Predicted: From the student's prefix that ends with its first wrong step the teacher, solution
shown, is right at least 20 points less often than just before it, and less often than the same
model without context: it takes the speaker for an unreliable one, so the deficit is smaller in a
world without those. From the first to the last tenth of a completion KL and disagreement at least
halve, and gradients of late tokens agree less, with each other and with the reward. Where the
step was right nothing falls.

Found (commit dce4e41, first edition): reproduced, 5 of 7 statements hold. Right after a wrong
step the teacher loses accuracy, but so does the model without context, and unreliable authors
have no part in it: what calls the unreliable author here is a completion that opens without the
marker, as lab.microscope shows, not a wrong step. Documents with the solution in view hardly ever
have steps, so that the teacher reads them much as the student does.
"""

import math

from lab.claims.arms import NO_PERSONA, Measure
from lab.claims.statements import Panel, Quantity, Runs, at, over_steps

ARMS = {"base": Measure("horizon"), "no persona": Measure("horizon", NO_PERSONA)}


def across(runs: Runs, name: str) -> float:
    """Accuracy from the prefix that ends with the step minus from the one that ends before it."""
    return at(runs, "base", name, 1) - at(runs, "base", name, 0)


def deficit(runs: Runs, arm: str) -> float:
    """Accuracy right after the forced error: teacher minus the same model without context."""
    return at(runs, arm, "teacher_forced", 1) - at(runs, arm, "unaided_forced", 1)


def end_ratio(runs: Runs, name: str) -> float:
    """The last tenth of completions over the first, of what was measured by position."""
    return at(runs, "base", name, -1) / (at(runs, "base", name, 0) or math.nan)


def difference(runs: Runs, name: str, other: str) -> float:
    """One reading of the gradients minus another."""
    return at(runs, "base", f"gradient_{name}") - at(runs, "base", f"gradient_{other}")


STATEMENTS = [
    Quantity(
        "accuracy of the teacher's completions, right after a wrong step is forced into a "
        "right completion, minus before it",
        lambda runs: across(runs, "teacher_forced"),
    ) < -0.2,
    Quantity(
        "right after the error: teacher minus the model without context",
        lambda runs: deficit(runs, "base"),
    ) < 0,
    Quantity(
        "that deficit: with minus without unreliable authors in the world",
        lambda runs: deficit(runs, "base") - deficit(runs, "no persona"),
    ) < 0,
    Quantity(
        "KL(student || teacher) in wrong completions, last tenth / first",
        lambda runs: end_ratio(runs, "position_reverse_kl_incorrect"), none=1,
    ) < 0.5,
    Quantity(
        "disagreement in wrong completions, last tenth / first",
        lambda runs: end_ratio(runs, "position_disagreement_incorrect"), none=1,
    ) < 0.5,
    Quantity(
        "cosine with the reward gradient, tokens after the error minus before",
        lambda runs: difference(runs, "cosine_after_forced", "cosine_before_forced"),
    ) < 0,
    Quantity(
        "pairwise cosine of gradients, last quarter minus first",
        lambda runs: difference(runs, "pairwise_cosine_late", "pairwise_cosine_early"),
    ) < 0,
]
CONTROL = Quantity(
    "the teacher's accuracy where the step was right, after it minus before",
    lambda runs: across(runs, "teacher_unforced"),
)


def since_error(text: str):
    """KL by the tokens since the error, without the first token, which would hide the others."""
    curve = over_steps(f"since_error_reverse_kl_{text}", "base")
    return lambda runs: curve(runs)[1:]


PANELS = [
    Panel(
        "accuracy of completions from a prefix (fraction)", "the prefix ends",
        ["before the\nwrong step", "after it", "+1 step", "+2", "+3"],
        {
            "teacher, step wrong": over_steps("teacher_forced", "base"),
            "without context, step wrong": over_steps("unaided_forced", "base"),
            "teacher, step right": over_steps("teacher_unforced", "base"),
            "teacher, own prefix": over_steps("teacher_own", "base"),
        },
    ),
    Panel(
        "KL(student || teacher), nats per token", "tokens since the wrong value",
        ["before", "0-3", "4-7", "8-15", "16+"],
        {
            "step wrong": since_error("forced"),
            "same place, step right": since_error("unforced"),
        },
    ),
    Panel(
        "KL(student || teacher), nats per token", "relative position (fraction)",
        [(i + 0.5) / 10 for i in range(10)],
        {
            "correct completions": over_steps("position_reverse_kl_correct", "base"),
            "incorrect completions": over_steps("position_reverse_kl_incorrect", "base"),
        },
    ),
]
