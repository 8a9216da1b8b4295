"""What a teacher says after the student's first wrong token does harm.

Source: a thread by Partridge (second-hand), Firth 2026; against them ROSD 2605.28014.

Published: high loss at the wrong token is good, the signal after it may be harmful (an argument);
ROSD, to the contrary, distils only from the first wrong span on. No numbers.

Predicted: We expect the claim to fail. Under the solution the loss up to the first wrong token,
checked later or not, takes accuracy on fresh problems down as the loss on all tokens does, to
within 5 points: what the student loses is checking, and behind right glances, which it cannot tell
from wrong ones, the teacher does not check either. As many tokens scattered over the same
completions take it down as well. The tokens after the error are harmful alone, too (at least 10
points). The wrong token is worth its loss: with it accuracy on the pool ends higher than without.

Found: The claim fails, as we expected. Without the tokens after the first wrong one accuracy on
fresh problems ends where it ends with all: -.01 [-.02, .01] apart, and so it does with as many
scattered tokens. In the first universe the tokens after the error are harmful alone (-.22). The
wrong token is worth its loss as predicted: with it accuracy on the pool ends .11 higher than
without. Trained alone it gains less than predicted, .03 instead of .05.
"""

from lab.claims.arms import SDPO
from lab.claims.statements import Quantity, change, value

WEIGHTS = f"{SDPO} --token_weights"
ARMS = {
    "all": SDPO,
    "until the error": f"{WEIGHTS} until_error",
    "as many, scattered": f"{WEIGHTS} until_error_scattered",
}
ONCE = {
    "before the error": f"{WEIGHTS} before_error",
    "the wrong token alone": f"{WEIGHTS} error_token",
    "after the error alone": f"{WEIGHTS} after_error",
}


def lead(arm: str, name: str = "fresh.accuracy", other: str = "all") -> Quantity:
    return value(name, arm) - value(name, other)


EFFECT = lead("until the error") > 0.05
CONTROL = lead("as many, scattered")
TESTABLE = [change("fresh.accuracy", "all") < -0.1]  # else there is no harm to be undone
ALSO = [
    change("fresh.accuracy", "after the error alone") < -0.1,
    lead("until the error", "train.accuracy", "before the error") > 0,
    change("train.accuracy", "the wrong token alone") > 0.05,
]
