"""Correct completions that were written with the solution in view are harmful to imitate.

Source: Kim et al. 2603.24472, table 2.

Published: AIME24 54.8; after SFT on 800 guided correct traces 20.2, on unguided ones 51.0.

Predicted: Supervised training on right completions written with the solution in view costs at
least 10 points of accuracy on fresh problems and shortens. On right completions written without
it, as right, it does not: it gains, since the model's own right answers are the checked ones. Where
markers have no function guided ones do no harm either.

Found: As predicted in eight of eight: right completions written with the solution in view cost .38
[.35, .41], those written without it nothing, .04 [-.08, .16]. At half the learning rate of the row
the latter gain .15 to .18; at twice they lose up to .19, since the row's rate was chosen by
training problems, where this method learns by heart. Where markers have no function guided ones do
no harm (.00).
"""

from lab.claims.arms import NO_FUNCTION, SFT
from lab.claims.statements import change, room

ARMS = {"guided": SFT, "unguided": f"{SFT} --context none"}
ONCE = {"guided, no function": f"{SFT} {NO_FUNCTION}"}
EFFECT = change("fresh.accuracy", "guided") < -0.1
CONTROL = change("fresh.accuracy", "unguided")
TESTABLE = [room("fresh.accuracy", "guided", floor=0.1)]
ALSO = [
    change("fresh.accuracy", "unguided") > 0,
    change("fresh.accuracy", "guided, no function") > -0.05,
    change("fresh.tokens", "guided") < -3,
    change("fresh.markers", "guided") < -0.4,
]
