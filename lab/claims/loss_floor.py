"""The loss cannot fall below what the teacher's context tells and the student cannot know.

Source: a post of April 2026, after a thread by Partridge (second-hand); RLSD 2604.03128.

Published: some divergence is irreducible, since the student does not see the context; for the
forward KL the loss is its optimum plus I(y_t; r | x, y_<t). No measured values.

Predicted: With nine rules drawn at random the forward KL to the teacher stays above 0.5 nats per
completion, at 60 as at 120 steps. If all problems share one rule, so that nothing is left to know,
it falls at least 0.25 nats lower. The floor I, enumerated over the nine teachers at the student's
own prefixes, is about 1 nat: log 9 = 2.2 where steps are written, next to nothing in direct
answers. Training ends within 0.5 nats of it.

Found: As predicted: with rules drawn at random 1.3 [1.2, 1.5] nats per completion are left after
training, with one shared rule .17 [.12, .23]. The floor that was enumerated is 1.0 nat; in the
first universe training ends .33 above it, having gained 3.8.
"""

from lab.claims.arms import RULE_OF_ALL, RULE_OF_EACH, MeasuredRun
from lab.claims.statements import Panel, Quantity, Runs, number, over_steps, value

ARMS = {
    "drawn per problem": MeasuredRun("floor", RULE_OF_EACH),
    "shared": MeasuredRun("floor", RULE_OF_ALL),
}


def left(arm: str) -> Quantity:
    words = "KL(teacher || student) after training (nats per completion)"
    return value("forward KL after", arm, words)


def difference(words: str, name: str, other: str) -> Quantity:
    """Of two numbers of the run whose rules are drawn."""
    arm = "drawn per problem"
    return Quantity(words, lambda runs: number(runs, name, arm) - number(runs, other, arm))


def floor_line(runs: Runs) -> list[float]:
    """The floor of the trained student, once for every logged step."""
    arm = "drawn per problem"
    steps = over_steps("curve.step", arm)(runs)
    return [number(runs, "floor per token after", arm)] * len(steps)


EFFECT = left("drawn per problem") > 0.5
CONTROL = left("shared")
TESTABLE = [value("floor after", "drawn per problem", "I(y; r | x), nats per completion") > 0.5]
ALSO = [
    difference("left above the floor (nats)", "forward KL after", "floor after") < 0.5,
    difference("gained by training (nats)", "forward KL before", "forward KL after") > 1,
]
PANELS = [
    Panel(
        "KL(teacher || student), nats per token", "step",
        over_steps("curve.step", "drawn per problem"),
        {
            "drawn per problem": over_steps("curve.forward_kl", "drawn per problem"),
            "its floor": floor_line,
            "shared": over_steps("curve.forward_kl", "shared"),
        },
    )
]
