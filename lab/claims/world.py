"""What the toy world must be for the claims to mean something, as a table with intervals.

python -m lab.claims world              # seeds 0 to 4; finished runs are never repeated

Any other flag of train_gpt.py goes to all runs, which have 60 steps of 64 completions.
"""

import argparse
from pathlib import Path

from lab.claims.arms import GRPO, NO_FUNCTION, SDPO, Measure, MeasuredRun
from lab.claims.judge import summary
from lab.claims.runs import arm_numbers, run_all, runs_of
from lab.claims.statements import Quantity, Runs, Statement, at, change, value
from lab.claims.universes import Universe
from lab.flags import OneLineParser
from lab.runs import Flags, own_and_passed
from lab.storage import write_atomically, write_json

ARMS = {
    "base": Measure("careful"),
    "grpo": MeasuredRun("careful", GRPO),
    "sdpo": MeasuredRun("careful", SDPO),
    "grpo, no function": f"{GRPO} {NO_FUNCTION}",
    "sdpo, no function": MeasuredRun("careful", f"{SDPO} {NO_FUNCTION}"),
}


REFUSED = {  # flag: why not
    "--method": "see the arms", "--init": "all are in the toy", "--data": "all are in the toy",
    "--resume": "the same command goes on", "--seed": "--seeds says how many",
}


def measured(name: str, words: str, arm: str = "base") -> Quantity:
    """A number of the measure `careful`, a fraction."""
    return Quantity(f"{words} (fraction)", lambda runs: at(runs, arm, name))


def careful(split: str, arm: str = "base") -> Quantity:
    words = f"accuracy behind an opening `wait`, {split.replace('_', ' ')} problems"
    return measured(f"careful_{split}_accuracy_frac", words, arm)


def lost(glance: str) -> Quantity:
    """How much less often the hinted model is right behind a forced glance."""
    hinted, alone = (f"forced_{glance}_glance_{who}" for who in ("teacher", "unaided"))
    words = f"after a forced {glance} glance: with the solution minus without it (fraction)"
    return Quantity(words, lambda runs: at(runs, "base", hinted) - at(runs, "base", alone))


def checks_gone(runs: Runs) -> float:
    """Change by SDPO of the accuracy of completions that do open with the marker."""
    return careful("fresh", "sdpo").value(runs) - careful("fresh").value(runs)


fresh, direct = "fresh.accuracy", measured("fresh_direct_frac", "share of direct answers")
whole = value("before.fresh.accuracy", "sdpo")
banned = measured("banned_fresh_accuracy_frac", "the same, `wait` banned after it")
SECONDS = Quantity("seconds of pretraining", lambda runs: at(runs, "sdpo", "pretrain seconds"))
MUST: list[Statement] = [
    careful("fresh") > 0.95, careful("new_operators") > 0.95, careful("longer") > 0.8,
    whole > 0.6, whole < 0.75, direct > 0.35, direct < 0.5,
    Quantity("accuracy behind `wait`, if no other may follow: change (fraction)",
             lambda runs: banned.value(runs) - careful("fresh").value(runs)) < -0.15,
    change(fresh, "grpo") > 0.2, change("new_operators.accuracy", "grpo") > 0.15,
    change(fresh, "sdpo") < -0.25,
    Quantity("change of accuracy behind an opening `wait`: sdpo (fraction)", checks_gone) < -0.15,
    change(fresh, "grpo, no function") > -0.05, change(fresh, "sdpo, no function") > -0.05,
    lost("wrong") < 0, lost("right") > -0.05,
]
LONGER = "longer problems: completions with steps that leave an operation out"
ALSO = [
    *(change("longer.accuracy", arm) for arm in ("grpo", "sdpo", "sdpo, no function")),
    *(measured("left_out_frac_longer", f"{LONGER}, {arm}", arm)
      for arm in ("base", "sdpo", "sdpo, no function")),
]


class Plain(Universe):
    """The defaults: each row's own learning rate, the whole base model."""

    def trained(self, flags: Flags) -> Flags:
        return self.measured({"--steps": str(self.steps), **flags})


def main(arguments: list[str]) -> None:
    settings, given = settings_of(arguments)
    folder = Path(settings.out_dir)
    runs = [
        {arm: runs_of(content, given, Plain(seed, "own", 60, "full"), folder)
         for arm, content in ARMS.items()}
        for seed in range(settings.seeds)
    ]
    run_all({"world": [r for arms in runs for r in arms.values()]}, settings.workers,
            lambda name, left: None)
    numbers = [{arm: arm_numbers(r) for arm, r in arms.items()} for arms in runs]
    rows = [row_of(s.words, s.value, numbers, s) for s in MUST]
    rows += [row_of(q.words, q.value, numbers) for q in (*ALSO, SECONDS)]
    write_json(folder / "world.json", rows)
    write_atomically(folder / "world.md", lambda path: path.write_text(table(rows)))
    print(table(rows))


def settings_of(arguments: list[str]) -> tuple[argparse.Namespace, Flags]:
    """The settings of this command, and the flags for all runs."""
    parser = OneLineParser(
        prog="python -m lab.claims world", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    return own_and_passed(
        parser, arguments, limits={"seeds": (1, 1000)}, refused=REFUSED, out_dir="out/claims")


def row_of(words: str, quantity, numbers: list[Runs], must: Statement | None = None) -> dict:
    """A number over the seeds, its interval, and whether its mean is beyond its bound."""
    found = summary([float(quantity(runs)) for runs in numbers]) | {"n": len(numbers)}
    row = {"words": words, **found, "must": None, "met": None}
    if must is not None:
        row["must"] = must.bound
        row["met"] = found["mean"] is not None and bool(must.holds(found["mean"]))
    return row


def table(rows: list[dict]) -> str:
    """Markdown that a terminal shows as well."""
    lines = [f"The toy world, seeds 0 to {rows[0]['n'] - 1}: means with 95 % intervals.", "",
             "| what | must be | mean | interval | |", "|---" * 5 + "|"]
    for r in rows:
        ends = ("mean", "low", "high")
        mean, low, high = ("-" if r[end] is None else f"{r[end]:.3f}" for end in ends)
        met = {None: "", True: "met", False: "not met"}[r["met"]]
        lines.append(f"| {r['words']} | {r['must'] or ''} | {mean} | {low} to {high} | {met} |")
    return "\n".join(lines) + "\n"
