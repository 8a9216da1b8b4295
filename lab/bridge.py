"""The same row in TRL: a script and a data set for a large run, and a check that it is the same.

python -m lab.bridge trl --method sdpo --init CHECKPOINT --data problems.jsonl     # writes both
python -m lab.bridge trl --method sdpo --init CHECKPOINT --data problems.jsonl --check

Takes the flags of train_gpt.py; a setting that TRL does not have is refused by its name. Written is
out/trl-<method>: train.py, train.jsonl, requirements.txt and a copy of the graders. --check lets
the script make one step on the CPU, computes the loss and the gradient of the same completions
here, and prints the difference; it needs what lab/requirements-bridge.txt names.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import shlex
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab.extra_losses  # noqa: F401 (importing it adds its rows to the tables of the core)
from lab import bridge_script as script
from lab import flags, hf, identity
from lab.bridge_rows import Scale, Settings, only, plan_of
from lab.bridge_script import VERSION, Plan
from lab.text_tasks import PROMPT_TEMPLATE, TextExample, TextTask, read_jsonl
from minisd import METHODS, Method

# 1. The command -----------------------------------------------------------------------------------

AS_LAUNCHED = "accelerate launch decides it"
ELSEWHERE = {  # settings of train_gpt.py that a script of TRL does not take from here
    "chunk_tokens": "the same gradient; TRL divides the work by itself",
    "compile": "use_vllm among the settings of the script makes its sampling fast",
    "shard": f"{AS_LAUNCHED}, by --use_fsdp", "device": AS_LAUNCHED, "threads": AS_LAUNCHED,
    "deterministic": "full_determinism among the settings of the script",
    "eval_every": "the script trains alone", "eval_problems": "the script trains alone",
    "cache_dir": "of the toy", "pretrain": "of the toy", "resume": "of train_gpt.py",
}


def parse(arguments: list[str]) -> tuple[Settings, bool]:
    """The settings, and whether to check. Raises ValueError for flags that have no place here."""
    flags.refuse_old_flags(arguments)
    for word in arguments:
        name = re.sub("^--(no-)?", "", word.partition("=")[0])
        if word.startswith("--") and name in ELSEWHERE:
            raise ValueError(f"--{name}: allowed: not with TRL ({ELSEWHERE[name]})")
    parser = flags.OneLineParser(
        prog="python -m lab.bridge", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["trl"], help="where the row is to be run")
    parser.add_argument("--check", action="store_true", help="compare loss and gradient, on a CPU")
    groups = {"run": Scale, "method": Method, "checkpoint": hf.Checkpoint}
    defaults = hf.CHECKPOINT_DEFAULTS
    for name, kind in groups.items():
        flags.add_group(parser, kind, name, skip=("source", "target", *ELSEWHERE),
                        with_init=defaults)
    given = vars(parser.parse_args(arguments))
    name = given.get("method", Scale.method)
    if name not in METHODS:
        raise ValueError(f"--method: {name!r}; allowed: {', '.join(METHODS)}")
    row = dataclasses.asdict(METHODS[name])
    row |= {key: value for key, value in defaults.items() if key in row}
    if str(given.get("reward_weight", row["reward_weight"])) in ("1", "1.0"):
        row |= {"teacher": "live", "context": "none"}
    rows = dict.fromkeys(groups, defaults) | {"method": row}
    made = {key: flags.settings_of(kind, given, rows[key]) for key, kind in groups.items()}
    return Settings(**made), given.get("check", False)


# 2. The folder ------------------------------------------------------------------------------------


def task_of(s: Settings) -> TextTask:
    """The task as train_gpt.py makes it, without opening the weights. Raises ValueError."""
    c, folder = s.checkpoint, hf.local_folder(s.checkpoint.init)
    config = hf.read_config(folder)
    names = [n for n in ("config.json", "generation_config.json") if (folder / n).exists()]
    source = {name: hf.read_json(folder / name) for name in names}
    for name, fields in source.items():
        hf.check_end_ids(folder / name, fields, config.vocab_size)
    tokenizer = hf.read_tokenizer(folder, config.vocab_size)
    ends = hf.end_ids(types.SimpleNamespace(source=source), tokenizer)
    task = TextTask(read_jsonl(c.data), tokenizer, pool_size=s.run.train_problems, end_ids=ends,
                    reward=c.reward, chat=c.chat(tokenizer))
    task.check_fit(s.method.contexts, s.run.max_new_tokens, config.context_window)
    flags.check_contexts(s.method, task)
    groups, pool = s.run.batch_size // s.run.group_size, len(task.pools["train"])
    words = f"up to {pool * s.run.group_size}, each of {pool} problems once a step in TRL"
    s.run.require(groups <= pool, "batch_size", words)
    only(c, "teacher_template", ["", c.template], "with TRL: as --template")
    if s.external:
        check_teacher(s, task, config.vocab_size)
    return task


def check_teacher(s: Settings, task: TextTask, rows: int) -> None:
    """Raises ValueError for an external teacher of other tokens, or of more or fewer logits."""
    name = s.method.external_teacher
    folder = hf.local_folder(name)
    theirs = hf.read_config(folder).vocab_size
    if other := identity.tokens_differ(task, hf.read_tokenizer(folder, theirs)):
        raise ValueError(f"--external_teacher: {name!r}, {other}; allowed: one of the student's "
                         "tokenizer")
    s.method.require(theirs == rows, "external_teacher", f"{rows} logits, with TRL; not {theirs}")


def data_rows(s: Settings, plan: Plan, task: TextTask) -> list[dict[str, Any]]:
    """The lines of the data set. Raises ValueError where TRL would read other tokens in them."""
    rng, kind, rows = random.Random(s.run.seed), s.method.context, []
    for example in task.pools["train"]:
        context = ""
        if kind != "none" and kind not in task.attempts:
            context = task.context(example, kind, rng)
        row = {name: COLUMNS[name](task, example, context) for name in plan.columns}
        fields = {}
        for name, value in row.items():
            fields |= value if name == "row_ids" else {NAMES.get(name, name): value}
        check_tokens(s, task, example, context, row)
        rows.append(fields)
    return rows


def turn(task: TextTask, content: str) -> Any:
    """A prompt as TRL takes it: a conversation, or text where there is no chat template."""
    plain = task.chat.template is None
    return content + "\n" if plain else [{"role": "user", "content": content}]


def row_ids(task: TextTask, example: TextExample, context: str) -> dict[str, list[int]]:
    prompt, completion = task.prompt_ids(example), reference_ids(task, example)
    mask = [0] * len(prompt) + [1] * len(completion)
    return {"input_ids": prompt + completion, "completion_mask": mask}


def reference_ids(task: TextTask, example: TextExample) -> list[int]:
    return [*task.encode(task.reference(example)), task.end_ids[0]]


COLUMNS: dict[str, Callable[[TextTask, TextExample, str], Any]] = {
    "prompt": lambda task, e, context: turn(task, task.content(e)),
    "text": lambda task, e, context: task.content(e),  # to be read; the ids are what is used
    "answer": lambda task, e, context: e.answer,
    "teacher_text": lambda task, e, context: (
        task.content(e, context) + "\n" * (task.chat.template is None)),
    "teacher_prompt": lambda task, e, context: turn(task, task.content(e, context)),
    "prompt_ids": lambda task, e, context: task.prompt_ids(e),
    "teacher_ids": lambda task, e, context: task.prompt_ids(e, context),
    "completion_ids": lambda task, e, context: reference_ids(task, e),
    "row_ids": row_ids,
}
NAMES = {"teacher_text": "privileged_context", "teacher_prompt": "privileged_context",
         "text": "prompt"}


def check_tokens(
    s: Settings, task: TextTask, example: TextExample, context: str, row: dict[str, Any]
) -> None:
    """Raises ValueError, naming line or flag, for a prompt that TRL would divide otherwise."""
    pairs = {"prompt": "", "teacher_prompt": context, "teacher_text": context}
    for name in pairs.keys() & row.keys():
        given = row[name]
        if name == "teacher_text" and task.chat.template is not None:
            given = turn(task, given)
        theirs = (task.tokenizer(text=given) if isinstance(given, str) else
                  task.tokenizer.apply_chat_template(
                      given, add_generation_prompt=True, tokenize=True, return_dict=True,
                      **task.chat.arguments["student"]))
        if list(theirs["input_ids"]) != task.prompt_ids(example, pairs[name]):
            if "strftime_now" in str(task.chat.template):
                raise ValueError(
                    f"--template_date: {s.checkpoint.template_date!r}; allowed: with TRL a "
                    "template that does not ask for the day, or a --template that tells it")
            raise ValueError(f"--data {example.where}: TRL divides its prompt into other tokens; "
                             "allowed: problems without control tokens")


def write_folder(
    s: Settings, plan: Plan, task: TextTask, command: str, *, keep_script: bool = False
) -> Path:
    """Writes script, data, requirements and graders. Raises ValueError rather than overwrite.

    keep_script: a script that is there may have been changed, and stays.
    """
    folder, c = s.run.folder, s.checkpoint
    whole = os.path.abspath(c.init) if Path(c.init).is_dir() else c.init
    plan.constants = {"INIT": whole, "END_IDS": list(task.end_ids), **plan.constants}
    if s.external:
        name = s.method.external_teacher
        plan.constants["TEACHER"] = os.path.abspath(name) if Path(name).is_dir() else name
    if script.REWARD in plan.pieces:
        plan.constants |= {"REWARD": c.reward, "THOUGHT_END": task.thought_end}
    if script.INSIDE in plan.pieces:
        last = PROMPT_TEMPLATE.partition("{context}")[2].format()
        plan.constants["LAST"] = last + "\n" * (task.chat.template is None)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in data_rows(s, plan, task)]
    files = {
        "train.py": script.text_of(plan, method=s.run.method, command=command),
        "train.jsonl": "".join(lines), "requirements.txt": requirements(),
    }
    here = Path(__file__).parent
    for name in ("__init__.py", "graders.py", "answers.py", "verifier.py"):
        files[f"lab/{name}"] = (here / name).read_text(encoding="utf-8")
    flags.out_folder(folder)
    for name, text in list(files.items()):
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            if not (keep_script and name == "train.py"):
                words = f"--out_dir: {str(folder)!r} has another {name}; allowed: a new folder"
                raise ValueError(words)
            print(f"{path} has been changed since it was written; compared as it is")
            del files[name]
    (folder / "lab").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def requirements() -> str:
    """What the script imports, in the versions of this repository."""
    here, names = Path(__file__).parent, "torch|transformers|accelerate|math-verify|latex2sympy2"
    lines = (here.parent / "requirements.txt").read_text().splitlines()
    kept = [line for line in lines if re.match(names, line)]
    return "\n".join([*kept, (here / "requirements-bridge.txt").read_text()])


def main(arguments: list[str]) -> None:
    s, check = parse(arguments)
    flags.require_packages(*hf.NEEDED)
    plan = plan_of(s)
    if check:
        flags.require_packages("trl", "datasets", file="lab/requirements-bridge.txt")
    task = task_of(s)
    words = ["-m", "lab.bridge", *(word for word in arguments if word != "--check")]
    folder = write_folder(s, plan, task, shlex.join(["python", *words]), keep_script=check)
    print(f"{plan.trainer}Trainer of TRL {VERSION} runs the row {s.run.method}; written: {folder}")
    for note in plan.notes:
        print(f"NOTE: {note}")
    if check:
        from lab import bridge_check  # imports TRL, which takes seconds

        bridge_check.run(s, task, folder / "train.py")
    else:
        print(f"try it: accelerate launch {flags.shell_word(str(folder / 'train.py'))}")


if __name__ == "__main__":
    flags.run_main("python -m lab.bridge", main)
