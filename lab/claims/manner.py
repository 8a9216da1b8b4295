"""Self-distillation passes on a teacher's manner, whatever its context tells.

Source: a post of April 2026, after Kim et al. 2603.24472; OP2SD 2608.09228.

Published: the token-level KL conflates style and information, and nobody can disentangle the two (a
post, no experiment). Another problem's solution teaches as much as the right one or more: AIME24
55.4 / 55.4 (1.7B), 31.5 / 30.8 (4B), 55.8 / 45.0 (8B).

Predicted: Here they can be told apart, since documents say who is sure. In a world with two
certainties swapped, confidence without information (another problem's solution, sure authors) costs
at least 20 points of accuracy on fresh problems. Information without confidence (the right
solution, careful authors) costs about 10, and so does neither, where the other problem is a mere
distraction: the worse of these two is less than half. Confidence costs as much without information
as with it, and takes the markers as the solution does.

Found: As predicted in eight of eight: confidence without information costs .33 [.29, .37] of
accuracy on fresh problems, as much as with it (.02 apart), and takes the markers as the solution
does. Careful teachers cost .12 [.08, .15] at worst, one with all information no less than one with
none: here what is learnt on fresh problems is the manner alone.
"""

import numpy as np

from lab.claims.arms import CONTEXTS, NOTHING_TOLD, SDPO, SWAPPED
from lab.claims.statements import Panel, Quantity, Runs, change, changed, room

ARMS = {
    "sure, told nothing": NOTHING_TOLD,
    "careful, told all": f"{SDPO} {SWAPPED}",
    "careful, told nothing": CONTEXTS["other_problem"],
}
ONCE = {"sure, told all": SDPO}
CAREFUL_ONES = [arm for arm in ARMS if arm.startswith("careful")]

EFFECT = change("fresh.accuracy", "sure, told nothing") < -0.1
CONTROL = Quantity(
    "change of accuracy on fresh problems (fraction): the worse of the careful",
    lambda runs: float(np.min([changed(runs, "fresh.accuracy", arm) for arm in CAREFUL_ONES])),
)
TESTABLE = [room("fresh.accuracy", "sure, told nothing", floor=0.1)]
ALSO = [
    (
        change("fresh.accuracy", "sure, told nothing") - change("fresh.accuracy", "sure, told all")
    ).within(0.15),
    change("fresh.markers", "sure, told nothing") < -0.4,
    change("fresh.markers", "careful, told all") > -0.3,
]
ORDER = ["sure, told all", "sure, told nothing", "careful, told all", "careful, told nothing"]


def changes(name: str):
    """A curve: what training changes under each of the four teachers."""
    def curve(runs: Runs) -> list[float]:
        return [changed(runs, name, arm) for arm in ORDER]

    return curve


PANELS = [
    Panel(
        "change on fresh problems", "teacher", [name.replace(", ", ",\n") for name in ORDER],
        {
            "accuracy (fraction)": changes("fresh.accuracy"),
            "markers (per completion)": changes("fresh.markers"),
        },
        joined=False,
    )
]
