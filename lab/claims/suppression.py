"""Self-distillation under the solution takes the doubt out of completions, and accuracy with it.

Source: Kim et al. 2603.24472.

Published: AIME24 accuracy -40 % relative, counts of 'wait' -61 (GRPO: +29).

Predicted: Self-distillation under the solution costs at least 10 points of accuracy on fresh
problems, and not in a world where nothing depends on the marker. It removes markers and shortens,
but no more completions answer directly: glances in the middle are no longer checked, so that a
completion that is made to open with `wait` loses as well. GRPO keeps markers and gains.

Found: As predicted: accuracy on fresh problems falls by .34 [.29, .38], and by .01 [.00, .02] in
the world where markers have no function. Behind a forced opening `wait` the trained model is right
on .68, and it checks 2 % of its glances; with GRPO accuracy and markers rise. One thing is
otherwise: the share of direct answers rises by .16, a little more than we allowed.
"""

from lab.claims.arms import GRPO, NO_FUNCTION, SDPO, MeasuredRun
from lab.claims.statements import Panel, change, over_steps, room, value

ARMS = {"sdpo": SDPO, "sdpo, no function": f"{SDPO} {NO_FUNCTION}"}
EFFECT = change("fresh.accuracy", "sdpo") < -0.1
CONTROL = change("fresh.accuracy", "sdpo, no function")
TESTABLE = [room("fresh.accuracy", "sdpo", floor=0.1)]
ONCE = {"grpo": GRPO, "looked at": MeasuredRun("careful", SDPO)}
OPENED = "accuracy on fresh problems behind a forced wait (fraction; base: 0.9 or more)"
ALSO = [
    change("fresh.markers", "sdpo") < -0.4,
    change("fresh.tokens", "sdpo") < -3,
    change("fresh.direct", "sdpo") < 0.15,
    value("careful_fresh_accuracy_frac", "looked at", OPENED) < 0.8,
    value("checked_glances_frac_fresh", "looked at", "glances that are checked (fraction)") < 0.5,
    change("fresh.accuracy", "grpo") > 0.1,
    change("fresh.markers", "grpo") > 0,
]
PANELS = [
    Panel(
        "length of the training batches' completions (tokens)", "completions sampled",
        over_steps("curve.generations", "sdpo"),
        {"sdpo": over_steps("curve.completion_tokens", "sdpo")},
    )
]
