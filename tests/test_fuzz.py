"""Broken input by the thousand: command lines, datasets, checkpoint configurations.

Whatever is given, the answer is success or one line that names what is wrong, never a traceback,
and nothing is written. The same examples in every run.
"""

import contextlib
import dataclasses
import io
import json
import math
import random
from pathlib import Path

import pytest
import torch

import minisd
import toy_tasks
import train_gpt
from results import claims


class Reached(Exception):
    """Raised in place of the work: everything before it has accepted the input."""


# Command lines ------------------------------------------------------------------------------------

FLAGS = {f.name: f for f in dataclasses.fields(train_gpt.TrainConfig)}
WORDS = [  # what some flag accepts, so that contradictions are reached
    *(*train_gpt.METHODS, *train_gpt.LOSSES, *minisd.TEACHERS, *toy_tasks.CONTEXTS),
    *(*minisd.SUPPORTS, *minisd.TAILS, *toy_tasks.TEXT_REWARDS, "base", "larger", "adapted"),
    *("token_mean", "sequence_mean", "constant", "std", "mean", "data", "bfloat16", "float32"),
]
JUNK = [
    *("0", "1", "-1", "2", "3", "7", "64", "0.5", "1.0", "-0.0", "1e-320", "1e400"),
    *("1e9999999999", "0x1", "1_000", "1,5", ",", ",,,", "2,7", "3,", "12"),
    *("nan", "inf", "-inf", "NaN", "True", "none", "None", "+", "+-", "+-*/", "++", "*", "="),
    *("--", "-", "---", "--steps", "--=", "-x", "@file"),
    *("cuda", "cuda:", "cuda:x", "cpu:-1", "cpu:99999999999999999999", "mps", "cpu", "auto", ":"),
    *("/", ".", "..", "/dev/null", "~"),
    *("%s", "%", "{}", "\\", "'\"", "\u0663", "\xb2", "\U0001f600", "\ud800"),
    *("", " ", "\0", "a\0b", "a\nb", "a\rb\u2028c", "+ -", "9" * 5000, "a" * 5000),
    *(str(2**63 - 1), str(2**63), str(10**30)),
]
WORLDS = [
    *("persona_rate=0", "persona_rate=nan", "persona_rate", "=", "x=1", "certainty=1"),
    *("certainty.", "a=b=c"),
    *("certainty.none=2", "certainty.none.none=0", "functional_markers=2"),
    *("functional_markers=false",),
    *("max_operations=0", "max_operations=2", "max_operations=1e3", "direct_slope=-1"),
    *("operators=", "operators=/", "operators=+"),
    f"max_operations={10**30}",
    ",".join(f"document_share.{kind}=0" for kind in toy_tasks.CONTEXTS),
]
NUMBERS = [
    *("-1", "0", "0.25", "0.5", "1", "2", "3", "8", "64", "128", "1e-9", "1000"),
    *(str(2**63), str(10**30)),
]
BY_NAME = {  # values of which some are right, so that what stands behind them is reached
    "world": WORLDS,
    "rules": ["3", "2,7", "0", "10", "+"],
    "train_operators": ["+", "+-", "*", "/"],
    "out_dir": ["file", "other", "missing", "file/below"],
    "data": ["data.jsonl", "file", "other"],
    "compare": [*train_gpt.METHODS, "base"],
}


def broken_value(rng: random.Random, name: str) -> str:
    """A value for a flag: of its type, one that some flag takes, or of none."""
    if name in BY_NAME and rng.random() < 0.6:
        return rng.choice(BY_NAME[name])
    if name in FLAGS and rng.random() < 0.7:
        names = FLAGS[name].metadata["allowed"][1].split(", ")
        return rng.choice(NUMBERS if FLAGS[name].type in (int, float) else [*names, *WORDS])
    return rng.choice(rng.choice((JUNK, JUNK, WORDS, WORLDS)))


def broken_command(rng: random.Random) -> list[str]:
    """A few flags with values that may not fit them, or each other; now and then one alone."""
    arguments = []
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 6))):
        name = rng.choice([*FLAGS, *FLAGS, "method", "compare", "seeds", "workers", "no-such"])
        if name in FLAGS and FLAGS[name].type is bool:
            name = rng.choice((name, f"no-{name}"))
            arguments += [f"--{name}"] if rng.random() < 0.8 else [f"--{name}=1"]
            continue
        value, form = broken_value(rng, name), rng.random()
        if form < 0.05:
            arguments.append(rng.choice((value, f"--{name}", "--list_methods")))
        else:
            arguments += [f"--{name}={value}"] if form < 0.3 else [f"--{name}", value]
    return arguments


@pytest.fixture
def no_work(monkeypatch):
    """Command lines go as far as the first weight that would be made or loaded, and no further."""

    def reached(*_, **__):
        raise Reached

    # claim_folder writes first of all, so that a run killed while pretraining can be resumed.
    for name in ("initial_model", "base_model", "claim_folder", "ProcessPoolExecutor"):
        monkeypatch.setattr(train_gpt, name, reached)
    monkeypatch.setattr(claims, "run_claims", reached)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: torch.tensor(count))
    parser = train_gpt.make_parser()  # once: it would take most of the time
    monkeypatch.setattr(train_gpt, "make_parser", lambda: parser)


def answer(arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard error of a command; code 0 where the work would begin."""
    # A file, unlike a StringIO, refuses half a character, as a terminal does.
    output, error = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            train_gpt.main(arguments)
        except Reached:
            return 0, error.getvalue()
        except SystemExit as stop:
            return stop.code or 0, error.getvalue()
    return 0, error.getvalue()


def test_broken_command_lines_get_one_line(no_work, tmp_path, monkeypatch):
    """Catches a traceback, a message of two lines or without the flag, and a file that is left."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("data.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    Path("other").mkdir()
    Path("other", "config.json").write_text("[]")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    rng, codes = random.Random(0), []
    for _ in range(5000):
        arguments = broken_command(rng)
        code, error = answer(arguments)
        codes.append(code)
        assert code in (0, 2), arguments
        if code == 2:
            assert len(error.splitlines()) == 1, (arguments, error)
            assert error.startswith("train_gpt.py: error: "), (arguments, error)
            named = ("--", "unrecognized arguments:", "File name too long: ")
            assert any(words in error for words in named), (arguments, error)
        else:
            assert not error, (arguments, error)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert 250 < codes.count(0) < 2500  # most are broken, and not all by their first flag


# Datasets -----------------------------------------------------------------------------------------

LINES = [
    b'{"prompt": "What is 1+1?", "answer": "2", "solution": "1+1 = 2", "rule": null}',
    b'{"question": "How many?", "answer": "3*4=<<3*4=12>>12\\n#### 1,200"}',
    '{"prompt": "\u00e9\u2028\U0001f600", "answer": "x", "feedback": "no"}'.encode(),
    b"",
]
VALUES = [
    *(b"null", b"true", b"7", b"-0.0", b"NaN", b"1e999", b"9" * 5000, b"[]", b"{}"),
    *(b'""', b'" "', b'"a"', b'"\\ud800"', b'"\\u0000"', b'"\\ud83d\\ude00"', b'"####"'),
    *(b'"a #### "', b'{"prompt": "a", "prompt": 1}', b'"' + b"a" * 3_000 + b'"'),
    *(b"[" * 3_000, b'{"prompt":' * 3_000),
]
BYTES = [
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n", b"\f"),
    *(b'"', b"\\", b"{", b"}", b",", b":", b" "),
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
        lines[i] = rng.choice(
            (
                *(line[:at], line[at:], line[:at] + rng.choice(BYTES) + line[at:]),
                *(line[:at] + rng.choice(VALUES) + line[at:], rng.choice(VALUES)),
                *[line[:-1] + b', "' + name + b'": ' + rng.choice(VALUES) + b"}"] * 3,
            )
        )
    return rng.choice((b"", b"", b"\xef\xbb\xbf")) + b"\n".join(lines)


def test_broken_datasets_get_one_line(monkeypatch):
    """Catches a traceback (too deep, too many digits, half a character), a line without number.

    What is accepted is text that a tokenizer can take.
    """
    path, rng, accepted = Path("data.jsonl"), random.Random(0), 0
    for _ in range(8000):
        content = broken_file(rng)
        monkeypatch.setattr(Path, "read_bytes", lambda _, content=content: content)  # no disk
        try:
            examples = toy_tasks.read_jsonl(path)
        except ValueError as error:
            message = str(error)
            assert message.startswith((f"{path} line ", f"{path}: no examples")), content
            assert len(message.splitlines()) == 1 and len(message) < 300, (content, message)
        else:
            accepted += 1
            for example in examples:
                assert example.prompt and example.answer
                "".join(dataclasses.astuple(example)).encode("utf-8")
    assert 1500 < accepted < 6500


# Configurations of checkpoints --------------------------------------------------------------------

CONFIG = {
    **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"},
    **{"vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "rms_norm_eps": 1e-6},
    **{"max_position_embeddings": 64, "tie_word_embeddings": True, "rope_theta": 1e4},
    **{"attention_bias": False, "initializer_range": 0.02, "rope_scaling": None},
}
ROPES = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 32}
    | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
]
ANYTHING = [
    *(None, True, False, 0, 1, 2, 3, 7, -1, 10**30, 0.5, -0.0, 1e300, 1e-300, math.nan, math.inf),
    *("", "a", "8", "linear", "yarn", "\0", [], ["a"], [[[]]], {}, {"a": 1}, *ROPES),
]


def broken_config(rng: random.Random) -> dict:
    """A good configuration in which one or two values, also those of its rope, are others."""
    config = CONFIG | {"rope_scaling": rng.choice((None, *ROPES))}
    for _ in range(rng.choice((1, 1, 2))):
        target = config
        if isinstance(config.get("rope_scaling"), dict) and rng.random() < 0.3:
            target = config["rope_scaling"] = dict(config["rope_scaling"])
        name = rng.choice([*target, "sliding_window", "quantization_config", "layer_types"])
        if rng.random() < 0.1:
            target.pop(name, None)
        else:
            target[name] = rng.choice(ANYTHING)
    return config


def test_broken_checkpoint_configurations_get_one_line(tmp_path):
    """Catches a traceback out of transformers or torch, and a model with nan in its positions."""
    pytest.importorskip("transformers")
    rng, accepted = random.Random(0), 0
    for _ in range(250):
        config = broken_config(rng)
        (tmp_path / "config.json").write_text(json.dumps(config))
        try:
            parsed = minisd.hf_config(tmp_path)
        except ValueError as error:
            message = str(error)
            assert str(tmp_path / "config.json") in message, config
            assert len(message.splitlines()) == 1 and len(message) < 600, (config, message)
        else:
            accepted += 1
            with torch.device("meta"):
                minisd.GPT(parsed)
            assert minisd.rope_table(parsed, 3, torch.zeros(1))[0].isfinite().all()
    assert 25 < accepted < 125
