"""A page to teach from: how a run changed its student, token by token, as one HTML file.

python -m lab.page out/sdpo-0                  # writes out/sdpo-0/page.html: no server, no network
python -m lab.page base out/sdpo-0 out/grpo-0  # side by side; base: the model before training

It shows what every evaluation has kept (--page_problems of train_gpt.py). In the toy the base model
now writes the texts that forecast the outcome (lab/forecast.py), on the same fresh problems. What
does not fit into LIMIT is left out, and the page says so. Open it at a place: page.html#problem=2
&step=75&token=1&hint=answer.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch

import lab.extra_losses  # noqa: F401 (a run may have used its rows)
from lab import flags, storage
from lab.base import base_model
from lab.evaluation import seeded
from lab.forecast import LAWS, Look, samples_of, traced
from lab.measures.formulas import mean_and_error
from lab.microscope import first_wrong_value
from lab.moments import TOKENS
from lab.report import main_split
from lab.words import in_words_of, teacher_of
from minisd import Method, Row
from toy_tasks import Problem, Toy, parse_world

LIMIT, PROBLEMS = 5_000_000, 8  # bytes of a page, which is to be mailed; problems on it
SAMPLES = 512  # texts of a forecast, as many as lab.forecast takes
NO_TEACHER = "; it has no teacher: one is shown that sees a hint, and teaches nothing"
ABOUT = "All arithmetic is modulo 10. Unsure authors write wait, and check two steps taken at once."
LONG = f"what follows the first {TOKENS} tokens of a completion"
SLOW = "hints that would have taken over 2 % of the training"
BASE = "base"  # instead of a folder: the first run, before training
TEMPLATE = Path(__file__).with_suffix(".html")

# 1. Runs ------------------------------------------------------------------------------------------


def run_of(name: str) -> dict:
    """What a page shows of the run in a folder. Raises ValueError if it has not finished."""
    folder = Path(name)
    settings = storage.read_settings(folder, "folder")
    for file, allowed in (("summary.json", "a run that has finished"),
                          ("page.jsonl", "a run with --page_problems above 0")):
        if not (folder / file).is_file():
            raise ValueError(f"folder: {name!r} has no {file}; allowed: {allowed}")
    try:
        rows, logged = ([json.loads(line) for line in (folder / file).read_text().splitlines()]
                        for file in ("page.jsonl", "metrics.jsonl"))
        evaluations = [row for row in logged if row["kind"] == "evaluation"]
        after = json.loads((folder / "summary.json").read_text())["after"]
        splits = dict.fromkeys(("train", main_split(after)))
        method = flags.settings_of(Method, {}, settings["method"])
        moments = [in_order(row["moments"]) for row in rows]
        if len({str(problems_of(x)) for x in moments}) != 1 or not moments[0]:
            raise KeyError
        return {
            "name": settings["run"]["method"], "folder": name,
            "words": f"{in_words_of(method)}{'' if teacher_of(method) else NO_TEACHER}",
            "steps": [row["step"] for row in rows], "moments": [shown(x) for x in moments],
            "problems": len(moments[0]), "settings": settings, "method": method,
            "curve": [{"step": e["step"]} | {s: e[s]["accuracy_frac"] for s in splits}
                      for e in evaluations],
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ValueError(f"folder: {name!r} has damaged files; allowed: a run's folder") from None


def in_order(moments: list[dict]) -> list[dict]:
    """Fresh problems first: there one sees what was learnt beside the training problems."""
    return sorted(moments, key=lambda m: m["split"] == "train")


def problems_of(moments: list[dict]) -> list[dict]:
    return [{name: m[name] for name in ("split", "prompt", "answer")} for m in moments]


def shown(moments: list[dict]) -> list[dict]:
    """Of each split the first ones, as many as a page has room for."""
    by_split = [[m for m in moments if m["split"] == s] for s in {m["split"]: 0 for m in moments}]
    return [m for part in by_split for m in part[: PROBLEMS // len(by_split)]]


def before_training(run: dict) -> dict:
    """A run that stays where that one began."""
    first = {"steps": run["steps"][:1], "moments": [[*x] for x in run["moments"][:1]]}
    words = f"the model before training, beside the teacher of {run['name']}"
    return run | first | {"name": BASE, "words": words, "method": None, "curve": run["curve"][:1]}


# 2. The forecast: texts that were possible before any training ------------------------------------


def forecast_of(run: dict) -> dict:
    """What both laws say of fresh problems, and a text for each by one; or `why` there is none."""
    method, groups = run["method"], run["settings"]
    if method is None or groups["checkpoint"]["init"] or "fresh" not in run["curve"][0]:
        return {"why": "" if method is None else "it is made for the toy alone"}
    (_, weights, kind), *more = method.terms
    if more or weights == "external" or method.reward_weight or method.warm_start_steps or (
            kind == method.student_context):
        return {"why": "this method does not begin with a teacher that differs by its hint alone"}
    settings, toy = groups["run"], flags.settings_of(Toy, {}, groups["toy"])
    device = storage.prepare_device(settings["device"], settings["threads"])
    model, _ = base_model(
        parse_world(toy.world), settings["seed"], steps=toy.pretrain_steps, device=device.type,
        cache_dir=settings["cache_dir"], here_made=settings["pretrain"])
    look = Look.at(
        toy.make_task(settings["train_problems"], settings["seed"]), model, kind, laws=tuple(LAWS),
        group_size=settings["group_size"], max_new_tokens=settings["max_new_tokens"])
    values = samples_of(look, "fresh", SAMPLES, settings["seed"])
    found = {law: mean_and_error(values[f"{law}_accuracy_frac"]) for law in LAWS}
    return found | {"hint": kind, "texts": texts_of(look, run, kind)}


def texts_of(look: Look, run: dict, kind: str) -> list[dict]:
    """The law's completions of the fresh problems of a page, drawn by the evaluation's own dice."""
    settings, device = run["settings"]["run"], look.classes.device
    name, count = f"evaluation-fresh-{settings['seed']}", settings["eval_problems"]
    moments = [m for m in run["moments"][0] if m["split"] == "fresh"]
    examples = look.task.evaluation("fresh", count, random.Random(name))
    rows = [Row(examples[m["index"]], {"none": "", kind: m["teachers"][kind]["sees"]})
            for m in moments]
    shape, generator = (count, settings["max_new_tokens"]), seeded(name, device)
    dice = torch.rand(shape, generator=generator, device=device)[[m["index"] for m in moments]]
    return traced(look, "corrected", rows, dice) if rows else []


# 3. The page --------------------------------------------------------------------------------------


def page_of(names: list[str]) -> dict:
    """Everything on the page. Raises ValueError for runs that have not the same problems."""
    by_name = {name: run_of(name) for name in names if name != BASE}
    if not by_name:
        raise ValueError(f"folder: {BASE!r}; allowed: one or more runs' folders besides")
    first = next(iter(by_name.values()))
    runs = [by_name.get(name) or before_training(first) for name in dict.fromkeys(names)]
    problems = problems_of(first["moments"][0])
    for run in runs:
        if problems_of(run["moments"][0]) != problems:
            raise ValueError(f"folder: {run['folder']!r} has other problems than "
                             f"{first['folder']!r}; allowed: runs of one --seed, on the same ones")
    plain = all(is_plain(run["settings"]) for run in runs)
    for run in runs:
        run["forecast"] = forecast_of(run)
        for m in (m for x in run["moments"] for m in x) if plain else ():
            problem = Problem.parse(m["prompt"].removesuffix(" = "))
            m["wrong"] = first_wrong_value(problem, m["text"])
    return {"problems": problems, "runs": runs, "about": ABOUT * plain}


def is_plain(settings: dict) -> bool:
    """Whether it is the toy's arithmetic, without a rule that adds a step."""
    toy = settings["toy"]
    return not settings["checkpoint"]["init"] and toy["task"] == "arithmetic" and not toy["rules"]


def smaller(page: dict) -> Iterator[str]:
    """Leaves something out of the page at each turn, what matters least first, and says what."""
    def only_taught(moments: list[list[dict]]) -> None:
        for m in (m for x in moments for m in x):
            m["teachers"] = {m["taught"]: m["teachers"][m["taught"]]}

    runs = page["runs"]
    for run in runs:
        only_taught(run["moments"][1:-1])
    yield "hints that were not taught, between the first evaluation and the last"
    while max(len(run["steps"]) for run in runs) > 2:
        for run in runs:
            n = len(run["steps"])
            for name in ("steps", "moments"):
                run[name] = [x for i, x in enumerate(run[name]) if i % 2 == 0 or i == n - 1]
        yield "some of the evaluations"
    for run in runs:
        only_taught(run["moments"])
    yield "hints that were not taught"
    while len(page["problems"]) > 1:
        page["problems"].pop()
        for moments in (x for run in runs for x in run["moments"]):
            moments.pop()
        yield "some of the problems"


def fitted(page: dict, limit: int) -> str:
    """The page's data as JSON of at most so many bytes, with all that was left out."""
    runs, cuts = page["runs"], smaller(page)
    every = [m for run in runs for moments in run["moments"] for m in moments]
    more = max(run["problems"] for run in runs) - len(page["problems"])
    known = {f"{more} further problems": more, LONG: any(m["tokens_left_out"] for m in every),
             SLOW: any(m["hints_left_out"] for m in every)}
    said = {words: None for words, true in known.items() if true}
    while len(text := packed(page | {"left_out": list(said)})) > limit:
        try:
            said[next(cuts)] = None
        except StopIteration:
            raise ValueError(f"page: {len(text)} bytes; allowed: {limit}; try fewer runs") from None
    return text


def packed(page: dict) -> str:
    """JSON in which a token is its place in `words`, and which no HTML parser can leave."""
    words: dict[str, int] = {}

    def number(word: str) -> int:
        return words.setdefault(word, len(words))

    def of_who(x: dict) -> dict:
        top = [[y for word, p in pairs for y in (number(word), p)] for pairs in x["top"]]
        return x | {"top": top}

    runs = [
        {name: run[name] for name in ("name", "folder", "words", "steps", "curve", "forecast")}
        | {"moments": [[
            m | {"tokens": [*map(number, m["tokens"])], "student": of_who(m["student"]),
                 "teachers": {kind: of_who(x) for kind, x in m["teachers"].items()}}
            for m in x] for x in run["moments"]]}
        for run in page["runs"]]
    content = page | {"runs": runs, "words": list(words)}
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def main(arguments: list[str]) -> None:
    parser = flags.OneLineParser(
        prog="python -m lab.page", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="+", help="of a finished run of train_gpt.py, or base")
    parser.add_argument("--out_dir", default="", help="of page.html; empty: the first run's folder")
    given = parser.parse_args(arguments)
    page = page_of(given.folder)
    folder = Path(given.out_dir or next(name for name in given.folder if name != BASE))
    if folder.is_file():
        raise ValueError(f"--out_dir: {given.out_dir!r} is a file; allowed: a folder, a new one")
    folder.mkdir(parents=True, exist_ok=True)
    before, after = TEMPLATE.read_text(encoding="utf-8").split("{{data}}")
    text = before + fitted(page, LIMIT - len(before) - len(after)) + after
    storage.write_atomically(folder / "page.html", lambda path: path.write_text(text, "utf-8"))
    print(f"written: {folder / 'page.html'}")


if __name__ == "__main__":
    flags.run_main("python -m lab.page", main)
