"""One completion, token by token: what the student expects, and what the teacher, who sees more.

python -m lab.microscope "3*7+4-8"                                # the base model writes
python -m lab.microscope "3*7+4-8" --completion "wait 3*7+4=2; "  # it goes on from that glance
python -m lab.microscope "3*7+4-8" --checkpoint out/sdpo-0        # the student of a run

The teacher has the student's weights, so that its context is all the difference, unless
--teacher external names others. Prints a table and three sentences, and draws microscope.png.
"""

import argparse
import dataclasses
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch

import lab.extra_losses  # noqa: F401 (its rows)
import minisd
import toy_tasks
from lab import base, storage
from lab.evaluation import seeded
from lab.flags import OneLineParser, add_group, check_context, run_main, settings_of
from lab.measures.steps import first_wrong_step
from lab.report import READINGS, save_figure
from minisd import GPT, METHODS, Batch, Completions, Method, Prompts, Row, Sizes, Teacher
from toy_tasks import Example, Problem, Toy, ToyTask

WHO = ("student", "teacher")
LIMITS = (("seed", 0, 2**62), ("max_new_tokens", 1, 2**20), ("threads", 0, 1024))
REMARK_ID = toy_tasks.TOKEN_ID[toy_tasks.REMARK]


@dataclass(frozen=True)
class Look:
    """What is looked at, by whom, and where the picture goes."""

    method: str = "sdpo"  # row of the method table; other flags override it
    completion: str = ""  # what is shown; a beginning is continued by the student
    checkpoint: str = ""  # a run's folder: its student; empty: the base model
    seed: int = 0  # of the base model, of the continuation, and of what the teacher is shown
    max_new_tokens: int = 96  # length limit of a continuation, tokens
    device: str = "auto"  # auto, cpu, cuda or mps
    threads: int = 0  # CPU threads; 0: as PyTorch decides
    out_dir: str = "out/microscope"  # where the picture goes
    cache_dir: str = "out/base"  # where base models are kept


@dataclass(frozen=True)
class Inspection:
    """A completion under the microscope; lists have an entry per token, the end token included."""

    prompt: str
    contexts: dict[str, str]  # who -> what is shown before the prompt
    completion: str
    right: bool
    wrong: int | None  # index of the first token of the first wrong value
    tokens: list[str]
    values: dict[str, list]  # by name; log-probabilities and divergences in nats


def probs(logits: torch.Tensor) -> torch.Tensor:
    return minisd.log_softmax(logits).exp()


LOOKED_AT = READINGS | {  # (student logits, teacher logits (1, N, V)) -> (1, N)
    "student_remark": lambda s, t: probs(s)[..., REMARK_ID],
    "teacher_remark": lambda s, t: probs(t)[..., REMARK_ID],
    "student_top_prob": lambda s, t: probs(s).amax(-1),
    "teacher_top_prob": lambda s, t: probs(t).amax(-1),
    "student_top": lambda s, t: s.argmax(-1),
    "teacher_top": lambda s, t: t.argmax(-1),
}


@torch.no_grad()
def inspect_completion(
    teacher: Teacher, task: ToyTask, text: str, completion: str = "", *,
    seed: int = 0, max_new_tokens: int = 96,
) -> Inspection:
    """Student and teacher on one completion of the problem `text`.

    It begins as given, and the student goes on from there unless that ends with an answer. The
    context feedback is about this very completion; sibling shows one of a reliable author.
    Raises ValueError for a text that is no problem.
    """
    problem, method, student = Problem.parse(text), teacher.method, teacher.student
    name, device = f"inspection-{seed}", next(student.parameters()).device
    rng = random.Random(name)
    example = Example(problem, rng.choice(task.rules) if task.rules else 0)
    reference, own = task.reference(example, rng), method.student_context
    row = Row(example, {"none": "", own: task.context(example, own, rng, reference)})
    ids = [*task.encode(completion), task.end_ids[0]]
    if toy_tasks.final_answer(completion) is None:
        beginning = Prompts.of(
            [task.prompt_ids(example, row.contexts[own]) + ids[:-1]], task.pad_id, device)
        rest = minisd.sample(
            [(1.0, student, beginning)], max_new_tokens=max_new_tokens, end_ids=task.end_ids,
            pad_id=task.pad_id, generator=seeded(name, device))
        ids[-1:] = rest.ids[0].tolist()
    completion = task.decode(ids)
    for kind in [kind for kind in method.contexts if kind not in row.contexts]:
        attempt = completion if task.attempts.get(kind) == "own" else reference
        row.contexts[kind] = task.context(example, kind, rng, attempt)

    shown = {kind: minisd.prompts_of(task, [row], kind, device) for kind in method.contexts}
    written = Completions.of([ids], task.pad_id, device)
    rewards = torch.tensor([task.reward(completion, example)], device=device)
    batch = Batch([row], shown, written, rewards, Sizes(groups=1, group_size=1))
    x = minisd.score(method, student, teacher.terms(shown), batch, LOOKED_AT)
    values = {name: value[0].tolist() for name, value in x.items()}
    p, q = (values[f"{who}_log_probs"] for who in WHO)
    values["advantage"] = [b - a for a, b in zip(p, q)]  # log q - log p of the token
    for who in WHO:
        values[f"{who}_prob"] = x[f"{who}_log_probs"][0].exp().tolist()
        values[f"{who}_top"] = list(map(word, values[f"{who}_top"]))
    if example.rule:  # one more step, and the answer that counts is the one after it
        problem = Problem((*problem.digits, example.rule), f"{problem.operators}+")
    seen = dict.fromkeys(row.contexts[kind] for _, _, kind in method.terms)  # each text once
    return Inspection(
        example.prompt, {"student": row.contexts[own], "teacher": " and ".join(seen)}, completion,
        rewards.item() == 1, first_wrong_value(problem, completion), list(map(word, ids)), values)


def word(token_id: int) -> str:
    return toy_tasks.VOCABULARY[token_id].strip()


def first_wrong_value(problem: Problem, completion: str) -> int | None:
    """Token index of the first wrong step or, behind right steps, of a wrong answer; or None."""
    step, answer = first_wrong_step(problem, completion), toy_tasks.final_answer(completion)
    if step is not None or answer in (None, problem.values[-1]):
        return step
    return len(toy_tasks.encode(completion[: completion.rindex(toy_tasks.ANSWER)])) + 1


# Table, words and picture -------------------------------------------------------------------------

TABLE = {  # value: heading and unit of its column
    "student_prob": ("p student", "fraction"), "teacher_prob": ("p teacher", "fraction"),
    "advantage": ("advantage", "nats"),
    "forward_kl": ("KL(t||s)", "nats"), "reverse_kl": ("KL(s||t)", "nats"),
}


def inspection_table(x: Inspection) -> str:
    """One row per token, with a rule above the first wrong value."""
    head, under = ("".join(cell.rjust(10) for cell in row) for row in zip(*TABLE.values()))
    lines = [f"  t token   {head}   student expects  teacher expects"]
    lines.append(f"{'':12}{under}   {'p, token':17}p, token")
    for t, token in enumerate(x.tokens):
        if t == x.wrong:
            lines.append(" first wrong step: the next value ".center(len(lines[0]), "-"))
        cells = "".join(f"{x.values[name][t]:z10.3f}" for name in TABLE) + "   "
        for who in WHO:
            top = f"{x.values[f'{who}_top_prob'][t]:.2f} {x.values[f'{who}_top'][t]}"
            cells += top.ljust(17)
        lines.append(f"{t:3} {token:8}{cells}".rstrip())
    return "\n".join(lines)


def inspection_in_words(x: Inspection) -> str:
    """What to look at, in three numbered lines."""
    v = x.values
    t = max(range(len(x.tokens)), key=lambda i: abs(v["advantage"][i]))
    effect = "likelier" if v["advantage"][t] > 0 else "rarer"
    lines = [f"1. Largest advantage: {v['advantage'][t]:+.1f} nats at t = {t}; distillation makes "
             f"'{x.tokens[t]}' {effect} there."]
    if x.wrong is None:
        lines.append("2. No value is wrong; --completion shows what follows a mistake of yours.")
    else:
        parts = (v["forward_kl"][: x.wrong], v["forward_kl"][x.wrong + 1 :])
        means = [sum(part) / max(1, len(part)) for part in parts]
        lines.append(f"2. First wrong step: t = {x.wrong}. Mean KL(t||s) is {means[0]:.2f} nats "
                     f"per token before it, {means[1]:.2f} behind it.")
    student, teacher = (f"{max(v[f'{who}_remark']):.2f}" for who in WHO)
    lines.append("3. Probability of 'demo', the unreliable author's remark: student up to "
                 f"{student}, teacher up to {teacher}.")
    return "\n".join(lines)


def draw_inspection(path: Path, x: Inspection) -> None:
    """microscope.png: probabilities and divergences by token, the first wrong step marked."""
    from matplotlib.figure import Figure

    T, v = len(x.tokens), x.values
    figure = Figure(figsize=(max(10.5, 2 + 0.42 * T), 8.5), layout="constrained")
    sights = "     ".join(f"the {who} sees: {x.contexts[who]}{x.prompt}" for who in WHO)
    verdict = "right" if x.right else "WRONG"
    figure.suptitle(f"{x.prompt}{x.completion}   ({verdict})\n{sights}")
    upper, lower = figure.subplots(2, 1)
    bars = {"student": "student_prob", "teacher": "teacher_prob"}
    kls = {"KL(teacher || student)": "forward_kl", "KL(student || teacher)": "reverse_kl"}
    for axes, first, names in ((upper, 0, bars), (lower, 2, kls)):
        for i, (label, name) in enumerate(names.items()):
            places = [t + 0.4 * (i - 0.5) for t in range(T)]
            axes.bar(places, v[name], 0.38, label=label, color=f"C{first + i}")
        if x.wrong is not None:
            axes.axvline(x.wrong - 0.5, color="black", linestyle="--", label="first wrong step")
        axes.set_xticks(range(T), x.tokens, family="monospace")
        axes.set_xlim(-0.6, T - 0.4)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        axes.grid(axis="y", alpha=0.3)
    for i, who in enumerate(WHO):
        for t, top in enumerate(v[f"{who}_top"]):
            if top != x.tokens[t]:
                look = {"ha": "center", "family": "monospace", "color": f"C{i}"}
                place = t + 0.4 * (i - 0.5)
                upper.text(place, 1.04, top, rotation=90 * (len(top) > 1), **look)
    upper.set_title("words above the bars: what was expected instead", loc="right", fontsize=10)
    upper.set(ylabel="probability of the token (fraction)", ylim=(0, 1.3))
    upper.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    lower.set(ylabel="divergence (nats)", xlabel="token of the completion")
    figure.supxlabel(inspection_in_words(x), ha="left", x=0.02, fontsize=10)
    save_figure(path, figure)


# Command line -------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> tuple[str, Look, Method, Toy]:
    """The problem and the settings. Raises ValueError."""
    parser = OneLineParser(
        prog="python -m lab.microscope", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("problem", help="digits joined by + - *, such as 3*7+4-8")
    for title, kind in (("microscope", Look), ("method", Method), ("toy", Toy)):
        add_group(parser, kind, title, skip=("source", "target"))
    flags = vars(parser.parse_args(arguments))
    text, look = flags.pop("problem"), settings_of(Look, flags)
    if look.method not in METHODS:
        raise ValueError(f"--method: {look.method!r}; allowed: {', '.join(METHODS)}")
    method = settings_of(Method, flags, dataclasses.asdict(METHODS[look.method]))
    toy = settings_of(Toy, flags)
    check_context(toy, set(method.contexts), method.reward_weight < 1)
    # The separator and the words end with a space, which is easily left out.
    completion = re.sub(r"(;|wait|answer)$", r"\1 ", look.completion.strip())
    Problem.parse(text)
    try:
        toy_tasks.encode(completion)
    except ValueError as error:
        raise ValueError(f"--completion: {error}") from None
    for name, least, most in LIMITS:
        if not least <= (value := getattr(look, name)) <= most:
            raise ValueError(f"--{name}: {value}; allowed: {least} to {most}")
    if Path(look.out_dir).is_file():
        words = "is a file; allowed: a folder, or a new name"
        raise ValueError(f"--out_dir: {look.out_dir!r} {words}")
    return text, dataclasses.replace(look, completion=completion), method, toy


def load(folder: str, flag: str, device: torch.device) -> GPT:
    """The student of a run in the toy. Raises ValueError that names the flag."""
    path, size = Path(folder) / "student.pt", len(toy_tasks.VOCABULARY)
    model = storage.load_student(path, flag, device) if path.is_file() else None
    if model is None or model.config.vocab_size != size:
        words = "the folder of a run in the toy, with student.pt"
        raise ValueError(f"{flag}: {folder!r}; allowed: {words}")
    return model


def main(arguments: list[str]) -> None:
    text, look, method, toy = parse(arguments)
    device = storage.prepare_device(look.device, look.threads, deterministic=False)
    how = {"steps": toy.pretrain_steps, "device": device.type, "cache_dir": look.cache_dir}
    world, name, external = toy_tasks.parse_world(toy.world), method.external_teacher, None
    needed = any(weights == "external" for _, weights, _ in method.terms)
    if needed and name == "adapted":
        known = ", ".join(base.EXTERNAL_BASES)
        raise ValueError(f"--external_teacher: {name!r}; allowed here: {known}, a run's folder")
    if needed and name not in base.EXTERNAL_BASES:
        external = load(name, "--external_teacher", device)
    if look.checkpoint:
        student = load(look.checkpoint, "--checkpoint", device)
    else:
        student, _ = base.base_model(world, look.seed, **how)
    if needed and external is None:
        external, _ = base.external_base(name, world, **how)
    teacher, task = Teacher(method, student, external=external), toy.make_task(0, look.seed)
    size = {"seed": look.seed, "max_new_tokens": look.max_new_tokens}
    x = inspect_completion(teacher, task, text, look.completion, **size)
    print(f"student ({look.checkpoint or 'base model'}) sees: {x.contexts['student']}{x.prompt}")
    weights = name if needed else "the same weights"
    print(f"teacher ({weights}) sees: {x.contexts['teacher']}{x.prompt}")
    print(f"completion ({'right' if x.right else 'WRONG'}): {x.completion}\n")
    print(f"{inspection_table(x)}\n\n{inspection_in_words(x)}\n")
    Path(look.out_dir).mkdir(parents=True, exist_ok=True)
    path = Path(look.out_dir) / "microscope.png"
    draw_inspection(path, x)
    print(f"written: {path}")


if __name__ == "__main__":
    run_main("python -m lab.microscope", main)
