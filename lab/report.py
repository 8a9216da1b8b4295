"""What a person sees of a run: log lines, warnings, checks, tables and pictures."""

import dataclasses
import json
import math
import random
import statistics
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import minisd
from lab import distributed, storage
from lab.base import shape_of
from lab.evaluation import Evaluation
from lab.graders import Cut
from lab.memory import peak_mib
from lab.words import DIVERGENCES, in_words_of, method_table  # noqa: F401
from minisd import GPT, Batch, Completions, Method, Prompts, Sizes, Task

# 1. What is logged --------------------------------------------------------------------------------


def top_k_overlap(student_logits: Tensor, teacher_logits: Tensor, k: int) -> Tensor:
    """|top k of student and teacher in common| / k per position, (B, T), a fraction.

    Source: Li et al., arXiv:2604.13016.
    """
    both = minisd.is_top(student_logits, k) & minisd.is_top(teacher_logits, k)
    return both.sum(-1) / k


READINGS = {  # (student logits, teacher logits (B, T, V)) -> (B, T)
    "forward_kl": minisd.forward_kl,
    "reverse_kl": minisd.reverse_kl,
    "student_entropy": lambda s, t: minisd.entropy(s),
    "teacher_entropy": lambda s, t: minisd.entropy(t),
    "top_k_overlap": lambda s, t: top_k_overlap(s, t, min(4, s.shape[-1])),
}
COLUMNS = {  # logged quantity: heading and format of its column
    "step": ("step", "{:>5.0f}"),
    "loss": ("loss", "{:>8.4f}"),
    "reward": ("reward", "{:>7.3f}"),
    "forward_kl": ("KL(t||s)", "{:>9.4f}"),
    "reverse_kl": ("KL(s||t)", "{:>9.4f}"),
    "student_entropy": ("H stud", "{:>7.3f}"),
    "teacher_entropy": ("H teach", "{:>8.3f}"),
    "top_k_overlap": ("overlap", "{:>8.3f}"),
    "grad_norm": ("|grad|", "{:>7.3f}"),
    "completion_tokens": ("tokens", "{:>7.1f}"),
    "cut_frac": ("cut", "{:>6.2f}"),
    "equal_groups_frac": ("equal", "{:>6.2f}"),
    "tokens_per_s": ("tok/s", "{:>7.0f}"),
    "step_ms": ("ms", "{:>5.0f}"),
}
HEADER = "".join(heading.rjust(len(form.format(0))) for heading, form in COLUMNS.values())
UNITS = "KL and entropy H in nats per token; reward, overlap, cut, equal-reward groups as fractions"


class Log:
    """metrics.jsonl, the lines on the terminal, and warnings that are given once.

    rows: those of a resumed run up to its checkpoint; the file may have more, which go.
    """

    def __init__(self, folder: Path | None, rows: list[dict], quiet: bool = False):
        self.file, self.rows, self.quiet = folder and folder / "metrics.jsonl", rows, quiet
        self.warned, self.lines = set(), 0
        if self.file:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            storage.write_atomically(self.file, lambda path: path.write_text(text))

    def write(self, kind: str, row: dict) -> None:
        self.rows.append({"kind": kind, **row})
        if self.file:
            with self.file.open("a") as f:
                f.write(json.dumps(self.rows[-1]) + "\n")

    def step(self, row: dict[str, float]) -> None:
        """A row with exactly the quantities of COLUMNS, in any order."""
        if row.keys() != COLUMNS.keys():
            raise RuntimeError(f"columns changed: {row.keys() ^ COLUMNS.keys()}")
        self.write("step", {name: row[name] for name in COLUMNS})
        if self.lines == 0:
            self.say(UNITS)
        if self.lines % 15 == 0:
            self.say(HEADER)
        self.lines += 1
        self.say("".join(form.format(row[name]) for name, (_, form) in COLUMNS.items()))

    def batch(
        self, n: int, batch: Batch, numbers: dict[str, float], seconds: float, end_ids: tuple
    ) -> dict:
        """The row of step n: what `minisd.step` returned, and what the batches were like.

        Means over the processes; tokens per second are those of all. Without one of the end_ids a
        completion is cut.
        """
        tokens = int(batch.completions.mask.sum())
        row = distributed.mean(numbers | {
            "reward": batch.rewards.mean().item(),
            "completion_tokens": tokens / len(batch.rows),
            "cut_frac": sum(x.ids[-1] not in end_ids for x in batch.rows) / len(batch.rows),
            "equal_groups_frac": batch.equal_groups_frac,
            "tokens_per_s": distributed.processes() * tokens / seconds, "step_ms": 1000 * seconds,
        }) | {"step": n}
        self.step(row)
        return row

    def evaluation(self, n: int, results: dict[str, Evaluation], task: Task) -> None:
        """The means after step n, three wrong answers as text, a warning if most are cut off."""
        self.write("evaluation", {"step": n} | {k: e.means for k, e in results.items()})
        if moments := [m for e in results.values() for m in e.moments]:
            self.keep({"step": n, "moments": moments})
        self.warn_of_cuts(max(e.means.get("cut_frac", 0.0) for e in results.values()))
        for line in failures(results[main_split(results)], task) if n else ():
            self.say(line)

    def keep(self, row: dict) -> None:
        """A line of page.jsonl, for lab/page.py, in place of what a killed process wrote later.

        row: its step first, so that earlier lines, which are long, need not be parsed.
        """
        path = self.file and self.file.with_name("page.jsonl")
        if path:
            lines = path.read_text().splitlines() if path.exists() else []
            steps = [int(line.removeprefix('{"step": ').partition(",")[0]) for line in lines]
            kept = [line for line, step in zip(lines, steps) if step < row["step"]]
            text = "".join(f"{line}\n" for line in (*kept, json.dumps(row)))
            storage.write_atomically(path, lambda path: path.write_text(text))

    def checks(self, checks: list[tuple[str, bool | None, str]]) -> None:
        """One line for all start-up checks. Raises ValueError for one that failed; None warns."""
        for what, passed, reading in checks:
            if passed is None:
                self.warn(f"start-up check in doubt: {what} ({reading})")
            elif not passed:
                raise ValueError(f"start-up check failed: {what} ({reading})")
        self.say("checks: " + ", ".join(f"{what} ok" for what, passed, _ in checks if passed))

    def say(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text)

    def warn_of_cuts(self, share: float) -> None:
        if share > 1 / 3:
            self.warn("more than a third of the completions are cut off at --max_new_tokens, and "
                      "earn 0")

    def warn(self, text: str) -> None:
        if self.file and text not in self.warned:
            self.warned.add(text)
            tqdm.write(f"warning: {text}", file=sys.stderr)


def warn_of_flat_signals(
    method: Method, batch: Batch, row: dict, log: Log, steps: int | None = None, task: Any = None
) -> None:
    """Says once, in words, that a part of the learning is silently off. steps: of the whole run."""
    groups, rate = batch.by_group(), method.teacher_update_rate
    log.warn_of_cuts(sum(isinstance(row.text, Cut) for row in batch.rows) / len(batch.rows))
    if hasattr(task, "cut_thoughts"):
        limit = batch.sizes.max_new_tokens
        if said := task.cut_thoughts(batch.rows, method.student_context, limit):
            log.warn(said)
    if method.reward_weight > 0 and (groups == groups[:, :1]).all():
        log.warn("all rewards are equal within every group: the policy gradient is zero")
    kinds = {c for _, _, c in method.terms} - {"none"}
    shown = any(all(row.contexts[kind] for kind in kinds) for row in batch.rows)
    if method.reward_weight < 1 and not shown:
        log.warn("no completion of a batch has a privileged context: nothing to distil")
    if row["grad_norm"] == 0:
        log.warn("the gradient is zero: nothing is learned")
    if method.teacher in ("ema", "trust_region") and rate == 0 and not method.target:
        log.warn(f"--teacher_update_rate 0: the {method.teacher} teacher never moves")
    if method.teacher == "snapshot" and steps and method.teacher_every > steps:
        log.warn(f"--teacher_every {method.teacher_every}: no snapshot is taken in so few steps")


PROBE_TOKENS = 64  # of a completion in the start-up checks: enough to see a shift by one


def start_up_checks(
    method: Method, task: Task, student: GPT, sizes: Sizes, *, toy: bool
) -> list[tuple[str, bool | None, str]]:
    """(what, passed, reading) of checks that take a moment and catch most broken set-ups.

    A task may add its own as `prompt_checks`; None instead of True or False is a warning.
    """
    rng, device = random.Random(0), next(student.parameters()).device
    sizes = dataclasses.replace(sizes, max_new_tokens=min(sizes.max_new_tokens, PROBE_TOKENS))
    kind, generator = method.student_context, torch.Generator(device).manual_seed(0)
    # Whatever the teacher will be: here the student, which sees no more than it does itself.
    itself = SimpleNamespace(terms=lambda shown: [(1.0, student, shown[kind])])
    groups = minisd.write_groups(method, task, student, itself, rng, generator, sizes, 4)
    rows = [row for group in groups for row in group]
    prompts = minisd.prompts_of(task, rows, kind, device)
    ids, log_probs = [row.ids for row in rows], [row.log_probs for row in rows]
    written = Completions.of(ids, task.pad_id, device, log_probs)
    rewards = torch.tensor([row.reward for row in rows], device=device)
    kl, ratios = 0.0, []
    for _, part in Batch(rows, {kind: prompts}, written, rewards, sizes).parts():
        with torch.no_grad(), sizes.autocast(device):
            terms = [(1.0, student, part.shown[kind])]
            x = minisd.score(method, student, terms, part, {"reverse_kl": minisd.reverse_kl})
        kl = max(kl, x["reverse_kl"].abs().max().item())
        own = x["student_log_probs"] - part.completions.token_log_probs
        ratios.append(own.exp()[part.completions.mask].sub(1).abs())
    off = torch.cat(ratios)
    # In bfloat16 sampling rounds otherwise than scoring, since it goes token by token.
    exact = sizes.dtype == "float32"
    ratio, limit = (off.max().item(), 1e-3) if exact else (off.mean().item(), 0.1)
    right = [task.reward(task.reference(row.example, rng), row.example) for row in rows]
    seen = [ids[pad:] for ids, pad in zip(prompts.ids.tolist(), prompts.pad_count.tolist())]
    leaks = sum(ids != task.prompt_ids(row.example) for ids, row in zip(seen, rows))
    checks = [
        ("KL to itself is 0", kl < 1e-4, f"{kl:.1e} nats"),
        ("references score 1", min(right) == 1, f"{sum(right):.0f} of {len(right)}"),
    ]
    if kind == "none":
        what = "no leak into the student's prompt"
        checks.append((what, leaks == 0, f"{leaks} of {len(seen)} prompts"))
    if method.student_frac == 1:
        checks.append(("importance ratio is 1", ratio < limit, f"off by {ratio:.1e}"))
    if hasattr(task, "prompt_checks"):
        checks += task.prompt_checks(method)
    # A second, untrained model of a checkpoint's size would fill the memory for nothing.
    return [untrained_check(student, prompts), *checks] if toy else checks


def untrained_check(student: GPT, prompts: Prompts) -> tuple[str, bool, str]:
    """The loss of a model of that shape that has learned nothing."""
    ids = prompts.ids
    fresh = GPT(student.config, torch.Generator().manual_seed(0)).to(ids.device)
    with torch.no_grad():
        logits = fresh(ids[:, :-1]).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
    log_v = math.log(student.config.vocab_size)
    passed, reading = abs(loss - log_v) < 0.1 * log_v, f"{loss:.2f} of {log_v:.2f} nats"
    return "untrained loss is log V", passed, reading


# 2. Tables and pictures ---------------------------------------------------------------------------

MEASURES = {  # measured quantity: title of its picture, heading of its column
    "accuracy_frac": ("accuracy (fraction)", "accuracy"),
    "markers_per_completion": ("epistemic markers per completion", "markers"),
    "direct_frac": ("share of direct answers (fraction)", "direct"),
    "completion_tokens": ("completion length (tokens)", "tokens"),
    "cut_frac": ("share cut off at the length limit (fraction)", "cut"),
}
HIDDEN = {"remark_frac"}  # in summary.json alone


def shown_measures(means: dict[str, float]) -> list[str]:
    """Those that tables and pictures have room for, the ones that MEASURES knows first."""
    unknown = [name for name in means if name not in MEASURES and name not in HIDDEN]
    return ([name for name in MEASURES if name in means] + unknown)[:5]


def main_split(splits) -> str:
    """The split that tells what was learned beside the training problems."""
    return "fresh" if "fresh" in splits else [s for s in splits if s != "teacher"][-1]


def failures(evaluation: Evaluation, task: Task) -> list[str]:
    """Three wrong completions, each a line with its prompt and what was expected."""
    lines, e = [], evaluation
    for example, text in [(x, t) for x, t, r in zip(e.examples, e.texts, e.rewards) if r < 1][:3]:
        expected = brief(answer_of(example, task))
        lines.append(f"    wrong: {brief(prompt_of(example) + text)}   (expected {expected})")
    return lines


def prompt_of(example) -> str:
    return str(getattr(example, "prompt", example))


def answer_of(example, task: Task) -> str:
    """What is expected: the answer, or a reference of a task whose examples have none."""
    return str(getattr(example, "answer", "")) or task.reference(example, random.Random(0))


def chosen(before: Evaluation, task: Task) -> list[dict]:
    """Three problems, of rising length, with what is answered before training."""
    examples = before.examples
    lengths = sorted(range(len(examples)), key=lambda i: len(prompt_of(examples[i])))
    return [
        {"index": i, "prompt": prompt_of(examples[i]), "answer": answer_of(examples[i], task)}
        # str: a Cut would be a class in the saved state, which is read without classes.
        | {"before": str(before.texts[i]), "before_right": before.rewards[i] == 1}
        for i in (lengths[int(share * (len(lengths) - 1))] for share in (0.3, 0.6, 0.9))
    ]


def samples(before: list[dict], after: Evaluation) -> list[dict]:
    """The `chosen` problems with what is answered after training as well."""
    return [
        {name: value for name, value in row.items() if name != "index"}
        | {"after": str(after.texts[row["index"]]), "after_right": after.rewards[row["index"]] == 1}
        for row in before
    ]


def before_after_table(summary: dict) -> str:
    """The table at the end of a run."""
    names = shown_measures(next(iter(summary["before"].values())))
    headings = [MEASURES.get(name, ("", name))[1] for name in names]
    lines = [" " * 15 + "".join(brief(heading, 10).rjust(16) for heading in headings)]
    for split, means in summary["before"].items():
        cells = (f"{means[name]:6.2f} -> {summary['after'][split][name]:5.2f}" for name in names)
        lines.append(f"{split:15}" + "".join(cell.rjust(16) for cell in cells))
    lines.append("fractions; markers and tokens per completion; before -> after")
    return "\n".join(lines)


def in_words(summary: dict) -> str:
    """What the table says, for somebody who sees it for the first time."""
    split = main_split(summary["before"])
    before, after = (summary[when][split] for when in ("before", "after"))
    change = {name: after[name] - before[name] for name in before}
    surer = change.get("markers_per_completion", 0) < -0.1 and change.get("direct_frac", 0) > 0.1
    surer = surer and change["completion_tokens"] < -1
    manner = "hesitates less, writes shorter and " if surer else ""
    gain = change["accuracy_frac"]
    result = "more" if gain > 0.05 else "less" if gain < -0.05 else "as"
    return (f"On {split} problems the model now {manner}is {result} often right "
            f"({before['accuracy_frac']:.2f} -> {after['accuracy_frac']:.2f}).")


def sample_lines(summary: dict) -> str:
    """The prompts answered before and after, with a mark for right and wrong."""
    lines = []
    for s in summary["samples"]:
        lines.append(f"{brief(s['prompt'])} (expected {brief(s['answer'])})")
        for when in ("before", "after"):
            verdict = "right" if s[f"{when}_right"] else "WRONG"
            lines.append(f"  {when:6} {verdict}  {brief(s[when])}")
    return "\n".join(lines)


def brief(text: str, length: int = 120) -> str:
    """A text in one line, without its middle if it is long, and without control characters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"


NEEDED = ("matplotlib.figure", "matplotlib.backends.backend_agg")  # asked for before the work


def draw(settings: Any, rows: list[dict], summary: dict) -> None:
    """curves.png in the folder of a run."""
    run = settings.run
    title = f"{run.method}, seed {run.seed}: {settings.method.source}"
    draw_curves(run.folder / "curves.png", title, rows, summary)


def draw_so_far(settings: Any, task: Any, log: Log, notes: dict, after: dict) -> None:
    """curves.png after the first evaluation of a longer run, so that nobody waits for the end."""
    evaluations = sum(row["kind"] == "evaluation" for row in log.rows)
    if not log.file or evaluations != 2 or log.rows[-1]["step"] == settings.run.steps:
        return
    draw(settings, log.rows, summary_of(settings, task.splits, notes, after))
    log.say(f"a first picture: {settings.run.folder / 'curves.png'}")


def draw_curves(path: Path, title: str, rows: list[dict], summary: dict) -> None:
    """curves.png: what happened over the steps, and three prompts before and after."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    evaluations = [r for r in rows if r["kind"] == "evaluation"]
    steps = [r for r in rows if r["kind"] == "step"]
    pairs = {
        "divergence on the student's completions (nats per token)": ("forward_kl", "reverse_kl"),
        "entropy (nats per token)": ("student_entropy", "teacher_entropy"),
    }
    names = shown_measures(next(iter(summary["before"].values())))
    height = math.ceil((len(names) + len(pairs)) / 3)
    figure = Figure(figsize=(13, 2.5 + 3.3 * height), layout="constrained")
    figure.suptitle(title, parse_math=False)
    grid = figure.add_gridspec(height + 1, 3, height_ratios=[*[1] * height, 0.75])
    panels = iter([figure.add_subplot(grid[i // 3, i % 3]) for i in range(len(names) + len(pairs))])
    for name, axes in zip(names, panels):
        for split in (*summary["before"], "teacher"):
            label = "teacher with context, train" if split == "teacher" else split
            values = [e[split][name] for e in evaluations]
            style = ":" if split == "teacher" else "-"
            axes.plot([e["step"] for e in evaluations], values, style, marker=".", label=label)
        axes.set_title(MEASURES.get(name, (name, ""))[0])
        axes.set_ylim(0, 1.02 if name.endswith("_frac") else None)
    figure.axes[0].legend(fontsize=8, framealpha=0.6)
    for axes, (words, both) in zip(panels, pairs.items()):
        for name in both:
            label = DIVERGENCES.get(name, name.replace("_", " "))
            axes.plot([r["step"] for r in steps], [r[name] for r in steps], label=label)
        axes.set_title(words)
        axes.set_ylim(0, None)
        axes.legend(fontsize=8)
    for axes in figure.axes:
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    text = figure.add_subplot(grid[height, :])
    text.axis("off")
    # A dollar sign is money, not mathematics.
    look = {"va": "top", "family": "monospace", "fontsize": 9, "parse_math": False}
    text.text(0, 1, sample_lines(summary), **look)
    save_figure(path, figure)


def save_figure(path: Path, figure) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font lacks some of what a model may write
        storage.write_atomically(path, lambda p: figure.savefig(p, dpi=110, format="png"))


# 3. The lines at the start and at the end ---------------------------------------------------------


def start_lines(settings: Any) -> str:
    """A run in three lines: the method in words, sizes, what differs from the defaults."""
    run, method, size = settings.run, settings.method, f"checkpoint {settings.checkpoint.init}"
    if not settings.checkpoint.init:
        with torch.device("meta"):  # nothing is computed
            parameters = sum(p.numel() for p in GPT(shape_of("base")).parameters())
        size = f"{parameters / 1e6:.2f}M parameters"
    pool = f"{run.train_problems} problems" if run.train_problems else "endless problems"
    groups = run.batch_size // run.group_size
    row = dataclasses.asdict(minisd.METHODS[run.method])
    changed = []
    for group in dataclasses.fields(settings):
        values = getattr(settings, group.name)
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            usual = row[field.name] if group.name == "method" else field.default
            if value != usual and field.name not in ("method", "seed", "out_dir", "cache_dir"):
                changed.append(f"{field.name}={value}")
    return "\n".join([
        f"{run.method} ({method.source}): {in_words_of(method)}",
        f"{size}, {pool}, {run.steps} steps of {run.batch_size} completions ({groups} problems x "
        f"{run.group_size}), device {run.device}, seed {run.seed} -> {run.folder}",
        f"changed: {' '.join(changed) or 'nothing'}",
    ])


def summary_of(
    settings: Any, splits: tuple[str, ...], notes: dict, after: dict
) -> dict[str, Any]:
    """What summary.json holds, from notes made on the way and the last evaluation."""
    run = settings.run
    return {
        "method": run.method, "seed": run.seed, "steps": run.steps,
        "pretrain_s": notes["pretrain_s"], "train_s": notes["train_s"],
        "step_s": statistics.median(notes["step_s"]), "peak_memory_gib": peak_mib() / 1024,
        "before": {split: notes["before"][split] for split in splits},
        "after": {split: after[split].means for split in splits},
        "teacher_accuracy_frac": {
            "unadapted": notes["before"]["teacher"]["accuracy_frac"],
            "before": notes["teacher_at_start"], "after": after["teacher"].means["accuracy_frac"],
        },
        "samples": samples(notes["samples"], after[main_split(after)]),
    }


def end_lines(settings: Any, summary: dict, known: bool) -> str:
    """Table, sentence, three answers, files; known: the folder held the run already."""
    folder, lines = settings.run.folder, []
    if known:
        lines.append(f"{folder} already holds this run: its results are shown; to start over, "
                     "delete that folder or name another --out_dir")
        stored = json.loads((folder / "config.json").read_text()).get("record", {})
        if stored.get("code") != storage.code_version():
            lines.append("NOTE: the code has changed since; these are the old results")
    lines += [f"\n{before_after_table(summary)}\n{in_words(summary)}\n\n{sample_lines(summary)}\n"]
    weights = "checkpoint" if settings.checkpoint.init else "student.pt"
    names = ("config.json", "metrics.jsonl", "curves.png", weights, "summary.json")
    lines.append("written: " + ", ".join(str(folder / name) for name in names))
    if (folder / "page.jsonl").exists():
        lines.append(f"token by token: python -m lab.page {storage.shell_word(str(folder))}")
    lines.append(f"seconds: pretraining {summary['pretrain_s']:.1f} (cached afterwards), training "
                 f"{summary['train_s']:.1f}, this run {summary['wall_s']:.1f}; a step (median) "
                 f"{summary['step_s']:.2f}; peak memory {summary['peak_memory_gib']:.1f} GiB")
    return "\n".join(lines)
