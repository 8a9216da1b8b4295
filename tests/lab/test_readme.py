"""What the front page says is what the program does."""

import json
import re
import shlex
from pathlib import Path

import pytest

import train_gpt
from lab.report import method_table
from minisd import METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "lab/docs").glob("*.md"))]


def test_its_methods_are_those_of_the_table():
    """Catches a row that was changed in the code alone; rows of your own may stand behind them."""
    shown = re.findall(r"^\| (?:method|`\w+`) \|.*\|$", README, re.MULTILINE)
    table = [line for line in method_table(METHODS).splitlines() if not line.startswith("|---")]
    assert len(shown) >= 15 and shown == table[: len(shown)]


def test_its_verdicts_are_those_that_are_kept():
    """Catches a claim that is called reproduced on the front page and is not."""
    path = ROOT / "lab/results/claims.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    said = dict(re.findall(r"^- `(\w+)`, \*\*([a-z ]+)\*\*", README, re.MULTILINE))
    assert said == {row["claim"]: row["verdict"] for row in rows}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Catches a page or picture that was moved."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_its_commands_are_understood():
    """Catches a flag that has another name by now; what a reader is to add first is left out."""
    added = {"total_variation", "squared", "unsure", "wrong_only", "slowing", "first_step", "mine"}
    found = re.findall(r"^    python train_gpt\.py ([^#\n]*)", README, re.MULTILINE)
    assert len(found) >= 6
    for line in found:
        words = shlex.split(line)
        if not {*words} & {*added, "reverse", "CHECKPOINT"}:
            train_gpt.parse(words)
