"""Rich contexts and many training problems together do more harm than each on its own.

Source: a post of April 2026, after Kim et al. 2603.24472.

Published: the failure bites hardest where task diversity and information richness are both scaled
up (the post; no grid: Kim et al. vary one at a time, 1 to 512 problems, part or all of a solution).

Predicted: On the problems trained on, going from 8 of them to endless ones costs at least 10 points
more accuracy under the whole solution than under half of it, and the corner with both is the lowest
of the four. Half of this at least is no harm of lost doubt, but memory: on 8 problems the richer
teacher leaves more to learn by heart, and it does so too where authors behind the solution stay
careful. So it may hold narrowly or not at all. On fresh problems, where nothing can be learnt by
heart, the small pool does more harm than the endless one, against the published sentence.

Found: Reproduced by the rule, and for the reason that we doubted: going from 8 problems to endless
ones costs .60 [.51, .69] more under the whole solution than under half of it. Two thirds of that is
memory: with careful authors, who pass on no loss of doubt, it is .39 [.31, .47]. On fresh problems
the small pool does more harm than the endless one, by .12, against the published sentence.
"""

from lab.claims.arms import CONTEXTS, ENDLESS, SDPO, SWAPPED
from lab.claims.statements import Panel, Quantity, change, over_arms, room, value

POOLS = {"8": "--train_problems 8", "endless": ENDLESS}
TEACHERS = {
    "solution": SDPO,
    "half of it": CONTEXTS["partial"],
    "solution, careful authors": f"{SDPO} {SWAPPED}",
}
ARMS = {f"{name}, {p}": f"{t} {POOLS[p]}" for name, t in TEACHERS.items() for p in POOLS}


def cost(name: str) -> Quantity:
    """What endless problems cost against 8, on the problems trained on."""
    many, few = (change("train.accuracy", f"{name}, {pool}") for pool in ("endless", "8"))
    return many - few


def more_than_half_of_it(name: str) -> Quantity:
    return cost(name) - cost("half of it")


EFFECT = more_than_half_of_it("solution") < -0.1
CONTROL = more_than_half_of_it("solution, careful authors")
TESTABLE = [
    room("train.accuracy", "solution, endless", floor=0.1),
    room("train.accuracy", "half of it, endless", floor=0.1),
]
CORNER = "solution, endless"
ALSO = [
    value("train.accuracy", CORNER) - value("train.accuracy", "half of it, endless") < 0,
    value("train.accuracy", CORNER) - value("train.accuracy", "half of it, 8") < -0.1,
    value("fresh.accuracy", "solution, 8") - value("fresh.accuracy", CORNER) < 0,
    value("fresh.accuracy", "half of it, 8") - value("fresh.accuracy", "half of it, endless") < 0,
]
PANELS = [
    Panel(
        f"accuracy on {words} (fraction)", "problems in the pool", list(POOLS),
        {t: over_arms(f"{split}.accuracy", [f"{t}, {p}" for p in POOLS]) for t in TEACHERS},
    )
    for split, words in (("train", "the problems trained on"), ("fresh", "fresh problems"))
]
