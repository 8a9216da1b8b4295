"""Laws of the processes behind experiments; those of their queue are in test_compare.py."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from lab import runs

SERVER = runs.server  # as it is outside of tests, see conftest.py


def test_a_run_is_a_fresh_process_that_has_the_libraries_already(tmp_path, monkeypatch):
    """Catches imports in every run, threads that a fork would lose, and traces of its parent."""
    monkeypatch.setattr(runs, "server", SERVER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINE", "given later than the server began")
    code = (
        "import sys, os, json, threading; tasks = '/proc/self/task'; json.dump(["
        "[m for m in ('torch._dynamo', 'lab.report', 'train_gpt', 'pytest') if m in sys.modules], "
        "sys.argv, threading.active_count(), os.listdir(tasks) if os.path.exists(tasks) else [0], "
        "os.environ['MINE'], os.getcwd(), __name__], open('found.json', 'w'))"
    )
    main, before = sys.modules["__main__"], dict(os.environ)
    runs.run_command(["-c", code, "--more", "a b"])
    found = json.loads(Path("found.json").read_text())
    assert found[:3] == [["torch._dynamo", "lab.report"], ["-c", "--more", "a b"], 1]
    assert len(found[3]) == 1
    assert found[4:] == [os.environ["MINE"], os.getcwd(), "__main__"]
    assert sys.modules["__main__"] is main and os.environ == before


def test_modules_and_files_run_as_behind_python(tmp_path, monkeypatch):
    """Catches a command that is imported instead of run, or that does not see its arguments."""
    monkeypatch.chdir(tmp_path)
    Path("given.json").write_text("[1]")
    runs.run_command(["-m", "json.tool", "given.json", "made.json"])
    assert json.loads(Path("made.json").read_text()) == [1]
    Path("own.py").write_text("import sys, other; open(sys.argv[1], 'w').write(__name__)")
    Path("other.py").write_text("")
    runs.run_command(["own.py", "name.txt"])
    assert Path("name.txt").read_text() == "__main__"
    with pytest.raises(runs.Failed, match=r"No module named lab\.nothing"):
        runs.run_command(["-m", "lab.nothing"])


def test_of_several_failures_the_first_is_told(tmp_path, monkeypatch):
    """Catches `not begun` as the reason, and a worker that takes the next job meanwhile."""
    begun = tmp_path / "begun"

    def late(futures, *what):  # as on a busy machine
        for future in futures:
            time.sleep(0.3)
            yield future

    monkeypatch.setattr(runs, "progress", late)

    def wrong(start):
        raise ValueError("the reason")

    def begin(start):
        start(["-c", f"open({str(begun)!r}, 'w')"])

    with pytest.raises(ValueError, match="the reason"):
        runs.in_parallel([wrong, begin, begin], workers=1)
    assert not begun.exists()
