"""Students of a teacher that sees a demonstration end by talking about the demonstration.

Source: reports collected in a post of April 2026 (second-hand).

Published: students that end by talking about a demonstration; no rate given.

Predicted: With demonstrations, or solutions, as context and a teacher that follows the student
(EMA 0.05), the closing remark appears in at least 5 points more of the fresh completions; in a
world without unreliable authors it cannot.

Found (commit dce4e41, first edition): not reproduced, 0 of 2 statements hold. The remark stays
about as rare as the base model writes it (2.5 % of completions; 3.2 and 1.5 % after training).
Demonstrations and solutions make the student write short and sure, as reliable authors with such
a context do in these documents; the teacher has nothing that it could take for a cue to comment
on the demonstration. The control is an identity: without unreliable authors no document has the
remark.
"""

from lab.claims.arms import NO_PERSONA, SDPO
from lab.claims.statements import change

SDFT = "--method sdft --teacher_update_rate 0.05"  # its context is a demonstration
ARMS = {
    "demonstration": SDFT,
    "solution": f"{SDPO} --teacher_update_rate 0.05",
    "demonstration, no persona": f"{SDFT} {NO_PERSONA}",
}
STATEMENTS = [
    change("fresh.remark", "demonstration") > 0.05,
    change("fresh.remark", "solution") > 0.05,
]
CONTROL = change("fresh.remark", "demonstration, no persona")
SHOWN = ["fresh.remark", "fresh.accuracy"]
