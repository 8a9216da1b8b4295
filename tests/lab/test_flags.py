"""Laws of flags: which contexts of the toy can teach what; what a terminal can show."""

import io
import os
import subprocess
import sys

import pytest
import torch
from tqdm import tqdm

from lab.flags import check_context, out_folder, run_main, shell_word
from toy_tasks import CONTEXTS, Context, Toy

NEEDS_A_RULE = "--rules: '{}'; allowed: numbers such as 3 or 2,7 with --context rule"
NEEDS_THE_CONTEXT = "--context: '{}'; allowed: rule, with --rules and a teacher"


@pytest.mark.parametrize(
    "rules, contexts, distils, message",
    [
        ("", {"rule"}, True, NEEDS_A_RULE.format("")),
        (",", {"none", "rule"}, False, NEEDS_A_RULE.format(",")),
        ("3", {"solution"}, True, NEEDS_THE_CONTEXT.format("solution")),
        ("3", {"rule", "answer"}, True, NEEDS_THE_CONTEXT.format("answer")),
        ("3", {"none"}, True, NEEDS_THE_CONTEXT.format("none")),
        ("3", {"none", "feedback"}, False, "--context: 'feedback'; allowed: no verdicts"),
        ("3", {"rule", "none"}, True, ""),
        ("3", {"solution", "none"}, False, ""),
        ("3", set(), False, ""),
        ("", {"solution", "feedback", "none"}, True, ""),
    ],
)
def test_rules_and_contexts_that_contradict_each_other_are_refused(
    rules, contexts, distils, message
):
    """A teacher that knows the answer without the rule, or feedback that contradicts the reward."""
    if not message:
        return check_context(Toy(rules=rules), contexts, distils)
    with pytest.raises(ValueError, match=f"^{message}"):
        check_context(Toy(rules=rules), contexts, distils)


def test_an_unknown_context_is_refused_by_name_and_a_new_row_is_not(monkeypatch):
    """A typo that trains without any context, or a second list of the contexts."""
    row = Context(lambda p, rng, attempt, rule: "hint ", 0.5, 0.0)
    monkeypatch.setitem(CONTEXTS, "checklist", row)
    check_context(Toy(), {"checklist"}, True)
    for contexts in ({"solution", "chess"}, {"chess"}):
        with pytest.raises(ValueError, match=r"^--context: 'chess'; allowed: none, .*, checklist$"):
            check_context(Toy(), contexts, True)


# Terminals ----------------------------------------------------------------------------------------

ODD = "h\u00e9 \u2212 \U0001f600 \ud800 \udcff \u4e2d"  # also half a character, and half a byte


def said_on(encoding: str, monkeypatch, function) -> tuple[int, str, str]:
    """Exit code, output and errors of a command on a terminal that has these characters alone."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams):
        monkeypatch.setattr(sys, name, stream)
    code = 0
    try:
        run_main("prog", function)
    except SystemExit as stop:
        code = stop.code
    for stream in streams:
        stream.flush()
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8", "utf-16-le"])
def test_any_character_is_shown_on_any_terminal(encoding, monkeypatch):
    """Catches hours of training that end because a model has written an emoji."""

    def speak(arguments) -> None:
        print(ODD)
        tqdm.write(ODD)
        print(ODD, file=sys.stderr)
        raise ValueError(ODD)

    code, out, error = said_on(encoding, monkeypatch, speak)
    assert code == 2 and out.count("\n") == error.count("\n") == 2
    assert r"\ud800 \udcff" in out and "prog: error: h" in error


NAMES = ["plain", "a b", "a  b", "it's", '"$HOME" `ls`', "a\nb", "a\tb", "-x", "caf\u00e9",
         "\u4e2d", "\udcff", "a\\nb", "*", "~", "", "x;y&z", "\x1b[2J"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_path_is_one_word_of_a_shell_in_one_line(encoding, monkeypatch):
    """Catches a command to go on that names another folder, two words, or a flag."""
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding))
    words = [shell_word(name) for name in NAMES]
    assert all(word.isprintable() and word.encode(encoding) for word in words)
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True)
    expected = [os.fsencode(f"./{name}" if name == "-x" else name) for name in NAMES]
    assert told.stdout.split(b"\0")[:-1] == expected


def test_the_spaces_of_a_path_stay_in_an_error(monkeypatch):
    """Catches a quoted path that no longer is the path when it has been put into one line."""

    def fail(arguments) -> None:
        raise ValueError("--resume 'a  b'\nand more")

    assert "--resume 'a  b' and more\n" in said_on("ascii", monkeypatch, fail)[2]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_one_line(error, monkeypatch):
    """Catches a page of traceback for a number with too many digits; and a bug called memory."""

    def fail(arguments) -> None:
        raise error

    code, _, said = said_on("ascii", monkeypatch, fail)
    assert code == 2 and said.count("\n") == 1 and "out of memory; allowed: a smaller" in said
    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        said_on("ascii", monkeypatch, fail)


def test_a_folder_for_results_is_a_folder_or_a_new_name(tmp_path):
    """Catches work that begins although its results can go nowhere, and words without the flag."""
    (tmp_path / "file").touch()
    for name in (tmp_path, tmp_path / "new" / "name"):
        assert out_folder(str(name)) == name
    with pytest.raises(ValueError, match=r"--out_dir: '.*file' is a file; allowed: a folder"):
        out_folder(tmp_path / "file")
    with pytest.raises(ValueError, match=r"--out_dir: 'a+': File name too long; allowed: a folder"):
        out_folder("a" * 300)
