"""Broken input by the hundred: command lines, datasets, files of runs.

Whatever is given, the answer is success or one line that names what is wrong, never a traceback,
and nothing is written. The same examples in every run.
"""

import contextlib
import dataclasses
import io
import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minisd
import toy_tasks
import train_gpt
from lab import flags, hf, storage
from lab.text_tasks import TEXT_REWARDS, read_jsonl
from minisd import GPT, GPTConfig


class Reached(Exception):
    """Raised in place of the work: everything before it has accepted the input."""


# Command lines ------------------------------------------------------------------------------------

GROUPS = (train_gpt.Run, minisd.Method, toy_tasks.Toy, hf.Checkpoint)
HIDDEN = ("source", "target")  # of Method, no flags
FLAGS = {f.name: f for kind in GROUPS for f in dataclasses.fields(kind) if f.name not in HIDDEN}
TABLES = (
    minisd.DIVERGENCES, minisd.CREDITS, minisd.TOKEN_WEIGHTS, minisd.ADVANTAGES, minisd.TEACHERS,
    minisd.TARGETS, minisd.SUPPORTS, minisd.TAILS, minisd.REDUCTIONS, toy_tasks.CONTEXTS,
    TEXT_REWARDS,
)
WORDS = [  # what some flag accepts, so that contradictions are reached
    *(name for table in TABLES for name in table), *minisd.METHODS, "larger", "adapted", "data",
    "teacher", "bfloat16", "float32", "arithmetic",
]
JUNK = [
    "0", "1", "-1", "2", "3", "7", "64", "0.5", "1.0", "-0.0", "1e-320", "1e400", "1e9999999999",
    "0x1", "1_000", "1,5", ",", ",,,", "2,7", "3,", "12", "nan", "inf", "-inf", "NaN", "True",
    "none", "None", "+", "+-", "+-*/", "++", "*", "=", "--", "-", "---", "--steps", "--=", "-x",
    "@file", "cuda", "cuda:", "cuda:x", "cpu:-1", "cpu:99999999999999999999", "mps", "cpu", "auto",
    ":", "/", ".", "..", "/dev/null", "~", "%s", "%", "{}", "\\", "'\"", "\u0663", "\xb2",
    "\U0001f600", "\ud800", "", " ", "\0", "a\0b", "a\nb", "a\rb\u2028c", "+ -", "9" * 5000,
    "a" * 5000, str(2**63 - 1), str(2**63), str(10**30),
]
NUMBERS = [
    "-1", "0", "0.25", "0.5", "1", "2", "3", "8", "64", "128", "1e-9", "1000", str(2**31 - 1),
    str(2**63), str(10**30),
]
WORLDS = [
    "persona_rate=0", "persona_rate=nan", "persona_rate", "=", "x=1", "certainty=1", "certainty.",
    "a=b=c", "certainty.none=2", "certainty.none.none=0", "functional_markers=2",
    "functional_markers=false", "max_operations=0", "max_operations=2", "max_operations=1e3",
    "glance_rate=-1", "direct_rate.none=2", "drills_hinted=", "operators=", "operators=/",
    "operators=+", f"max_operations={10**30}",
    ",".join(f"document_share.{kind}=0" for kind in toy_tasks.CONTEXTS),
]
FOLDERS = ["file", "other", "missing", "file/below", "run", "finished", "older"]
BY_NAME = {  # values of which some are right, so that what stands behind them is reached
    "world": WORLDS, "rules": ["3", "2,7", "0", "10", "+"],
    "train_operators": ["+", "+-", "*", "/"],
    "train_operations": ["1", "1-4", "2-3", "4-1", "0", "9", "1-", "3-9"],
    "out_dir": FOLDERS, "resume": FOLDERS,
    "data": ["data.jsonl", "file", "other"], "context": list(toy_tasks.CONTEXTS),
    "method": [*minisd.METHODS, "list"], "device": ["cpu", "auto"],
    **{name: list(table) for name, table in {
        "divergence": minisd.DIVERGENCES, "credit": minisd.CREDITS, "advantage": minisd.ADVANTAGES,
        "token_weights": minisd.TOKEN_WEIGHTS, "reduction": minisd.REDUCTIONS,
        "teacher": {**minisd.TEACHERS, **minisd.TARGETS}}.items()},
}


def broken_value(rng: random.Random, name: str) -> str:
    """A value for a flag: of its type, one that some flag takes, or of none."""
    if name in BY_NAME and rng.random() < 0.8:
        return rng.choice(BY_NAME[name])
    if name in FLAGS and rng.random() < 0.7:
        return rng.choice(NUMBERS if FLAGS[name].type in (int, float) else WORDS)
    return rng.choice(rng.choice((JUNK, JUNK, WORDS, WORLDS)))


def broken_command(rng: random.Random) -> list[str]:
    """A few flags with values that may not fit them, or each other; now and then one alone."""
    arguments, old = [], [name.removeprefix("--") for name in flags.OLD_FLAGS]
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 6))):
        name = rng.choice([*FLAGS, *FLAGS, "method", "out_dir", "resume", "no-such", *old[:2]])
        if name in FLAGS and FLAGS[name].type is bool:
            name = rng.choice((name, f"no-{name}"))
            arguments += [f"--{name}"] if rng.random() < 0.8 else [f"--{name}=1"]
            continue
        value, form = broken_value(rng, name), rng.random()
        if form < 0.05:
            arguments.append(rng.choice((value, f"--{name}")))
        else:
            arguments += [f"--{name}={value}"] if form < 0.3 else [f"--{name}", value]
    return arguments


@pytest.fixture
def no_work(monkeypatch):
    """Command lines go as far as the first file that would be written, and no further."""

    def reached(settings, device):
        if not settings.checkpoint.init:
            settings.toy.make_task(min(settings.run.train_problems, 10**4), settings.run.seed)
        raise Reached

    made = []

    def record(*arguments, **options):
        made.append(parser(*arguments, **options))
        return made[-1]

    parser = flags.OneLineParser
    with monkeypatch.context() as patch:  # once: it would take most of the time
        patch.setattr(flags, "OneLineParser", record)
        train_gpt.parse([])
    kept = SimpleNamespace(add_argument=lambda *_, **__: None, parse_args=made[0].parse_args)
    monkeypatch.setattr(flags, "OneLineParser", lambda *_, **__: kept)
    monkeypatch.setattr(flags, "add_group", lambda *_, **__: None)
    monkeypatch.setattr(storage, "at_work_in", lambda folder: contextlib.nullcontext())
    monkeypatch.setattr(train_gpt, "train_and_report", reached)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: torch.tensor(count))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with files and folders that are not to be touched."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("data.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    settings, _ = train_gpt.parse(["--method", "sdpo"])
    config = {"settings": dataclasses.asdict(settings), "record": {}}
    for name, content in {
        "other": [], "run": config, "finished": config, "older": {"settings": {"steps": 1}},
    }.items():
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(content))
    Path("finished", "summary.json").write_text(json.dumps(SUMMARY))
    return tmp_path


MEANS = {"fresh": {"accuracy_frac": 0.5, "completion_tokens": 9.0}}
SUMMARY = {"before": MEANS, "after": MEANS, "samples": [], "steps": 150,
           **dict.fromkeys(storage.SPENT, 1.0)}


def answer(arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard error of a command; code 0 where the work would begin."""
    # A file, unlike a StringIO, refuses half a character, as a terminal does.
    output, error = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), \
            contextlib.redirect_stderr(error):
        patch.setattr(sys, "argv", ["train_gpt.py", *arguments])
        try:
            flags.run_main("train_gpt.py", train_gpt.main)
        except Reached:
            return 0, error.getvalue()
        except SystemExit as stop:
            return stop.code or 0, error.getvalue()
    return 0, error.getvalue()


def state_of(folder: Path) -> dict[Path, int]:
    """All names; when a folder was changed does not count, since a lock comes and goes in it."""
    return {path: path.is_file() and path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_broken_command_lines_get_one_line(folder, no_work):
    """Catches a traceback, a message of two lines or without the flag, and a file that is left."""
    before, rng, codes = state_of(folder), random.Random(0), []
    for _ in range(700):
        arguments = broken_command(rng)
        code, error = answer(arguments)
        codes.append(code)
        assert code in (0, 2), arguments
        if code == 2:
            assert len(error.splitlines()) == 1, (arguments, error)
            assert error.startswith("train_gpt.py: error: "), (arguments, error)
            named = ("--", "unrecognized arguments:")
            assert any(words in error for words in named), (arguments, error)
        else:
            assert not error, (arguments, error)
    assert state_of(folder) == before
    assert 70 < codes.count(0) < 350  # most are broken, and not all by their first flag


def test_a_name_that_is_too_long_is_named_with_its_flag(folder):
    """Catches the system's words, which say neither which flag it was nor what is allowed."""
    name = "a" * 300
    with pytest.raises(ValueError, match=r"--out_dir: 'a+': File name too long"), \
            storage.at_work_in(Path(name)):
        pass
    with pytest.raises(ValueError, match=r"--data: 'a+'; allowed: a JSONL file"):
        hf.Checkpoint(init="other", data=name)
    with pytest.raises(ValueError, match=r"a+: no such folder, and no download of that name"):
        hf.load(hf.Checkpoint(init=name, data="data.jsonl").init)


# Files of runs ------------------------------------------------------------------------------------

ANYTHING = [
    None, True, False, 0, 1, 3, -1, 10**30, 0.5, -0.0, 1e300, math.nan, math.inf, "", "a", "8",
    "sdpo", "\0", [], ["a"], [[[]]], {}, {"a": 1}, "none",
]


def broken_json(rng: random.Random, good: dict, deep: bool) -> str:
    """The file with a few values replaced or gone, deep: at any depth; or with a part gone."""
    content = json.loads(json.dumps(good))
    for _ in range(rng.choice((1, 1, 2))):
        target, name = content, rng.choice(list(content))
        while deep and isinstance(target[name], dict) and target[name] and rng.random() < 0.9:
            target = target[name]
            name = rng.choice(list(target))
        if rng.random() < 0.2 and len(target) > 1:
            del target[name]
        elif name != "target":  # which no flag sets
            kinds = () if deep else type(target[name])
            target[name] = rng.choice([x for x in ANYTHING if not isinstance(x, kinds)])
    text = json.dumps(content)
    at = rng.randrange(len(text))
    gone = rng.choice((9, len(text))) if deep else len(text)
    return text[:at] + text[at + gone :] if rng.random() < 0.2 else text


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_broken_files_of_a_run_get_one_line(name, folder, no_work):
    """Catches a traceback of --resume or --out_dir, and a run that is begun over another one."""
    rng, codes, path = random.Random(0), [], folder / "finished" / name
    good = json.loads(path.read_text())
    for _ in range(100):
        path.write_text(broken_json(rng, good, deep=name == "config.json"))
        before = state_of(folder)
        for arguments in (["--out_dir", "finished"], ["--resume", "finished"]):
            code, error = answer(arguments)
            codes.append(code)
            lines = len(error.splitlines())
            assert code in (0, 2) and lines == code // 2, (path.read_text(), error)
        assert state_of(folder) == before
    assert codes.count(2) > 20


def test_broken_weights_get_one_line(folder):
    """Catches a traceback out of torch or zipfile, and weights that were damaged and load."""
    path, rng = folder / "student.pt", random.Random(0)
    student = GPT(GPTConfig(11, n_layers=1, width=8, n_heads=1, n_kv_heads=1, mlp_width=4))
    storage.save_student(path, student)
    good = path.read_bytes()
    for _ in range(120):
        content = bytearray(good)
        kind = rng.choice(["flip", "cut", "tail", "empty", "other"])
        at = rng.randrange(1, len(good))
        if kind == "flip":
            content[at] ^= 1 << rng.randrange(8)
        content = {"cut": content[:at], "tail": content[at:], "empty": b"",
                   "other": rng.randbytes(99)}.get(kind, content)
        path.write_bytes(content)
        try:
            loaded = storage.load_student(path, "--external_teacher")
        except ValueError as error:
            assert str(error).startswith("--external_teacher: ") and "\n" not in str(error)
        else:  # a bit of the archive that means nothing
            pairs = zip(loaded.parameters(), student.parameters(), strict=True)
            assert kind in ("flip", "tail") and all(torch.equal(a, b) for a, b in pairs), at


# Datasets -----------------------------------------------------------------------------------------

LINES = [
    b'{"prompt": "What is 1+1?", "answer": "2", "solution": "1+1 = 2", "rule": null}',
    b'{"question": "How many?", "answer": "3*4=<<3*4=12>>12\\n#### 1,200"}',
    '{"prompt": "\u00e9\u2028\U0001f600", "answer": "x", "feedback": "no"}'.encode(),
    b"",
]
VALUES = [
    b"null", b"true", b"7", b"-0.0", b"NaN", b"1e999", b"9" * 5000, b"[]", b"{}", b'""', b'" "',
    b'"a"', b'"\\ud800"', b'"\\u0000"', b'"\\ud83d\\ude00"', b'"####"', b'"a #### "',
    b'{"prompt": "a", "prompt": 1}', b'"' + b"a" * 3_000 + b'"', b"[" * 3_000,
    b'{"prompt":' * 3_000,
]
BYTES = [
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n", b"\f", b'"',
    b"\\", b"{", b"}", b",", b":", b" ",
]


def broken_file(rng: random.Random) -> bytes:
    """A dataset with some of its lines cut, overwritten, or with a value of another kind."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(40))
    lines = rng.choices(LINES, k=rng.randint(1, 4))
    for _ in range(rng.choice((0, 1, 1, 2))):
        i = rng.randrange(len(lines))
        line, at = lines[i], rng.randint(0, len(lines[i]))
        name = rng.choice((b"prompt", b"answer", b"question", b"solution", b"rule"))
        added = line[:-1] + b', "' + name + b'": ' + rng.choice(VALUES) + b"}"
        lines[i] = rng.choice([
            line[:at], line[at:], line[:at] + rng.choice(BYTES) + line[at:],
            line[:at] + rng.choice(VALUES) + line[at:], rng.choice(VALUES), added, added, added,
        ])
    return rng.choice((b"", b"", b"\xef\xbb\xbf")) + b"\n".join(lines)


def test_broken_datasets_get_one_line(monkeypatch):
    """Catches a traceback (too deep, too many digits, half a character), a line without number.

    What is accepted is text that a tokenizer can take.
    """
    path, rng, accepted = Path("data.jsonl"), random.Random(0), 0
    for _ in range(2000):
        content = broken_file(rng)
        monkeypatch.setattr(Path, "read_bytes", lambda _, content=content: content)  # no disk
        try:
            examples = read_jsonl(path)
        except ValueError as error:
            message = str(error)
            assert message.startswith((f"{path} line ", f"{path}: no examples")), content
            assert len(message.splitlines()) == 1 and len(message) < 300, (content, message)
        else:
            accepted += 1
            for example in examples:
                assert example.prompt and example.answer
                "".join(dataclasses.astuple(example)).encode("utf-8")
    assert 300 < accepted < 1700
