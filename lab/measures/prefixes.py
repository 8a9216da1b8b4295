"""How well a teacher continues a student's prefixes and its own, by the length of the prefix."""

import random

from lab.measures.errors import first_wrong_token
from lab.measures.horizon import accuracy_from, long_problems
from lab.measures.probe import Probe, Settings

PREFIX_PROBLEMS = 320
PREFIX_FRACS = (0.0, 0.25, 0.5, 0.75)  # of the tokens of a completion


def measure_prefixes(settings: Settings) -> dict:
    """Accuracy of a teacher from a student's prefixes and from its own, by length of the prefix.

    prefix_fracs is the x of all lists. The student is the base model, its teacher the same with
    the solution; student_prefix and own_prefix are the first tokens of their completions of
    training problems of three or more operations; unaided is the student on its own prefixes.
    sound: of these problems alone whose student's prefix, so long, has no wrong token, whether
    checked later or not; sound_counts is their number. None stands for the mean of nothing.
    """
    rng = random.Random(f"prefix-problems-{settings.seed}")
    problems = long_problems(settings.task(), rng, PREFIX_PROBLEMS)
    probe = Probe.draw(settings, "prefixes", problems)
    hints = probe.contexts(probe.examples, "solution")
    own, _ = probe.go_on(probe.student, probe.examples, hints)
    cuts, own_cuts = cuts_of(probe, probe.texts), cuts_of(probe, own)
    errors = [first_wrong_token(e, text) for e, text in zip(probe.examples, probe.texts)]
    sound = [
        [cut if error is None or cut <= error else None for cut in row]
        for row, error in zip(cuts, errors)
    ]
    own_sound = [
        [theirs if ours is not None else None for theirs, ours in zip(*rows)]
        for rows in zip(own_cuts, sound)
    ]
    sources = {
        "unaided_student_prefix": ("none", probe.texts, cuts),
        "teacher_student_prefix": ("solution", probe.texts, cuts),
        "teacher_own_prefix": ("solution", own, own_cuts),
        "teacher_student_prefix_sound": ("solution", probe.texts, sound),
        "teacher_own_prefix_sound": ("solution", own, own_sound),
    }
    result = {"prefix_fracs": list(PREFIX_FRACS)}
    for name, (kind, texts, places) in sources.items():
        found = accuracy_from(probe, probe.student, kind, probe.examples, texts, places)
        result[name], result["sound_counts"] = found
    return result


def cuts_of(probe: Probe, texts: list[str]) -> list[list[int]]:
    """How many tokens of each text are each of PREFIX_FRACS."""
    lengths = [len(probe.task.encode(text)) for text in texts]
    return [[int(frac * length) for frac in PREFIX_FRACS] for length in lengths]
