"""What will this method do to this checkpoint? One page, made before any training.

python -m lab.preflight --method sdpo                        # the toy: seconds
python -m lab.preflight --method opsd --init out/smollm2-135m --data lab/data/word_problems.jsonl
python -m lab.preflight --method opsd --divergence clipped_forward_kl         # a loss that is wrong

    1 loss and prompts   2 signals   3 forecast   4 cost   5 command line

Writes preflight.json and preflight.png to --out_dir. Lints are rows of lab/lints.py; the forecast
is that of lab/forecast.py. On a real checkpoint it is a hypothesis, and says so.
"""

import dataclasses
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import minisd
import toy_tasks
from lab import base, flags, forecast, hf, lints, preflight_page, storage
from lab.arena.forecast import has_forecast, transplanted
from lab.fixes import FIXES
from lab.fixes.row import Recipe
from lab.forecast import HINTED, NOW
from lab.measures.errors import first_wrong_token
from lab.measures.formulas import binned_means
from lab.memory import hand_back, keep_what_is_freed
from lab.preflight_law import CORRECTION, KINDS, LAW, Hint, hint_of, law_of, track_record, verdict
from lab.preflight_subject import Subject, parse, subject_of
from lab.report import READINGS
from lab.words import in_words_of, sight
from minisd import METHODS, Completions, Row

# 1. Loss and prompts ------------------------------------------------------------------------------


def loss_lint(subject: Subject) -> list[dict]:
    """What the rows of LOSS_LINTS find on a batch of the user's own problems."""
    look = lints.Loss.of(subject.method, subject.student, subject.teacher, subject.batch)
    return as_dicts(lints.findings(lints.LOSS_LINTS, look))


def prompt_lint(subject: Subject) -> dict:
    """What the rows of PROMPT_LINTS find, and both prompts of a problem as lists of tokens."""
    method, task = subject.method, subject.task
    own, pairs = method.student_context, []
    kind = next((c for _, _, c in method.terms if c != own), own)
    for row in subject.rows or [group[0] for group in subject.groups]:
        ids = [task.prompt_ids(row.example, row.contexts[k]) for k in (own, kind)]
        pairs.append((row.contexts[kind], *ids))
    rows = [row for group in subject.groups for row in group]
    window = subject.student.config.context_window
    look = lints.Shown(method, task, pairs, rows, subject.asked.max_new_tokens, window)
    found = lints.findings(lints.PROMPT_LINTS, look)
    if hasattr(task, "prompt_checks"):
        # Their readings say what is wrong.
        checks = [(what, passed, "" if passed else reading)
                  for what, passed, reading in task.prompt_checks(method)]
        found = [*checks, *found]
    one = sorted(pairs, key=lambda pair: len(pair[2]))[len(pairs) // 2]
    tokens = {who: list(map(look.word, ids)) for who, ids in zip(("student", "teacher"), one[1:])}
    return {"lints": as_dicts(found), "tokens": tokens, "context": kind}


def as_dicts(found: list) -> list[dict]:
    return [dict(zip(("what", "passed", "reading"), row)) for row in found]


# 2. Signals ---------------------------------------------------------------------------------------
FIRST = 4  # tokens that are counted as the beginning of a completion
DECILES = 10
CUTS = ("0 %", "25 %", "50 %", "75 %", "after an error")
EQUATION = re.compile(r"(\d+)\s*([-+*])\s*(\d+)\s*=\s*(-?\d+)")
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def signals(subject: Subject) -> dict:
    """Rewards of the student's completions, and what the teacher, who sees more, says of them."""
    rewards = torch.tensor([[row.reward for row in group] for group in subject.groups])
    found = {
        "pass_rates": rewards.mean(1).tolist(), "group_size": rewards.shape[1],
        "accuracy_frac": rewards.mean().item(),
        "equal_groups_frac": (rewards == rewards[:, :1]).all(1).float().mean().item(),
    }
    if not subject.distils or not subject.rows:
        return found
    return found | readings(subject) | {"horizon": horizon(subject)}


@torch.no_grad()
def readings(subject: Subject) -> dict:
    """READINGS on one completion of each problem: means, by place and by kind of token, in nats."""
    rows, sizes = subject.rows, subject.sizes(1, 1)
    shown = {kind: minisd.prompts_of(subject.task, rows, kind, subject.device)
             for kind in subject.method.contexts}
    written = Completions.of([r.ids for r in rows], subject.task.pad_id, subject.device)
    batch = minisd.Batch(rows, shown, written, torch.zeros(len(rows)), sizes)
    kept: dict[str, list[Tensor]] = {}
    for _, part in batch.parts():
        mask, t = part.completions.mask, torch.arange(part.completions.ids.shape[1])
        terms = subject.teacher.terms(part.shown)
        with sizes.autocast(subject.device):
            x = minisd.score(subject.method, subject.student, terms, part, READINGS)
        place = t.to(mask.device).expand_as(mask)
        x |= {"place": place, "tenth": place * DECILES // mask.sum(1, keepdim=True),
              "kind": subject.kinds[part.completions.ids]}
        for name, value in x.items():
            kept.setdefault(name, []).append(value[mask])
    x = {name: torch.cat(values).cpu() for name, values in kept.items()}
    gap, first = x["reverse_kl"], x["place"] < FIRST
    by_kind = [gap[x["kind"] == k].sum().item() for k in range(len(KINDS))]
    total = max(gap.sum().item(), 1e-12)
    return {
        "information_nats_per_token": gap.mean().item(),
        "information_first_frac": gap[first].sum().item() / total,
        "information_by_kind_frac": dict(zip(KINDS, (k / total for k in by_kind))),
        "information_by_tenth": binned_means(gap, x["tenth"], DECILES)[0],
        "overlap_frac": x["top_k_overlap"].mean().item(),
        "student_entropy": x["student_entropy"].mean().item(),
        "teacher_entropy": x["teacher_entropy"].mean().item(),
    }


def error_token(task: Any, row: Row) -> int | None:
    """How many tokens there are up to the first wrong one and with it; None: none can be told."""
    if isinstance(row.example, toy_tasks.Example):
        wrong = first_wrong_token(row.example, row.text)
        return None if wrong is None else wrong + 1
    for found in EQUATION.finditer(row.text):
        a, sign, b, c = found.groups()
        if max(map(len, (a, b, c))) < 20 and OPERATIONS[sign](int(a), int(b)) != int(c):
            lengths = (len(task.decode([*row.ids[:n], task.end_ids[0]])) for n in
                       range(1, len(row.ids) + 1))
            return next((n for n, size in enumerate(lengths, 1) if size >= found.end()), None)
    return None


@torch.no_grad()
def horizon(subject: Subject) -> dict:
    """Accuracy from the student's own prefixes, of the teacher and of the student, by CUTS."""
    task, asked, picked = subject.task, subject.asked, []
    count = max(8, asked.problems // 6)
    for row in subject.rows[:count]:
        body = [i for i in row.ids if i not in task.end_ids]
        places = [len(body) * quarter // 4 for quarter in range(4)]
        picked += [(row, c, body[:n]) for c, n in enumerate(places)]
    kinds = {c for _, _, c in subject.method.terms} - {"none"}
    for row in [r for group in subject.groups for r in group if all(map(r.contexts.get, kinds))]:
        error = error_token(task, row)
        if error is not None and row.ids[error:-1] and len(picked) < 5 * count:
            picked.append((row, len(CUTS) - 1, row.ids[:error]))
    rows, cuts, prefixes = zip(*picked)
    found, bins = {"cuts": CUTS}, torch.tensor(cuts)
    shown = {kind: subject.prompts(rows, kind, prefixes) for kind in subject.method.contexts}
    alone = [(1.0, subject.student, shown[subject.method.student_context])]
    for who, terms in (("teacher", subject.teacher.terms(shown)), ("student", alone)):
        _, generator = subject.chance("horizon")  # the same chance for both
        with subject.sizes(1, 1).autocast(subject.device):
            ids = minisd.sample(
                terms, max_new_tokens=asked.max_new_tokens, end_ids=task.end_ids,
                pad_id=task.pad_id, generator=generator).ids.tolist()
        rewards = [task.reward(task.decode([*p, *rest]), row.example)
                   for p, rest, row in zip(prefixes, ids, rows)]
        found[who], found["count"] = binned_means(torch.tensor(rewards), bins, len(CUTS))
    return found


# 3. Forecast --------------------------------------------------------------------------------------
def sampled(subject: Subject, hint: Hint, split: str, count: int) -> dict[str, Tensor]:
    """`samples_of` a split by the corrected law, whose own are named `law_...`."""
    look = subject.look(hint[0], (law_of(hint),))
    found = forecast.samples_of(look, split, count, subject.asked.seed)
    return {name.replace(look.laws[0], "law"): value for name, value in found.items()}


def on_pool(subject: Subject, hint: Hint) -> dict[str, Tensor]:
    """As `sampled`, on problems of the pool whose completions were looked at before, if any were.
    """
    look, rows = subject.look(hint[0], (law_of(hint),)), subject.rows
    if len(rows) < 2:  # where no sibling is right: others may have one
        return sampled(subject, hint, "train", max(4, subject.asked.problems // 2))
    rng, generator = subject.chance("pool")
    size = len(rows), subject.asked.max_new_tokens
    uniforms = torch.rand(size, generator=generator, device=subject.device)
    found = forecast.compared(look, rows, uniforms, rng)
    return {name.replace(look.laws[0], "law"): value for name, value in found.items()}


def forecast_of(subject: Subject) -> dict:
    """Accuracy on fresh and pool problems with an interval, a verdict, and what would change it."""
    hint, asked = hint_of(subject.method), subject.asked
    if hint is None:
        why = "the law is about a student that is its own teacher and sees one context, no rewards"
        return {"verdict": "cannot tell", "why": why}
    fresh = sampled(subject, hint, "fresh", asked.problems)
    pool = on_pool(subject, hint)
    known = asked.train_problems or (len(subject.task.pools["train"]) if subject.real else 0)
    visits = asked.steps * asked.batch_size / asked.group_size / (known or math.inf)
    own = subject.task.attempts.get(hint[0]) == "own"
    said = forecast.predictions(fresh, pool, "law", forecast.pool_share(LAW, visits, own))
    del said["verdict"]  # it knows the sampling error alone
    trust = track_record(subject.real)
    change, error = (said[f"predicted_fresh_change{x}_frac"] for x in ("", "_se"))
    half = 2 * math.hypot(error, trust["error_frac"])
    return said | {
        "context": hint[0], "visits": visits, "now": fresh[NOW].mean().item(),
        "hinted": fresh[HINTED].mean().item(), "half_width_frac": half, "trust": trust,
        "correction": CORRECTION, "hypothesis": subject.real,
        "verdict": verdict(change, half, trust["failed"]), "fixes": fixes(subject, hint),
        "fresh": {name: x.mean().item() for name, x in fresh.items()},
        "pool": {name: x.mean().item() for name, x in pool.items()},
    }


def candidates(subject: Subject) -> dict[str, Hint]:
    """What could be done instead, as the law sees it: contexts, and rows with another target.

    A row of METHODS with terms over contexts enters by itself; the law is blind to divergences,
    credits, token weights and advantages.
    """
    kind, *_ = hint_of(subject.method)
    found = {f"half of the hint (target half {sight(kind)}, half no hint)": (kind, 0.5, 0.5)}
    known = subject.task.attempts
    contexts = toy_tasks.CONTEXTS if not subject.real else ("partial", "answer", *known)
    for other in contexts:
        row = toy_tasks.CONTEXTS.get(other)
        if other != "none" and not (row and row.draws_rule):
            found[f"--context {other}"] = (other, 1.0, 0.0)
    for name, method in METHODS.items():
        if (hint := hint_of(method)) and hint not in found.values():
            found[f"--method {name}"] = hint
    return {name: hint for name, hint in found.items() if hint != hint_of(subject.method)}


def fixes(subject: Subject, hint: Hint) -> list[dict]:
    """Forecasts of the candidates on fewer problems, the largest change of the forecast first."""
    count, rows = subject.asked.fix_problems, []
    if not count:
        return rows
    for name, other in {"as asked for": hint, **candidates(subject)}.items():
        try:
            values = sampled(subject, other, "fresh", count)["law_accuracy_frac"]
        except ValueError:  # the data cannot show it
            continue
        rows.append({"fix": name, "predicted_fresh_accuracy_frac": values.mean().item()})
    now = rows[0]["predicted_fresh_accuracy_frac"]
    for row in rows:
        row["difference_frac"] = row["predicted_fresh_accuracy_frac"] - now
    rows += arena_fixes(subject, hint, count)
    return sorted(rows[1:], key=lambda row: -abs(row["difference_frac"]))


def arena_fixes(subject: Subject, hint: Hint, count: int) -> list[dict]:
    """As `fixes`, of the arena's rows whose target is made of several contexts.

    Each differs from the target asked for on the same random numbers. Nothing is said behind a
    context made of an attempt, nor of rows with contexts that the task does not know.
    """
    rows, attempts = [], subject.task.attempts
    if hint[0] in attempts:
        return rows
    names: dict[Recipe, list[str]] = {}  # by target: rows may differ in weights alone
    for name, fix in FIXES.items():
        r = fix.recipe
        if has_forecast(name, attempts) and len({c for _, _, c in r.terms}) > 1:
            target = Recipe(target=r.terms, combine=r.combine, strength=r.strength)
            names.setdefault(target, []).append(name)
    kind, hinted, bare = hint
    asked = Recipe(target=((hinted, "frozen", kind), *([(bare, "frozen", "none")] * (bare != 0))))
    look, seed = subject.look(hint[0], (LAW,)), f"preflight-{subject.asked.seed}"
    for recipe in (asked, *names):
        try:
            rewards = transplanted(subject.task, subject.student, recipe, count, look.sizes,
                                   look.classes, forecast.LAWS[LAW], seed)
        except (KeyError, ValueError):  # a context that the task or its data cannot show
            continue
        rows.append({"fix": f"the arena's {', '.join(names.get(recipe, ()))}",
                     "predicted_fresh_accuracy_frac": sum(rewards) / count})
    now = rows[0]["predicted_fresh_accuracy_frac"]
    for row in rows:
        row["difference_frac"] = row["predicted_fresh_accuracy_frac"] - now
    return rows[1:]


# 4. Cost ------------------------------------------------------------------------------------------
DECODED = 8  # tokens of each completion that are sampled to see how long one takes


class TimedAdamW(torch.optim.AdamW):
    """Its learning rate is 0, so that it costs what it costs and leaves the weights alone."""

    def step(self, closure: Any = None) -> None:
        start = time.perf_counter()
        super().step(closure)
        self.seconds = time.perf_counter() - start


def cost(subject: Subject) -> dict:
    """Seconds and bytes of a step of the run asked for, from one micro-batch, by dtype."""
    asked, batch, rows = subject.asked, subject.batch, {}
    size = batch.sizes.micro_batch or max(16, math.ceil(asked.batch_size / 4))
    picked = torch.arange(min(size, len(batch.rows), asked.batch_size))
    part = dataclasses.replace(
        lints.rows_of(batch, picked), rows=batch.rows[: len(picked)],
        rewards=batch.rewards[picked], completions=batch.completions.take(picked),
        shown={kind: p.take(picked) for kind, p in batch.shown.items()})
    lengths = [len(row.ids) for group in subject.groups for row in group]
    tokens = sum(lengths) / len(lengths)
    for dtype in ("float32", "bfloat16"):
        sizes = dataclasses.replace(part.sizes, dtype=dtype)
        rows[dtype] = measured(subject, dataclasses.replace(part, sizes=sizes), tokens)
    weights = sum(p.numel() for p in subject.student.parameters())
    copies = {w for _, w, _ in subject.method.terms} - {"live"} if subject.distils else set()
    copies |= {"reference"} if subject.method.kl_coef else set()
    return {
        "device": subject.device.type, "threads": torch.get_num_threads(), "by_dtype": rows,
        "dtype": batch.sizes.dtype, "micro_batch": len(picked), "completion_tokens": tokens,
        # Weights, gradients and two moments in float32; each further model once more.
        "weights_bytes": 4 * weights * (4 + len(copies)), "steps": asked.steps,
    }


def measured(subject: Subject, part: minisd.Batch, tokens: float) -> dict[str, float]:
    """Seconds of sampling, of a micro-batch, of the optimiser and of a whole step, and bytes."""
    asked, method, many = subject.asked, subject.method, len(part.rows)
    optimizer = TimedAdamW(subject.student.parameters(), lr=0.0, weight_decay=0.0)
    prompts = part.shown[method.student_context]
    prompts = prompts.take(torch.arange(asked.batch_size, device=subject.device) % many)
    _, generator = subject.chance("cost")

    def decoded() -> list[float]:  # when each token was there
        times = []

        def pick(*given: Any) -> Tensor:
            token = minisd.pick_token(*given)
            times.append(now(subject.device))
            return token

        with part.sizes.autocast(subject.device):
            minisd.sample([(1.0, subject.student, prompts)], max_new_tokens=1 + DECODED, end_ids=(),
                          pad_id=subject.task.pad_id, generator=generator, pick=pick)
        return times

    def step_on(part: minisd.Batch) -> None:
        minisd.step(method, subject.student, subject.teacher, optimizer, part,
                    reference=subject.student, grad_clip=1e9)

    # The first step imports a compiler, and allocates.
    one = lints.rows_of(part, torch.arange(1))
    one = dataclasses.replace(
        one, rows=part.rows[:1], rewards=part.rewards[:1],
        shown={kind: p.take(torch.arange(1)) for kind, p in part.shown.items()})
    step_on(one)
    start = now(subject.device)
    first, *_, last = decoded()
    before, begun = memory(subject.device, reset=True), now(subject.device)
    step_on(part)
    spent = now(subject.device) - begun
    once, mask = spent - optimizer.seconds, part.completions.mask
    sampling = first - start + (last - first) / DECODED * tokens if method.student_frac else 0.0
    whole = once * asked.batch_size * tokens / mask.sum().item()
    return {
        "sampling_s": sampling, "micro_batch_s": once, "optimizer_s": optimizer.seconds,
        "step_s": sampling + whole + optimizer.seconds,
        "micro_batch_bytes": memory(subject.device) - before,
    }


def now(device: torch.device) -> float:
    """Seconds on a clock, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def memory(device: torch.device, reset: bool = False) -> int:
    """The most bytes in use since the last reset; 0 where the system does not tell."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            hand_back()
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return 0


# 5. Command line ----------------------------------------------------------------------------------
PARTS = {  # what: Subject -> its part of preflight.json
    "loss": loss_lint, "prompts": prompt_lint, "signals": signals, "forecast": forecast_of,
    "cost": cost,
}


def main(arguments: list[str]) -> None:
    settings = parse(arguments, "python -m lab.preflight", __doc__)
    folder = Path(settings[0].out_dir)
    flags.require_packages("matplotlib.figure", *(hf.NEEDED if settings[3].init else ()))
    folder.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    start = time.perf_counter()
    if settings[3].init:
        keep_what_is_freed()
    subject = subject_of(*settings)
    spent = {"loading": time.perf_counter() - start}
    found: dict[str, Any] = {"seconds": spent, "settings": {
        type(group).__name__.lower(): dataclasses.asdict(group) for group in settings}}
    found["method"] = in_words_of(subject.method)
    found["parameters"] = sum(p.numel() for p in subject.student.parameters())
    for what in base.progress(PARTS, "preflight"):
        start = time.perf_counter()
        found[what] = PARTS[what](subject)
        spent[what] = time.perf_counter() - start
    storage.write_json(folder / "preflight.json", found)
    preflight_page.draw(folder / "preflight.png", found)
    width = min(120, shutil.get_terminal_size((100, 40)).columns)
    print(preflight_page.text(found, width, preflight_page.has_colour()))
    print(f"written: {folder / 'preflight.json'}, {folder / 'preflight.png'}")


if __name__ == "__main__":
    flags.run_main("python -m lab.preflight", main)
