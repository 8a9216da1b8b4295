"""Published statements about self-distillation as experiments that can fail.

python train_gpt.py --claim coverage --seeds 5    # one claim: runs, table, verdict, picture
python train_gpt.py --claim all --seeds 5         # all of them; finished runs are never repeated

1 claims and their statements   2 the table   3 verdicts   4 running   5 tables and pictures
"""

import contextlib
import dataclasses
import functools
import json
import math
import operator
import os
import re
import shlex
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import minisd
from results.measures import MEASUREMENTS
from train_gpt import (
    MEASURES,
    TrainConfig,
    base_path,
    bases_of,
    check_several,
    code_of,
    machine,
    mean_and_interval,
    method_config,
    pretrain_only,
    progress,
    short_hash,
    worker_pool,
    write_atomically,
    write_json,
)

# 1. Claims and their statements -------------------------------------------------------------------

# All claims share these; an arm of a claim changes what its text varies, and nothing is tuned. They
# are shorter than a run by default, so that a claim takes minutes.
CLAIM_SETTINGS = {"steps": 60, "batch_size": 64, "threads": 1}
MIN_SEEDS = 5  # fewer give no verdict

Runs = dict[str, dict[str, Any]]  # of one seed: the numbers of every arm, by name


@dataclass(frozen=True)
class Statement:
    """One number per seed, and the bound that the claim predicts it to lie above or below.

    none: what it would be without any effect; only beyond that is it the opposite.
    """

    words: str
    value: Callable[[Runs], float]
    above: float | None = None
    below: float | None = None
    none: float = 0.0


@dataclass(frozen=True)
class Panel:
    """Curves in a claim's picture: each gives one y for each x, seed by seed.

    joined: whether a line leads from one x to the next, as it should where x has an order.
    """

    title: str
    x_label: str
    x: list | Callable[[Runs], list]
    curves: dict[str, Callable[[Runs], list[float]]]
    joined: bool = True


@dataclass(frozen=True)
class Claim:
    """A published statement, its experiment, and what was predicted before the experiment ran.

    arms: settings by name, with `measure` a key of MEASUREMENTS. statements: see `statement`; the
    first is the heart of the claim, and `control` the same effect where it should be gone. shown:
    what the picture compares between arms. comment: written afterwards, about seeds 0 to 4.
    """

    source: str
    published: str
    prediction: str
    arms: dict[str, dict]
    statements: list[str | Statement]
    control: str | Statement
    shown: tuple[str, ...] = ("fresh.accuracy", "fresh.markers")
    panels: list[Panel] = field(default_factory=list)
    comment: str = ""


def quantity(runs: Runs, name: str, arm: str) -> Any:
    """A number of an arm: after training where there is a before, such as fresh.accuracy.

    nan where it was not measured, as in a run that failed.
    """
    if name.startswith("log2 of the "):
        return math.log2(quantity(runs, name.removeprefix("log2 of the "), arm))
    change, numbers = name.removeprefix("change of "), runs[arm]
    value = numbers.get(f"after.{change}", numbers.get(change))
    if change != name and value is not None:
        value = value - numbers[f"before.{change}"]
    return math.nan if value is None else value


def statement(given: str | Statement) -> Statement:
    """The statement in a line such as `change of fresh.accuracy: live - frozen < -0.05`.

    Behind the quantity stand names of arms, with numbers before them if need be (`0.8 * all`),
    added or subtracted, and the bound; a control has none. Raises ValueError for anything else.
    """
    if isinstance(given, Statement):
        return given
    match = re.fullmatch(r"([^:]+): (.+?)(?: ([<>]) (-?[\d.]+))?", given)
    if not match:
        raise ValueError(f"statement: {given!r}; allowed: quantity: arm - arm < bound")
    name, arms, sign, bound = match.groups()
    signs, terms = re.findall(r" ([-+]) ", f" + {arms}"), re.split(r" [-+] ", arms)
    pairs = [re.fullmatch(r"(?:([\d.]+) \* )?(.+)", term).groups() for term in terms]

    def value(runs: Runs) -> float:
        parts = ((float(n or 1), quantity(runs, name, arm)) for n, arm in pairs)
        return sum(n * v if s == "+" else -n * v for s, (n, v) in zip(signs, parts))

    if (
        len(pairs) > 1
    ):  # names of arms may have commas: quoted, so that a reader can tell them apart
        quoted = (f"{s} {n + ' * ' if n else ''}'{arm}'" for s, (n, arm) in zip(signs, pairs))
        arms = " ".join(quoted).removeprefix("+ ")
    bounds = {"above" if sign == ">" else "below": float(bound)} if sign else {}
    return Statement(f"{in_words(name)}: {arms}", value, **bounds)


WORDS = {
    "mixture farther by": "total variation distance to the mixture minus to the geometric mean",
    "mean reward": "mean reward of the training batches",
    "bias.token_level": "bias of the token-level gradient / norm of the exact one",
    "bias.sequence_level": "bias of the sequence-level gradient / norm of the exact one",
    "log2 of the generations to 0.9": "log2 of the completions until a logged batch (every fifth) "
    "is right to 90 %, or until the end",
}


def in_words(name: str) -> str:
    """fresh.accuracy as `accuracy (fresh problems)`; some names by the table, others are words."""
    if name in WORDS:
        return WORDS[name]
    found = re.fullmatch(r"(change of )?(train|fresh|longer|new_operators)\.(\w+)", name)
    if not found:
        return name
    change, split, measure = found.groups("")
    return f"{change}{measure} ({split.replace('_', ' ')} problems)"


def rank_correlation(xs: list[float], ys: list[float]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs; nan of a constant."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < w for v in values) + sum(v == w for v in values) / 2 for w in values]

    if np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return math.nan
    return float(np.corrcoef(ranks(xs), ranks(ys))[0, 1])


def slope_and_fit(xs: list[float], ys: list[float]) -> tuple[float, float]:
    """Slope and R^2 of the least-squares line through the points."""
    if np.ptp(xs) == 0 or np.ptp(ys) == 0:  # no line through a point, no fit of a constant
        return 0.0, 0.0
    correlation = np.corrcoef(xs, ys)[0, 1]
    return float(correlation * np.std(ys) / np.std(xs)), float(correlation**2)


# 2. The table -------------------------------------------------------------------------------------

FROZEN = {"method": "sdpo", "teacher": "frozen", "teacher_update_rate": 0.0}
LIVE = {"method": "sdpo", "teacher": "live", "teacher_update_rate": 0.0}
SDPO, GRPO, SFT = {"method": "sdpo"}, {"method": "grpo"}, {"method": "sft"}
NO_FUNCTION = {"world": "functional_markers=false"}
NO_PERSONA = {"world": "persona_rate=0"}
ENDLESS = {"train_problems": 0}
RULE = FROZEN | {"context": "rule"}  # the teacher sees `rule +3`
PLUS_MINUS = {"rules": "3", "train_operators": "+-"}
OFF_POLICY_DENSE = {"student_frac": 0.0, "off_policy": "teacher", "loss": "forward_kl"}
OTHER_STYLE = {"teacher": "external", "external_teacher": "other_style", "context": "none"}
RATES = ("frozen", "EMA 0.01", "EMA 0.05", "EMA 0.2", "live")  # of a teacher, rising
POOLS = {"1": 1, "8": 8, "64": 64, "512": 512, "endless": 0}
CONTEXTS = ["other_problem", "partial", "feedback", "answer", "sibling", "wrong", "solution"]
GAP_ARMS = {
    **{c: SDPO | {"context": c} for c in CONTEXTS},
    "solution, no function": SDPO | NO_FUNCTION,
    "answer, no function": SDPO | NO_FUNCTION | {"context": "answer"},
}
STEPWISE = {  # teacher and divergence, on problems worked step by step
    f"{name}, {loss}": FROZEN | settings | {"loss": f"{loss}_kl"}
    for name, settings in {
        "self": {},
        "larger": {"teacher": "external", "external_teacher": "larger", "context": "none"},
        "adapted": {"teacher": "external", "external_teacher": "adapted"},
        "other style": OTHER_STYLE,
    }.items()
    for loss in ("forward", "reverse")
}
RULED = {  # the same, all shown one rule for all problems
    f"rule, {arm}": settings | {"context": "rule", "rules": "3"}
    for arm, settings in STEPWISE.items()
}
MIXED = {
    f"{loss} {odds}": RULE | {"measure": "rules", "loss": f"{loss}_kl", "rules": rules}
    for loss in ("reverse", "forward")
    for odds, rules in (("1:1", "2,7"), ("4:1", "2,2,2,2,7"))
}


def over_arms(name: str, arms) -> Callable[[Runs], list[float]]:
    """A curve: the same quantity in several arms."""
    return lambda runs: [quantity(runs, name, arm) for arm in arms]


def information(runs: Runs, contexts) -> list[float]:
    """Measured H(y|x) - H(y|x,c) in nats per completion."""
    return [at(runs, "measured", "information", c, 0) for c in contexts]


def random_information(runs: Runs, context: str) -> float:
    """I(y;c|x) in nats of a context that is random given x: the middle of its two bounds."""
    bounds = (at(runs, "measured", "mutual_information", context, b, 0) for b in ("below", "above"))
    return sum(bounds) / 2


def at(runs: Runs, arm: str, name: str, *path) -> float:
    """A number inside a list or dict that an arm has measured; nan where there was none."""
    try:
        value = functools.reduce(operator.getitem, path, runs[arm][name])
    except (KeyError, IndexError, TypeError):
        value = None
    return math.nan if value is None else value


def step_up(runs: Runs, arm: str, name: str, first: int, last: int) -> float:
    """The entry `last` minus the entry `first` of a measured list."""
    return at(runs, arm, name, last) - at(runs, arm, name, first)


def prefix_gap(runs: Runs, reader: str, i: int, which: str = "") -> float:
    """Accuracy from the student's prefixes minus from the reader's own, at the i-th length."""
    name = "{}_{}_prefix{}"
    own, others = (
        at(runs, "measured", name.format(reader, who, which), i) for who in ("own", "student")
    )
    return others - own


def teacher_deficit(arm: str) -> Callable[[Runs], float]:
    """Accuracy right after the forced error: teacher minus the same model without context."""
    return lambda runs: at(runs, arm, "teacher_forced", 1) - at(runs, arm, "unaided_forced", 1)


def end_ratio(runs: Runs, name: str) -> float:
    """The last tenth of completions over the first, of what was measured by position."""
    return at(runs, "base", name, -1) / (at(runs, "base", name, 0) or math.nan)


def over_steps(name: str, arm: str) -> Callable[[Runs], list[float]]:
    """A curve that an arm has measured itself."""
    return lambda runs: runs[arm].get(name, [])


def spread(runs: Runs, arms) -> float:
    """Largest minus smallest accuracy on fresh problems."""
    values = over_arms("fresh.accuracy", arms)(runs)
    return max(values) - min(values)


def gap_line(runs: Runs, split: str, arms=tuple(GAP_ARMS), shift: int = 0) -> tuple[float, float]:
    """Slope and R^2 of the gain over the initial gap; shift: of the gaps of other arms."""
    gaps, gains = (
        over_arms("initial gap", arms)(runs),
        [quantity(runs, f"change of {split}.accuracy", arm) for arm in arms],
    )
    return slope_and_fit(gaps[shift:] + gaps[:shift], gains)


CLAIMS = {
    "suppression": Claim(
        source="Kim et al. 2603.24472",
        published="AIME24 accuracy -40 % relative, counts of 'wait' -61 % (GRPO: +29 %)",
        prediction="Self-distillation under the solution removes markers, shortens, and costs at "
        "least 10 points of fresh accuracy; GRPO raises markers and accuracy. In a world whose "
        "opening marker has no function the accuracy does not fall.",
        comment="GRPO opens with the marker more often, and on 64 problems neither gains nor "
        "loses on fresh ones in so few steps: three of five seeds fall.",
        arms={"sdpo": SDPO, "grpo": GRPO, "sdpo, no function": SDPO | NO_FUNCTION},
        statements=[
            "change of fresh.accuracy: sdpo < -0.1",
            "change of fresh.markers: sdpo < -0.4",
            "change of fresh.tokens: sdpo < -5",
            "change of fresh.accuracy: grpo > 0",
            "change of fresh.markers: grpo > 0",
        ],
        control="change of fresh.accuracy: sdpo, no function",
        shown=("fresh.accuracy", "fresh.markers", "fresh.tokens"),
    ),
    "information": Claim(
        source="Kim et al. 2603.24472",
        published="an order by argument, none < part of the solution < regenerated answer < "
        "solution, with markers per completion 182 / 160 / 24 / 9; I itself was not measured",
        prediction="The loss of markers follows the measured I(y;c|x) over the contexts (rank "
        "correlation above 0.7), in the order none < partial < answer < solution; a context that "
        "tells nothing of the answer suppresses nothing. Of contexts that are random given the "
        "problem, a verdict tells more of the completion than a sibling does, and suppresses more.",
        comment="The loss of markers follows the gap of entropies, not the true information of "
        "random contexts: a sibling, which tells little that the student could not write "
        "itself (0.1 nats), suppresses more than a verdict (0.3 nats). What is copied is "
        "the manner that documents with such a context have. That this claim counts as "
        "reproduced says only that the solution suppresses, and that another problem's "
        "solution suppresses less than half as much (-0.15 of -0.75; whether at all, five "
        "seeds do not settle); order and correlation are among the other statements.",
        arms={
            "measured": {"measure": "information"},
            **{c: SDPO | {"context": c} for c in CONTEXTS},
        },
        statements=[
            "change of fresh.markers: solution < -0.1",
            Statement(
                "rank correlation of H(y|x) - H(y|x,c) and the loss of markers over 7 contexts",
                lambda runs: rank_correlation(
                    information(runs, CONTEXTS),
                    [-x for x in over_arms("change of fresh.markers", CONTEXTS)(runs)],
                ),
                above=0.7,
            ),
            "change of fresh.markers: partial < 0",
            "fresh.markers: answer - partial < 0",
            "fresh.markers: solution - answer < 0",
            Statement(
                "true I(y;c|x) of random contexts (nats): a verdict minus a sibling",
                lambda runs: (
                    random_information(runs, "feedback") - random_information(runs, "sibling")
                ),
                above=0,
            ),
            "fresh.markers: feedback - sibling < 0",
        ],
        control="change of fresh.markers: other_problem",
        panels=[
            Panel(
                "what the context tells (nats per completion)",
                "context",
                list(CONTEXTS),
                {
                    "H(y|x) - H(y|x,c)": lambda runs: information(runs, CONTEXTS),
                    "I(y;c|x), where c is random": lambda runs: [
                        random_information(runs, c) for c in CONTEXTS
                    ],
                },
                joined=False,
            )
        ],
    ),
    "coverage": Claim(
        source="Kim et al. 2603.24472",
        published="fast and short on pools of up to 128 problems, score hurt at 512; worse out of "
        "domain throughout",
        prediction="On endless problems self-distillation ends at least 10 points of fresh "
        "accuracy below GRPO; on 8 problems it learns the pool faster and further, so that the "
        "gap turns. The smaller the pool, the worse on fresh problems; with one type of problem "
        "the gap is smaller. Where the marker has no function there is no such gap.",
        comment="On 8 problems self-distillation leads while it learns, by 5 points of mean "
        "reward, and GRPO ends where it ends. With one type of problem the gap is wider, "
        "not narrower: GRPO masters the type, and answers at a glance stay guesses for "
        "three operations.",
        arms={
            **{
                f"{method}, {pool}": {"method": method, "train_problems": count}
                for method in ("sdpo", "grpo")
                for pool, count in POOLS.items()
            },
            **{
                f"{method}, {types}": {"method": method, "train_operators": "+"} | ENDLESS | length
                for method in ("sdpo", "grpo")
                for types, length in (("one type", {"train_operations": 3}), ("one operator", {}))
            },
            "sdpo, no function": SDPO | ENDLESS | NO_FUNCTION,
            "grpo, no function": GRPO | ENDLESS | NO_FUNCTION,
        },
        statements=[
            "fresh.accuracy: sdpo, endless - grpo, endless < -0.1",
            "mean reward: sdpo, 8 - grpo, 8 > 0",
            "train.accuracy: sdpo, 8 - grpo, 8 > 0",
            "train.accuracy: sdpo, endless - grpo, endless < 0",
            "fresh.accuracy: sdpo, 1 - sdpo, endless < 0",
            "longer.accuracy: sdpo, endless - grpo, endless < 0",
            "fresh.accuracy: sdpo, one type - grpo, one type - sdpo, endless + grpo, endless > 0.1",
        ],
        control="fresh.accuracy: sdpo, no function - grpo, no function",
        shown=(),
        panels=[
            Panel(
                "accuracy on fresh problems of the same types (fraction)",
                "types of problem, endless",
                ["one", "one operator", "all"],
                {
                    m: over_arms(
                        "fresh.accuracy",
                        [f"{m}, {t}" for t in ("one type", "one operator", "endless")],
                    )
                    for m in ("sdpo", "grpo")
                },
            ),
            *(
                Panel(
                    f"accuracy on {words} problems (fraction)",
                    "problems in the pool",
                    list(POOLS),
                    {
                        m: over_arms(f"{split}.accuracy", [f"{m}, {p}" for p in POOLS])
                        for m in ("sdpo", "grpo")
                    },
                )
                for split, words in (
                    ("train", "the pool's"),
                    ("fresh", "fresh"),
                    ("longer", "longer"),
                )
            ),
        ],
    ),
    "feedback_loop": Claim(
        source="Kim et al. 2603.24472; Huebotter et al. 2601.20802, table 4",
        published="Kim: an EMA teacher suppresses more than a fixed one. SDPO, best accuracy: "
        "live 36, frozen 49, EMA 49, trust region 51",
        prediction="The faster the teacher follows the student, the fewer markers remain; the "
        "live teacher costs at least 5 points of fresh accuracy against the frozen one, and a "
        "trust region avoids that. With a context that tells nothing there is nothing to amplify.",
        comment="All statements hold, and still the claim does not: the live teacher falls twice "
        "as far under a context that tells nothing. Here the collapse is that of a "
        "teacher without an anchor, not of an amplified suppression: with the frozen "
        "teacher hardly any marker is left that could still be lost.",
        arms={
            "frozen": FROZEN,
            **{f"EMA {r}": SDPO | {"teacher_update_rate": r} for r in (0.01, 0.05, 0.2)},
            "live": LIVE,
            "trust region 0.05": SDPO | {"teacher": "trust_region", "teacher_update_rate": 0.05},
            "frozen, other problem": FROZEN | {"context": "other_problem"},
            "live, other problem": LIVE | {"context": "other_problem"},
        },
        statements=[
            "fresh.accuracy: live - frozen < -0.05",
            Statement(
                "rank correlation of the rate (0, 0.01, 0.05, 0.2, live) and fresh markers",
                lambda runs: rank_correlation(
                    [0, 0.01, 0.05, 0.2, 1], over_arms("fresh.markers", RATES)(runs)
                ),
                below=0,
            ),
            "fresh.accuracy: EMA 0.2 - frozen < 0",
            "fresh.accuracy: trust region 0.05 - live > 0.05",
        ],
        control="fresh.accuracy: live, other problem - frozen, other problem",
        shown=("fresh.accuracy",),
        panels=[
            Panel(
                title,
                "teacher update rate",
                ["0", "0.01", "0.05", "0.2", "1 (live)"],
                {"EMA": over_arms(name, RATES)},
            )
            for title, name in (
                ("markers per completion, fresh problems", "fresh.markers"),
                ("length of completions, fresh problems (tokens)", "fresh.tokens"),
            )
        ],
    ),
    "sft_guided": Claim(
        source="Kim et al. 2603.24472, table 2",
        published="AIME24 54.8; after SFT on guided correct traces 20.2, on unguided ones 51.0",
        prediction="Supervised training on correct completions written with the solution in view "
        "costs at least 10 points of fresh accuracy and shortens; on correct completions written "
        "without it, it costs less than 5.",
        arms={
            "guided": SFT,
            "unguided": SFT | {"context": "none"},
            "guided, no function": SFT | NO_FUNCTION,
        },
        statements=[
            "change of fresh.accuracy: guided < -0.1",
            "change of fresh.accuracy: unguided > -0.05",
            "change of fresh.tokens: guided < -5",
        ],
        control="change of fresh.accuracy: guided, no function",
    ),
    "horizon": Claim(
        source="Firth 2026; Zhu et al. 2605.11182; SFD 2605.30833; a thread by Partridge "
        "(second-hand)",
        published="KL -48 to -69 % and disagreement -75 to -80 % from the first to the last "
        "twentieth; pairwise gradient cosine 20-25 % higher early; teacher accuracy falls on "
        "student prefixes",
        prediction="From the student's prefix that ends with its first wrong step the teacher, "
        "solution shown, is right at least 20 points less often than just before it, and less "
        "often than the same model without context: it takes the speaker for an unreliable one, "
        "so the deficit is smaller in a world without those. From the first to the last tenth of "
        "a completion KL and disagreement at least halve, and gradients of late tokens agree "
        "less, with each other and with the reward. Where the step was right nothing falls.",
        comment="Right after a wrong step the teacher loses accuracy, but so does the model "
        "without context, and unreliable authors have no part in it: what calls the "
        "unreliable author here is a completion that opens without the marker, as "
        "--inspect shows, not a wrong step. Documents with the solution in view hardly "
        "ever have steps, so that the teacher reads them much as the student does.",
        arms={"base": {"measure": "horizon"}, "no persona": {"measure": "horizon"} | NO_PERSONA},
        statements=[
            Statement(
                "accuracy of the teacher's completions, right after a wrong step is forced into a "
                "right completion, minus before it",
                lambda runs: step_up(runs, "base", "teacher_forced", 0, 1),
                below=-0.2,
            ),
            Statement(
                "right after the error: teacher minus the model without context",
                teacher_deficit("base"),
                below=0,
            ),
            Statement(
                "that deficit: with minus without unreliable authors in the world",
                lambda runs: teacher_deficit("base")(runs) - teacher_deficit("no persona")(runs),
                below=0,
            ),
            Statement(
                "KL(student || teacher) in wrong completions, last tenth / first",
                lambda runs: end_ratio(runs, "position_reverse_kl_incorrect"),
                below=0.5,
                none=1,
            ),
            Statement(
                "disagreement in wrong completions, last tenth / first",
                lambda runs: end_ratio(runs, "position_disagreement_incorrect"),
                below=0.5,
                none=1,
            ),
            Statement(
                "cosine with the reward gradient, tokens after the error minus before",
                lambda runs: (
                    at(runs, "base", "gradient_cosine_after_forced")
                    - at(runs, "base", "gradient_cosine_before_forced")
                ),
                below=0,
            ),
            Statement(
                "pairwise cosine of gradients, last quarter minus first",
                lambda runs: (
                    at(runs, "base", "gradient_pairwise_cosine_late")
                    - at(runs, "base", "gradient_pairwise_cosine_early")
                ),
                below=0,
            ),
        ],
        control=Statement(
            "the teacher's accuracy where the step was right, after it minus before",
            lambda runs: step_up(runs, "base", "teacher_unforced", 0, 1),
        ),
        panels=[
            Panel(
                "accuracy of completions from a prefix (fraction)",
                "the prefix ends",
                ["before the\nwrong step", "after it", "+1 step", "+2", "+3"],
                {
                    label: over_steps(name, "base")
                    for label, name in {
                        "teacher, step wrong": "teacher_forced",
                        "without context, step wrong": "unaided_forced",
                        "teacher, step right": "teacher_unforced",
                        "teacher, own prefix": "teacher_own",
                    }.items()
                },
            ),
            Panel(
                "KL(student || teacher), nats per token",
                "tokens since the wrong value",
                ["before", "0-3", "4-7", "8-15", "16+"],
                {
                    label: lambda runs, n=name: over_steps(n, "base")(runs)[1:]  # not the 1st token
                    for label, name in {
                        "step wrong": "since_error_reverse_kl_forced",
                        "same place, step right": "since_error_reverse_kl_unforced",
                    }.items()
                },
            ),
            Panel(
                "KL(student || teacher), nats per token",
                "relative position (fraction)",
                [(i + 0.5) / 10 for i in range(10)],
                {
                    f"{kind} completions": over_steps(f"position_reverse_kl_{kind}", "base")
                    for kind in ("correct", "incorrect")
                },
            ),
        ],
    ),
    "first_tokens": Claim(
        source="IW-OPD 2606.22600",
        published="training on the first 30 % of tokens keeps almost all, the last 30 % learn "
        "nothing",
        prediction="The first 30 % of the tokens keep at least 80 % of the loss of markers and of "
        "the gain on the pool, the last 30 % at most 20 % of the loss of markers; as many tokens "
        "spread evenly keep less than the first.",
        comment="The first tokens decide how a completion is written, as claimed. What they do "
        "not hold is the answer itself, the last token but one of a short completion: the gain on "
        "the pool needs it, and so the last 30 % matter as well.",
        arms={
            "all": SDPO,
            **{
                part: SDPO | {"token_share": 0.3, "token_part": part} for part in minisd.TOKEN_PARTS
            },
        },
        statements=[
            "change of fresh.markers: first - 0.8 * all < 0",
            "change of fresh.markers: last - 0.2 * all > 0",
            "change of train.accuracy: first - 0.8 * all > 0",
            "change of fresh.markers: all < -0.2",
            "change of train.accuracy: all > 0",
        ],
        control="change of fresh.markers: spread - 0.8 * all",
        shown=("fresh.markers", "train.accuracy", "fresh.accuracy"),
    ),
    "token_level_bias": Claim(
        source="Fu et al. 2603.25562; Huebotter et al. 2601.20802 v2, appendix A.1",
        published="token level: biased, variance O(T^2); sequence level: unbiased, O(T^4); no "
        "gain from removing the bias",
        prediction="On enumerated completions the token-level gradient is off the exact "
        "sequence-KL gradient by more than a tenth of its norm, the sequence-level one by "
        "nothing; the latter is noisier, and its variance grows faster with length (exponent "
        "larger by at least 0.5). A policy trained without the bias is better or worse by less "
        "than 5 points.",
        comment="Bias and noise are as derived, and removing the bias gains nothing. With which "
        "power of the length the variance of each grows differs so much from seed to seed "
        "that five do not tell the two apart (difference 0.0, interval of 0.8 to both "
        "sides, on completions of 4 to 40 tokens).",
        arms={
            "measured": {"measure": "estimators"},
            "token level": {"method": "sequence_kl", "discount": 0.0},
            "sequence level": {"method": "sequence_kl"},
        },
        statements=[
            "bias.token_level: measured > 0.1",
            Statement(
                "noise of one sample, sequence level / token level",
                lambda runs: (
                    at(runs, "measured", "std.sequence_level")
                    / at(runs, "measured", "std.token_level")
                ),
                above=1,
                none=1,
            ),
            Statement(
                "exponent of variance over length, sequence minus token level",
                lambda runs: (
                    at(runs, "measured", "long.exponent.sequence_level")
                    - at(runs, "measured", "long.exponent.token_level")
                ),
                above=0.5,
            ),
            "fresh.accuracy: sequence level - token level < 0.05",
            "fresh.accuracy: sequence level - token level > -0.05",
        ],
        control="bias.sequence_level: measured",
        panels=[
            Panel(
                "expected cosine to the exact gradient",
                "completions per estimate, 4 to the power of",
                list(range(6)),
                {
                    label: over_steps(f"cosine.{name}", "measured")
                    for label, name in {
                        "token level": "token_level",
                        "discount 0.5": "discount_0.5",
                        "sequence level": "sequence_level",
                        "sampled token": "sampled_token",
                        "averaged advantage": "averaged_advantage",
                        "naive top 2": "top_2_naive",
                    }.items()
                },
            )
        ],
    ),
    "persona_collapse": Claim(
        source="reports collected in a post of April 2026 (second-hand)",
        published="students that end by talking about a demonstration; no rate given",
        prediction="With demonstrations, or solutions, as context and a teacher that follows the "
        "student (EMA 0.05), the closing remark appears in at least 5 points more of the fresh "
        "completions; in a world without unreliable authors it cannot.",
        comment="The remark stays about as rare as the base model writes it (2.5 % of "
        "completions; 3.2 and 1.5 % after training). Demonstrations and solutions make "
        "the student write short and sure, as reliable authors with such a context do in "
        "these documents; the teacher has nothing that it could take for a cue to comment "
        "on the demonstration. The control is an identity: without unreliable authors no "
        "document has the remark.",
        arms={
            "demonstration": {"method": "sdft", "teacher_update_rate": 0.05},
            "solution": SDPO | {"teacher_update_rate": 0.05},
            "demonstration, no persona": {"method": "sdft", "teacher_update_rate": 0.05}
            | NO_PERSONA,
        },
        statements=[
            "change of fresh.remark: demonstration > 0.05",
            "change of fresh.remark: solution > 0.05",
        ],
        control="change of fresh.remark: demonstration, no persona",
        shown=("fresh.remark", "fresh.accuracy"),
    ),
    "mixture": Claim(
        source="Zhu et al. 2605.11182; minimisers as in forward_kl and reverse_kl of minisd.py",
        published="no numbers: reverse KL has the normalised geometric mean of the teachers as "
        "optimum",
        prediction="The student cannot know whether the rule is 2 or 7. At odds 4:1 reverse KL "
        "ends nearer to the normalised geometric mean of the teachers than to their mixture and "
        "drops the rarer rule; forward KL ends nearer to the mixture and keeps the rarer rule. "
        "With one rule for all both predictions are the same.",
        comment="Under reverse KL the student is nearer to the geometric mean, as derived; under "
        "forward KL nearer to the mixture in four of five seeds only. After these few "
        "steps reverse KL has not dropped the rarer rule (0.22 of the completions that "
        "add one; its odds are 0.20), it leaves it rarer than forward KL does (0.33). The "
        "control is an identity (with one rule both predictions are the same): it checks "
        "the measurement, not the experiment.",
        arms=MIXED | {"one rule": RULE | {"measure": "rules", "rules": "3"}},
        statements=[
            "mixture farther by: reverse 4:1 > 0.02",
            "mixture farther by: forward 4:1 < -0.02",
            Statement(  # without any effect it would be the odds, 0.2
                "rule 7 among those that add a rule: reverse 4:1",
                lambda runs: quantity(runs, "rule 7 among those that add a rule", "reverse 4:1"),
                below=0.1,
                none=0.2,
            ),
            "rule 7 among those that add a rule: forward 4:1 > 0.1",
            "rule 7 among those that add a rule: forward 1:1 > 0.35",
        ],
        control="mixture farther by: one rule",
        shown=(),
        panels=[
            Panel(
                title,
                "divergence, odds of rule 2 and rule 7",
                list(MIXED),
                {label: over_arms(name, MIXED) for label, name in curves.items()},
                joined=False,
            )
            for title, curves in (
                (
                    "fresh completions that add the rule (fraction)",
                    {"rule 2": "share of 2", "rule 7": "share of 7"},
                ),
                (
                    "total variation distance of the student (0-1)",
                    {
                        "to the mixture": "distance to mixture",
                        "to the geometric mean": "distance to geometric mean",
                    },
                ),
            )
        ],
    ),
    "shared_rule": Claim(
        source="Zhu et al. 2605.11182",
        published="rules shared by all prompts are internalised; no shares given",
        prediction="Without the rule in its prompt the student keeps at least 70 % of the "
        "teacher's accuracy if all problems share the rule; if each draws its own, less.",
        comment="The shared rule is internalised, 87 % of it. The control was changed after the "
        "first results: of two rules drawn at random a student keeps half by guessing, so "
        "that our criterion could not be met; now nine are drawn.",
        arms={
            "shared": RULE | {"measure": "rules", "rules": "3"},
            "drawn per problem": RULE | {"measure": "rules", "rules": "1,2,3,4,5,6,7,8,9"},
        },
        statements=["accuracy of the student / of its teacher: shared > 0.7"],
        control="accuracy of the student / of its teacher: drawn per problem",
        shown=("fresh.accuracy", "train.accuracy"),
    ),
    "transfer": Claim(
        source="Kirkby and O'Neill 2026 (second-hand)",
        published="only the arm that is dense and on-policy transferred; scores not known",
        prediction="Adding 3, taught on + and - problems, reaches * problems by at least 20 "
        "points if training is dense and on-policy, 10 points more than with any of the other "
        "arms.",
        comment="The rule is one more written step, and any correct sample teaches it: supervised "
        "and off-policy training carry it to * problems as well. Only rewards alone fail, since "
        "the untaught student almost never writes that step by chance.",
        arms={
            "dense, on-policy": RULE | PLUS_MINUS,
            "dense, off-policy": RULE | OFF_POLICY_DENSE | PLUS_MINUS,
            "sparse, on-policy": GRPO | PLUS_MINUS | {"context": "none"},
            "sparse, off-policy": SFT | PLUS_MINUS | {"context": "rule"},
            "dense, on-policy, forward KL": RULE | PLUS_MINUS | {"loss": "forward_kl"},
        },
        statements=[
            "change of new_operators.accuracy: dense, on-policy > 0.2",
            "new_operators.accuracy: dense, on-policy, forward KL - dense, off-policy > 0.1",
            "new_operators.accuracy: dense, on-policy - sparse, on-policy > 0.1",
            "new_operators.accuracy: dense, on-policy - sparse, off-policy > 0.1",
        ],
        control=Statement(
            "change of new_operators.accuracy: the best of the other arms",
            lambda runs: max(
                quantity(runs, "change of new_operators.accuracy", arm)
                for arm in runs
                if not arm.startswith("dense, on-policy")
            ),
        ),
        shown=("new_operators.accuracy", "fresh.accuracy"),
    ),
    "prefix_mismatch": Claim(
        source="Zhu et al. 2605.11182; Li et al. 2604.13016",
        published="GPQA 62.1 on its own, 46.0 on the student's prefixes; lead +0.37 at 1k tokens, "
        "+0.02 at 16k",
        prediction="From three quarters of the student's completion the teacher is right at least "
        "5 points less often than from its own, and the gap grows from a quarter to three "
        "quarters; a teacher of another style loses 10 points. Trained on-policy by it, a raw "
        "student stays 10 points of fresh accuracy below one that imitates its samples. Where "
        "both write step by step, half of the gap at most remains.",
        comment="The teacher loses 25 points on the student's prefixes. Where both write step by "
        "step 5 of them are left: most of it is a mismatch of style, since of itself the "
        "teacher answers at once. It hardly grows after the first quarter, and a teacher "
        "of another style can be learned from on-policy as well as off-policy.",
        arms={
            "measured": {"measure": "prefixes"} | FROZEN | OTHER_STYLE,
            "on-policy": STEPWISE["other style, forward"],
            "off-policy": STEPWISE["other style, forward"] | OFF_POLICY_DENSE,
        },
        statements=[
            Statement(
                "teacher with solution, 75 % of a completion: student's minus own prefix",
                lambda runs: prefix_gap(runs, "teacher", 3),
                below=-0.05,
            ),
            Statement(
                "the same, 75 % minus 25 %",
                lambda runs: prefix_gap(runs, "teacher", 3) - prefix_gap(runs, "teacher", 1),
                below=0,
            ),
            Statement(
                "teacher of another style, 75 %: student's minus own prefix",
                lambda runs: prefix_gap(runs, "external", 3),
                below=-0.1,
            ),
            "fresh.accuracy: on-policy - off-policy < -0.1",
        ],
        control=Statement(
            "the same where both write step by step, so that only the student's errors differ",
            lambda runs: prefix_gap(runs, "teacher", 3, "_steps"),
        ),
        shown=("fresh.accuracy",),
        panels=[
            Panel(
                "accuracy of completions from a prefix (fraction)",
                "share of the completion given as prefix (fraction)",
                [0.0, 0.25, 0.5, 0.75],
                {
                    f"{label}, {who}": over_steps(f"{reader}_{key}_prefix", "measured")
                    for label, reader in {
                        "teacher with solution": "teacher",
                        "another style": "external",
                    }.items()
                    for who, key in {"student's prefix": "student", "own": "own"}.items()
                },
            )
        ],
    ),
    "top_k_bias": Claim(
        source="Zhu et al. 2605.11182",
        published="naive top-20 and top-5 rise, then collapse; stop-gradient and renormalised do "
        "not",
        prediction="On a support of one or two tokens the naive form costs at least 5 points of "
        "fresh accuracy against the stop-gradient form; stop-gradient, renormalised and bucket at "
        "k=2 stay within 5 points of the full vocabulary. With eight tokens nothing is lost.",
        comment="With one token the naive form collapses, with two it loses 9 points. With two "
        "tokens the other forms lie 2 to 3 points below the whole vocabulary, with one "
        "token stop-gradient 5; five seeds do not settle that it is less than 5.",
        arms={
            "full": FROZEN,
            **{
                f"{tail}, k={k}": FROZEN
                | {"loss": "top_k_reverse_kl", "top_k": k, "top_k_tail": tail}
                for tail, counts in {
                    "naive": (1, 2, 8),
                    "stop_gradient": (1, 2),
                    "renormalised": (2,),
                    "bucket": (1, 2),
                }.items()
                for k in counts
            },
        },
        statements=[
            "fresh.accuracy: naive, k=1 - stop_gradient, k=1 < -0.05",
            "fresh.accuracy: naive, k=2 - stop_gradient, k=2 < -0.05",
            "fresh.accuracy: stop_gradient, k=2 - full > -0.05",
            "fresh.accuracy: renormalised, k=2 - full > -0.05",
            "fresh.accuracy: bucket, k=2 - full > -0.05",
        ],
        control="fresh.accuracy: naive, k=8 - full",
        shown=("fresh.accuracy", "fresh.tokens"),
    ),
    "rlvr_teacher": Claim(
        source="Zhu et al. 2605.11182",
        published="a 1.7B teacher adapted by reward taught better than an 8B one; no table",
        prediction="At equal cost (60 GRPO steps that adapt the teacher, context shown, against "
        "60 more steps of the student) the adapted teacher has the higher accuracy, and its "
        "student is better on fresh problems and on the pool. Adapting for one step changes "
        "nothing.",
        comment="Reward makes the teacher right more often, and its student worse: with the "
        "solution in view reward is earned by answering at once, surely, and that manner is what "
        "the student copies. A larger teacher that sees no solution teaches far better.",
        arms={
            "adapted": {"method": "rlvr_teacher"},
            "unadapted": FROZEN | {"steps": CLAIM_SETTINGS["steps"] + 60},
            "adapted for one step": {"method": "rlvr_teacher", "adapt_steps": 1}
            | {"steps": CLAIM_SETTINGS["steps"] + 59},
            "larger": STEPWISE["larger, reverse"],
        },
        statements=[
            "fresh.accuracy: adapted - unadapted > 0",
            "train.accuracy: adapted - unadapted > 0",
            "initial teacher accuracy: adapted - unadapted > 0",
            "fresh.accuracy: adapted - larger > 0",
        ],
        control="fresh.accuracy: adapted for one step - unadapted",
    ),
    "sft_first": Claim(
        source="Zhu et al. 2605.11182",
        published="a supervised warm start stabilises the student; no table",
        prediction="Fifty supervised steps on the teacher's correct samples before distillation "
        "raise fresh accuracy, under the solution and, by 10 points, with an external teacher of "
        "another style; fifty more steps of distillation instead do not.",
        comment="There was nothing to stabilise: none of these runs is unstable, and the "
        "teacher's correct samples teach the same manner that distillation teaches "
        "anyway. Fifty more steps of distillation raise fresh accuracy by 3 points, "
        "against the prediction; the warm start does not.",
        arms={
            "sdpo": SDPO,
            "warm start": {"method": "sft_then_sdpo"},
            "sdpo, 50 steps more": SDPO | {"steps": CLAIM_SETTINGS["steps"] + 50},
            "other style": STEPWISE["other style, reverse"],
            "other style, warm start": STEPWISE["other style, reverse"] | {"warm_start_steps": 50},
        },
        statements=[
            "fresh.accuracy: warm start - sdpo > 0",
            "fresh.accuracy: other style, warm start - other style > 0.1",
        ],
        control="fresh.accuracy: sdpo, 50 steps more - sdpo",
    ),
    "dense_is_fast": Claim(
        source="Huebotter et al. 2601.20802; the discussion of dense and sparse, biased and "
        "unbiased",
        published="the accuracy of GRPO with 4 times fewer generations; no signal-to-noise ratios",
        prediction="On pools of 8 and of 64 problems self-distillation needs fewer generations "
        "than GRPO until a batch is right to 90 %. A gradient estimate of self-distillation has "
        "the higher signal-to-noise ratio, and the lower cosine to the gradient of the reward. On "
        "endless problems self-distillation is not faster.",
        comment="On 8 problems self-distillation needs half as many completions as GRPO. On 64 "
        "only two of five runs of it and three of five of GRPO get to 90 % in so few "
        "steps. On endless problems self-distillation never does and GRPO once: four of "
        "the five differences of the control are 0 because both runs end, so that it "
        "shows only that self-distillation is not faster. The gradients are as claimed: "
        "less noise, and another direction, at first even against the reward. How fast "
        "GRPO is depends on the base model and the number of steps: with one that was "
        "right on 0.68 of fresh problems instead of 0.60, and in 100 steps, no difference "
        "on 8 problems could be shown, and on 64 GRPO needed 2.6 times fewer.",
        arms={
            **{
                f"{method}, {pool}": {"method": method, "train_problems": POOLS[pool]}
                for method in ("sdpo", "grpo")
                for pool in ("8", "64", "endless")
            },
            "measured": {"measure": "signal"},
        },
        statements=[
            "log2 of the generations to 0.9: grpo, 8 - sdpo, 8 > 0",
            "log2 of the generations to 0.9: grpo, 64 - sdpo, 64 > 0",
            Statement(
                "signal-to-noise ratio of a batch's gradient, sdpo minus grpo",
                lambda runs: at(runs, "measured", "snr.sdpo") - at(runs, "measured", "snr.grpo"),
                above=0,
            ),
            Statement(
                "cosine to the reward gradient, sdpo minus grpo",
                lambda runs: (
                    at(runs, "measured", "cosine.sdpo") - at(runs, "measured", "cosine.grpo")
                ),
                below=0,
            ),
        ],
        control="log2 of the generations to 0.9: grpo, endless - sdpo, endless",
        shown=(),
        panels=[
            Panel(
                f"reward of the training batches, pool of {pool} (fraction)",
                "completions sampled",
                lambda runs, arm=f"sdpo, {pool}": runs[arm]["curve.generations"],
                {m: over_steps("curve.reward", f"{m}, {pool}") for m in ("sdpo", "grpo")},
            )
            for pool in ("8", "64")
        ]
        + [
            Panel(
                "first gradients, batches of 64 completions",
                "method",
                ["sft", "grpo", "sdpo"],
                {
                    label: lambda runs, n=name: [
                        at(runs, "measured", f"{n}.{m}") for m in ("sft", "grpo", "sdpo")
                    ]
                    for label, name in {
                        "signal-to-noise ratio": "snr",
                        "cosine to the reward gradient": "cosine",
                    }.items()
                },
                joined=False,
            )
        ],
    ),
    "other_problem": Claim(
        source="OP2SD 2608.09228",
        published="AIME24 avg@12 at 1.7B, 4B, 8B: another problem's solution 55.4, 31.5, 55.8, "
        "the right one 55.4, 30.8, 45.0, before 49.9, 23.2, 28.5",
        prediction="Shown another problem's solution the teacher teaches nearly as well as with "
        "the right one: at most 5 points lower on the pool, not lower on fresh problems, which it "
        "improves. A wrong solution does not do.",
        comment="In these documents the solution of another problem tells nothing, and it makes "
        "the teacher right less often than it is without any context (0.43 instead of "
        "0.57 on the pool); the student follows it down there and, by 16 points, on fresh "
        "problems. That is less harm on fresh problems than the right solution does, and "
        "nothing is learned about the pool.",
        arms={
            "its own": SDPO,
            "another's": SDPO | {"context": "other_problem"},
            "a wrong one": SDPO | {"context": "wrong"},
        },
        statements=[
            "train.accuracy: another's - its own > -0.05",
            "fresh.accuracy: another's - its own > 0",
            "change of fresh.accuracy: another's > 0",
        ],
        control="train.accuracy: a wrong one - its own",
        shown=("train.accuracy", "fresh.accuracy", "fresh.markers"),
    ),
    "initial_gap": Claim(
        source="He et al. 2605.30070 (second-hand)",
        published="gain linear in the gap: slopes 0.66 to 1.51, R^2 0.95 to 0.996, on code",
        prediction="Over contexts and worlds the gain on the pool rises with the teacher's lead "
        "before training (accuracy, context shown, minus the student's), with R^2 above 0.5, and "
        "so does the gain on fresh problems. The gaps of other arms predict nothing.",
        comment="The control is an identity (the mean over all rotations is -1/8 of the slope): "
        "it checks the measurement, not the experiment.",
        arms=GAP_ARMS,
        statements=[
            Statement("slope on the pool", lambda runs: gap_line(runs, "train")[0], above=0),
            Statement("R^2 on the pool", lambda runs: gap_line(runs, "train")[1], above=0.5),
            Statement(
                "slope on the pool, contexts of one world that do not lie",
                lambda runs: gap_line(runs, "train", [c for c in CONTEXTS if c != "wrong"])[0],
                above=0,
            ),
            Statement("slope on fresh problems", lambda runs: gap_line(runs, "fresh")[0], above=0),
        ],
        control=Statement(
            "slope on the pool with the gaps of other arms, mean over all rotations",
            lambda runs: float(
                np.mean([gap_line(runs, "train", shift=i)[0] for i in range(1, len(GAP_ARMS))])
            ),
        ),
        shown=("train.accuracy", "fresh.accuracy"),
    ),
    "granularity": Claim(
        source="Huebotter et al. 2601.20802",
        published="accuracy on LCBv6: full vocabulary > sampled token > averaged > GRPO",
        prediction="The finer the signal, the faster the pool is learned (mean reward of the "
        "training batches): full vocabulary > sampled token > one advantage per completion > "
        "GRPO. Under a context that tells nothing granularity does not matter.",
        comment="The whole vocabulary beats the sampled token and the average. GRPO beats these "
        "two, and in four of five seeds the whole vocabulary as well: it keeps the steps "
        "that make the base model right; and the lead of the whole vocabulary remains "
        "under a context that tells nothing, so that it is one of less noise, not of "
        "better credit.",
        arms={
            "full": FROZEN,
            "sampled": FROZEN | {"loss": "sampled_token"},
            "averaged": FROZEN | {"loss": "averaged_advantage"},
            "grpo": GRPO,
            "full, other problem": FROZEN | {"context": "other_problem"},
            "averaged, other problem": FROZEN
            | {"loss": "averaged_advantage", "context": "other_problem"},
        },
        statements=[
            "mean reward: full - averaged > 0",
            "mean reward: full - sampled > 0",
            "mean reward: sampled - averaged > 0",
            "mean reward: averaged - grpo > 0",
        ],
        control="mean reward: full, other problem - averaged, other problem",
        shown=("train.accuracy", "fresh.accuracy"),
        panels=[
            Panel(
                "reward of the training batches (fraction)",
                "completions sampled",
                lambda runs: runs["full"]["curve.generations"],
                {
                    arm: over_steps("curve.reward", arm)
                    for arm in ("full", "sampled", "averaged", "grpo")
                },
            )
        ],
    ),
    "sensitivity": Claim(
        source="Zhu et al. 2605.11182",
        published="mathematics: from harmful to helpful by teacher and loss; shared prompts: "
        "reliable",
        prediction="Over four teachers and two divergences the accuracy on fresh problems spreads "
        "by more than 30 points for work step by step, and by less for a rule that all problems "
        "share.",
        comment="The spread is wide, and narrower with a shared rule, but by a third only, where "
        "our criterion asks for half: reward-adapted and external teachers differ in how well "
        "they follow a rule, too.",
        arms=STEPWISE | RULED,
        statements=[
            Statement(
                "spread of fresh.accuracy: step by step",
                lambda runs: spread(runs, STEPWISE),
                above=0.3,
            )
        ],
        control=Statement(
            "spread of fresh.accuracy: a shared rule", lambda runs: spread(runs, RULED)
        ),
        shown=("fresh.accuracy",),
    ),
}


# 3. Verdicts --------------------------------------------------------------------------------------


def verdict(
    values: list[float], *, above: float | None = None, below: float | None = None, none: float = 0
) -> dict:
    """Mean, 95 % interval over seeds and the verdict on `mean > above`, or on `mean < below`.

    reproduced: the whole interval is beyond the bound. opposite: the whole interval is on the other
    side both of the bound and of `none`, what it would be without any effect (a norm or a spread
    has no other side). not reproduced: all else. too few seeds: less than MIN_SEEDS. not measured:
    a value is not finite, as after a run that failed.
    """
    if (above is None) == (below is None):
        raise ValueError(f"above {above}, below {below}; allowed: exactly one of them")
    if not np.isfinite(values).all():
        return {"mean": None, "low": None, "high": None, "n": len(values)} | {
            "verdict": "not measured"
        }
    result = mean_and_interval(values)
    if result["n"] < MIN_SEEDS:
        return result | {"verdict": "too few seeds"}
    sign, bound = (1, above) if below is None else (-1, -below)
    low, high = sorted((sign * result["low"], sign * result["high"]))
    words = "not reproduced"
    if low > bound:
        words = "reproduced"
    elif high < min(sign * none, bound):
        words = "opposite"
    return result | {"verdict": words}


def judge(claim: Claim, runs: list[Runs]) -> dict:
    """All statements, the control and the verdict of a claim, from the runs of every seed.

    The verdict is that of the first statement, and reproduced only if the control removes the
    effect. The other statements have verdicts of their own; `held` counts all that are reproduced.
    """
    first, control = statement(claim.statements[0]), statement(claim.control)
    results = [judged(statement(s), runs) for s in claim.statements]
    control = judged(dataclasses.replace(control, above=first.above, below=first.below), runs)
    control["removes_effect"] = removes(first, results[0]["values"], control["values"])
    control = {k: v for k, v in control.items() if k not in ("verdict", "above", "below")}
    total = results[0]["verdict"]
    if total == "reproduced" and not control["removes_effect"]:
        total = "not measured" if control["mean"] is None else "not reproduced"
    held = sum(r["verdict"] == "reproduced" for r in results)
    return {"verdict": total, "held": held, "statements": results, "control": control}


def judged(s: Statement, runs: list[Runs]) -> dict:
    """A statement with its value of every seed, their mean and interval, and its verdict."""
    values, bound = [float(s.value(r)) for r in runs], {"above": s.above, "below": s.below}
    return {"words": s.words, **bound, "values": values, **verdict(values, **bound, none=s.none)}


def removes(first: Statement, effects: list[float], rests: list[float]) -> bool:
    """Whether less than half of the effect is left in the control, seed by seed with its interval,
    and too little to reach the bound."""
    sign = 1 if first.below is None else -1
    pairs = [(sign * (e - first.none), sign * (r - first.none)) for e, r in zip(effects, rests)]
    less = verdict([effect - 2 * rest for effect, rest in pairs], above=0.0)
    reaches = verdict(rests, above=first.above, below=first.below)
    return less["verdict"] == "reproduced" and reaches["verdict"] != "reproduced"


# 4. Running, and keeping what has run -------------------------------------------------------------


def claim_config(arm: dict, flags: dict, seed: int) -> tuple[str, TrainConfig]:
    """The measurement of an arm and its settings; flags beat those of the arm."""
    settings = {k: v for k, v in arm.items() if k != "measure"}
    world = ",".join(filter(None, (settings.get("world"), flags.get("world"))))
    settings = CLAIM_SETTINGS | settings | flags | {"seed": seed, "world": world}
    return arm.get("measure", "training"), method_config(settings)


def result_path(measure: str, config: TrainConfig) -> Path:
    """Where the numbers of an arm are kept: a hash of all that determines them, code included."""
    code, names = code_of(MEASUREMENTS[measure])
    recipe = [code, machine(config), dataclasses.asdict(config.toy_world), config.rules]
    recipe += [[n, getattr(config, n)] for n in sorted(names - {"cache_dir", "device", "threads"})]
    recipe += [base_path(*needed).name for needed in bases_of(config)]
    return Path(config.cache_dir) / "runs" / f"{measure}-{short_hash(recipe)}.json"


def run_arm(job: tuple[str, TrainConfig]) -> dict[str, Any]:
    """The numbers of an arm, from the file of an earlier run if there is one."""
    path = result_path(*job)
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    measure, config = job
    start = time.perf_counter()
    try:
        numbers = MEASUREMENTS[measure](config)
    except minisd.NonFiniteError as error:  # a result as well: its statements are not measured
        numbers = {"failed": str(error)}
    numbers["seconds"] = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, numbers)
    return numbers


def in_turn(function, *arguments):
    """As `submit` of a pool, without one: the work is done when its result is asked for."""
    return SimpleNamespace(result=functools.partial(function, *arguments))


def run_jobs(jobs: list[tuple[str, TrainConfig]], workers: int) -> None:
    """Every job and, before it, the base models that it needs: their files are the results."""
    bases = {base_path(*base): base for _, config in jobs for base in bases_of(config)}
    bases = {path: base for path, base in bases.items() if not path.exists()}
    bases = dict(sorted(bases.items(), key=lambda item: item[1][1] == "base"))  # the longest first
    # A run is queued when the last of its base models is there: no core waits for all of them.
    place = {path: i for i, path in enumerate(bases)}
    ready: dict[int, list] = {i: [] for i in range(-1, len(bases))}
    for job in jobs:
        needed = (base_path(*base) for base in bases_of(job[1]))
        ready[max((place[path] for path in needed if path in place), default=-1)].append(job)
    with worker_pool(workers) if workers > 1 else contextlib.nullcontext() as pool:
        submit = pool.submit if pool else in_turn
        pretrained = [submit(pretrain_only, base) for base in bases.values()]
        runs = [submit(run_arm, job) for job in ready[-1]]
        for i, future in enumerate(progress(pretrained, "base models") if pretrained else ()):
            future.result()
            runs += [submit(run_arm, job) for job in ready[i]]
        for future in progress(runs, "runs"):
            future.result()


def run_claims(names: list[str], flags: dict, seeds: list[int], workers: int) -> dict[str, dict]:
    """The judged row of every named claim.

    Arms that claims share run once, finished ones never again: an interrupted call goes on where it
    stopped. Every run has one thread, so that no number depends on the workers.
    """
    torch.set_num_threads(1)  # as in the workers: it is part of what names a result
    jobs = {
        (name, arm, seed): claim_config(settings, flags, seed)
        for seed in seeds
        for name in names
        for arm, settings in CLAIMS[name].arms.items()
    }
    open_jobs = {result_path(*job): job for job in jobs.values()}
    open_jobs = [job for path, job in open_jobs.items() if not path.exists()]
    if open_jobs:
        run_jobs(open_jobs, workers)
    rows = {}
    for name in names:
        claim = CLAIMS[name]
        by_seed = [{arm: run_arm(jobs[name, arm, seed]) for arm in claim.arms} for seed in seeds]
        rows[name] = {
            **{"source": claim.source, "published": claim.published},
            **{"prediction": claim.prediction, "seeds": seeds, "flags": flags},
            **judge(claim, by_seed),
            **{"comment": claim.comment, "code": codes(claim)},
            "core_seconds": sum(numbers["seconds"] for r in by_seed for numbers in r.values()),
            "arms": {arm: {"settings": s} for arm, s in claim.arms.items()},
        }
        for arm, row in rows[name]["arms"].items():
            row["runs"] = [rounded(r[arm]) for r in by_seed]
    return rows


def codes(claim: Claim) -> list[str]:
    """Hashes of the code of all that the arms of a claim measure."""
    measures = {arm.get("measure", "training") for arm in claim.arms.values()}
    return sorted(code_of(MEASUREMENTS[measure])[0] for measure in measures)


def rounded(value):
    """Floats anywhere inside with five significant digits; None, which JSON has, for nan."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def main_claims(names: list[str], flags: dict) -> None:
    """Claims with their verdicts: on the terminal, in claims.json and claims.md, and drawn."""
    seeds, workers = flags.pop("seeds", MIN_SEEDS), flags.pop("workers", os.cpu_count() or 1)
    for name in names:
        if name not in (*CLAIMS, "all"):
            raise ValueError(f"--claim: {name!r}; allowed: all, {', '.join(CLAIMS)}")
    names = list(CLAIMS) if "all" in names else list(dict.fromkeys(names))
    check_several("claim", flags, seeds, workers)
    folder = Path(flags.pop("out_dir", "") or "out/claims")
    first, start = flags.pop("seed", 0), time.perf_counter()
    known = read_claims(folder)
    rows = run_claims(names, flags, list(range(first, first + seeds)), workers)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: (known | rows)[name] for name in CLAIMS if name in known | rows}
    write_json(folder / "claims.json", rounded(kept))
    write_atomically(folder / "claims.md", lambda p: p.write_text(claims_markdown(kept)))
    for name, row in progress(rows.items(), "pictures"):
        draw_claim(folder / f"claim-{name}.png", name, row)
    for name, row in rows.items():
        print(f"\n{claim_text(name, row)}")
    print(f"\nwritten: {folder / 'claims.json'}, {folder / 'claims.md'}, claim-<name>.png")
    print(f"{time.perf_counter() - start:.0f} seconds")


def read_claims(folder: Path) -> dict[str, dict]:
    """The rows of earlier calls. Raises ValueError if claims.json is none of this version."""
    path = folder / "claims.json"
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text())
        claims_markdown(rows)  # it looks at all that a row must have
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"--out_dir: {str(path)!r} has no claims of this version; allowed: another folder"
        ) from None
    return rows


# 5. What a person sees: tables and pictures -------------------------------------------------------


def interval_text(r: dict) -> str:
    """Mean and interval, such as -0.31 [-0.35, -0.27]."""
    if r["mean"] is None:
        return "-"
    spread = "" if r["low"] is None else f" [{r['low']:.3g}, {r['high']:.3g}]"
    return f"{r['mean']:.3g}{spread}"


def bound_text(r: dict) -> str:
    """What was predicted, such as < -0.1."""
    return f"> {r['above']:g}" if r["below"] is None else f"< {r['below']:g}"


def control_text(row: dict) -> str:
    """What the control does to the effect, in words."""
    first = row["statements"][0]["verdict"]
    if first in ("too few seeds", "not measured") or row["control"]["mean"] is None:
        return "not judged"
    if first != "reproduced":
        return "not asked, as the effect is not reproduced"
    return "removes the effect" if row["control"]["removes_effect"] else "keeps the effect"


def claim_text(name: str, row: dict) -> str:
    """A judged claim for the terminal."""
    lines = [f"{name}: {row['verdict'].upper()}   ({row['source']})"]
    for what, text in (
        ("Published: ", row["published"]),
        ("Predicted: ", row["prediction"]),
        ("About seeds 0 to 4: ", row["comment"]),
    ):
        if not text:
            continue
        lines += textwrap.wrap(what + text, 98, initial_indent="  ", subsequent_indent="  ")
    for s in row["statements"]:
        lines.append(f"  {s['verdict']:15}{interval_text(s):>25}  ({bound_text(s)})  {s['words']}")
    c = row["control"]
    lines.append(f"  {'control':15}{interval_text(c):>25}  {c['words']}: {control_text(row)}")
    lines.append(f"  {row['held']} of {len(row['statements'])} statements hold")
    return "\n".join(lines)


def claims_table(rows: dict[str, dict]) -> str:
    """One line a claim in Markdown, as it stands in the README."""
    lines = [
        "| `python train_gpt.py` with: | source | verdict; statements that hold "
        "| the effect: measured, predicted | control |",
        "|---" * 5 + "|",
    ]
    for name, row in rows.items():
        s, c = row["statements"][0], row["control"]
        lines.append(
            f"| `{claim_flags(name, row)}` | {row['source']} "
            f"| **{row['verdict']}**{older(name, row)}; {row['held']} of {len(row['statements'])} "
            f"| {s['words']}: {interval_text(s)}, {bound_text(s)} "
            f"| {c['words']}: {interval_text(c)}, {control_text(row)} |"
        )
    return "\n".join(lines)


def claim_flags(name: str, row: dict) -> str:
    """What regenerates a row, behind `python train_gpt.py`."""
    flags = {"claim": name, "seed": row["seeds"][0], "seeds": len(row["seeds"])} | row["flags"]
    if flags["seed"] == 0:
        del flags["seed"]
    switches = {True: "--{}", False: "--no-{}"}
    return " ".join(
        switches[v].format(k) if isinstance(v, bool) else f"--{k} {shlex.quote(str(v))}"
        for k, v in flags.items()
    )


def older(name: str, row: dict) -> str:
    """A mark of rows whose numbers come from another version of the code than this one."""
    return "" if row["code"] == codes(CLAIMS[name]) else " (older code)"


def claims_markdown(rows: dict[str, dict]) -> str:
    """The table of all claims, and every statement below it."""
    lines = ["# Claims", "", claims_table(rows)]
    for name, row in rows.items():
        lines += ["", f"## {name}: {row['verdict']}", "", f"![{name}](claim-{name}.png)", ""]
        lines += [f"Source: {row['source']}. Published: {row['published']}.", ""]
        lines += [f"Predicted before the runs: {row['prediction']}", ""]
        for s in row["statements"]:
            text = f"{s['words']}: {interval_text(s)}, predicted {bound_text(s)}"
            lines.append(f"- {s['verdict']}: {text}")
        c = row["control"]
        lines.append(f"- control, {control_text(row)}: {c['words']}: {interval_text(c)}")
        lines += ["", f"About seeds 0 to 4: {row['comment']}"] if row["comment"] else []
        lines += ["", f"    python train_gpt.py {claim_flags(name, row)}", ""]
        lines += [f"{row['core_seconds']:.0f} seconds of one core, without base models."]
    return "\n".join(lines) + "\n"


def draw_claim(path: Path, name: str, row: dict) -> None:
    """claim-<name>.png: what was measured in every arm, and each statement against its bound."""
    from matplotlib.figure import Figure

    claim = CLAIMS[name]
    runs = [{arm: a["runs"][i] for arm, a in row["arms"].items()} for i in range(len(row["seeds"]))]
    trained = [a for a, s in claim.arms.items() if s.get("measure", "rules") == "rules"]
    shown = claim.shown if trained else ()
    columns, count = len(shown) + len(claim.panels), len(row["statements"]) + 1
    width = 4.2 * columns + 6
    height = 2.2 + max(0.8 * count, 0.32 * len(trained) * bool(shown), 3.2)
    figure = Figure(figsize=(width, height), layout="constrained")
    heading = f"{name}: {row['verdict'].upper()}. Predicted: {row['prediction']}"
    figure.suptitle(textwrap.fill(heading, int(11 * width)), ha="left", x=0.01, fontsize=11)
    grid = figure.add_gridspec(1, columns + 1, width_ratios=[4.2] * columns + [6])
    for i, panel in enumerate(claim.panels):
        draw_panel(figure.add_subplot(grid[i]), panel, runs)
    for i, what in enumerate(shown, start=len(claim.panels)):
        draw_arms(figure.add_subplot(grid[i]), what, trained, runs, labelled=i == len(claim.panels))
    cells = grid[columns].subgridspec(count, 1)
    control = {"above": None, "below": None, "verdict": f"control, {control_text(row)}"}
    results = [*row["statements"], row["control"] | control]
    for cell, result in zip(cells, results):
        draw_statement(figure.add_subplot(cell), result)
    seeds = f"{row['seeds'][0]} to {row['seeds'][-1]}"
    caption = (
        f"Bars and bands: mean and 95 % interval over seeds {seeds}; small dots: seeds. Right: "
        "what was stated beforehand, shaded where it was predicted to lie; accuracy and shares as "
        f"fractions. Published: {row['published']} ({row['source']})"
    )
    figure.supxlabel(textwrap.fill(caption, int(15 * width)), ha="left", x=0.01, fontsize=8)
    write_atomically(path, lambda p: figure.savefig(p, dpi=100, format="png"))


VERDICT_COLOURS = {"reproduced": "tab:green", "not reproduced": "tab:orange", "opposite": "tab:red"}


def draw_statement(axes, result: dict) -> None:
    """An interval against the bound that the prediction shades; the control has no colour."""
    bound = result["above"] if result["below"] is None else result["below"]
    control = bound is None
    colour = "0.4" if control else VERDICT_COLOURS.get(result["verdict"], "tab:blue")
    half = 0 if result["low"] is None else result["high"] - result["mean"]
    if result["mean"] is not None:
        axes.errorbar(result["mean"], 0, xerr=half, fmt="o", capsize=4, color=colour)
    axes.plot(result["values"], [-0.35] * len(result["values"]), ".", color=colour, alpha=0.5)
    axes.axvline(0, color="0.7", lw=0.8)
    if not control:
        low, high = axes.get_xlim()
        low, high = min(low, bound), max(high, bound)
        low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
        axes.axvspan(*((bound, high) if result["below"] is None else (low, bound)), alpha=0.12)
        axes.set_xlim(low, high)
    words = f"{result['verdict']}: {result['words']}"
    axes.set_title(textwrap.fill(words, 78), fontsize=8, loc="left", color=colour)
    axes.set(yticks=[], ylim=(-0.7, 0.5))
    axes.tick_params(labelsize=8)


def draw_arms(axes, what: str, arms: list[str], runs: list[Runs], labelled: bool) -> None:
    """One measure after training in every arm, the untrained model as a dashed line."""
    split, _, heading = what.partition(".")
    words = {heading: words for words, heading in MEASURES.values()}
    for y, arm in enumerate(arms):
        values = [quantity(r, what, arm) for r in runs]
        before = float(np.mean([r[arm].get(f"before.{what}", math.nan) for r in runs]))
        axes.plot([before] * 2, [y - 0.35, y + 0.35], color="0.4", lw=1.2)
        m = mean_and_interval(values)
        half = 0 if m["low"] is None else m["high"] - m["mean"]
        axes.errorbar(m["mean"], y, xerr=half, fmt="o", capsize=3, color="tab:blue")
        axes.plot(values, [y] * len(values), ".", color="tab:blue", alpha=0.35)
    axes.plot([], [], color="0.4", lw=1.2, label="before training")
    axes.set_yticks(range(len(arms)), arms if labelled else [""] * len(arms), fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_title(f"{split} problems:\n{words[heading]}", fontsize=9)
    axes.set_xlim(0, 1.02 if heading in ("accuracy", "direct", "remark") else None)
    axes.grid(axis="x", alpha=0.3)
    if labelled:
        axes.legend(fontsize=7)


def draw_panel(axes, panel: Panel, runs: list[Runs]) -> None:
    """Curves with their 95 % intervals over seeds."""
    labels = panel.x(runs[0]) if callable(panel.x) else panel.x
    numeric = not any(isinstance(x, str) for x in labels)
    x = labels if numeric else list(range(len(labels)))
    for i, (label, curve) in enumerate(panel.curves.items()):
        by_seed = [[math.nan if y is None else y for y in curve(r)] for r in runs]
        points = [mean_and_interval(list(values)) for values in zip(*by_seed)]
        means = [p["mean"] for p in points]
        known = bool(points) and points[0]["low"] is not None
        half = [p["high"] - p["mean"] if known else 0 for p in points]
        if panel.joined:
            (line,) = axes.plot(x[: len(means)], means, marker=".", label=label)
            band = [[m + sign * h for m, h in zip(means, half)] for sign in (-1, 1)]
            axes.fill_between(x[: len(means)], *band, alpha=0.15, color=line.get_color())
        else:
            beside = [place + 0.1 * i for place in x[: len(means)]]
            axes.errorbar(beside, means, yerr=half, fmt="o", capsize=4, label=label)
    if not numeric:
        axes.set_xticks(x, labels, rotation=30 * (len(x) > 5))
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.x_label, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
