"""Laws of the house: what can be read in one sitting, and which way imports point."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ("minisd.py", "toy_tasks.py", "train_gpt.py")
LINES = {"minisd.py": 900, "toy_tasks.py": 500, "train_gpt.py": 350}
LAB = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "lab").rglob("*.py"))


def parsed(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text())


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


OURS = {module_of(name): name for name in (*CORE, *LAB)}


def imports(name: str) -> set[str]:
    """The files of ours that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {OURS[module] for module in found if module in OURS} - {name}
    return {file for file in files if not file.endswith("__init__.py")}


@pytest.mark.parametrize("name", [*CORE, *LAB])
def test_a_file_can_be_read_in_one_sitting(name):
    """Catches the file that grows by a page with every idea."""
    assert len((ROOT / name).read_text().splitlines()) <= LINES.get(name, 500)


@pytest.mark.parametrize("name", [name for name in LAB if ">>> " in (ROOT / name).read_text()])
def test_an_example_in_a_docstring_is_what_the_code_does(name):
    """Catches an example that was right once."""
    found = doctest.testmod(importlib.import_module(module_of(name)))
    assert found.attempted and not found.failed


@pytest.mark.parametrize("name", CORE)
def test_a_function_of_the_core_fits_on_a_slide(name):
    """Catches a function that has to be scrolled: 50 lines without its docstring."""
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            lines += node.body[0].lineno - node.lineno  # the signature
            assert lines <= 50 + 20 * (node.name == "train"), (node.name, lines)


def test_the_front_page_is_short_and_begins_with_two_commands():
    """Catches reference matter on the front page, and a first block that does something else."""
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 2000
    block = []
    for line in text.splitlines():
        if line.startswith("    "):
            block.append(line.strip())
        elif block:
            break
    commands = ("python train_gpt.py --method sdpo", "python -m pytest")
    assert block == [f"pip install -r requirements.txt && {command}" for command in commands]


def test_the_core_imports_nothing_of_ours_and_nothing_imports_the_loop():
    """Catches the knot of the first edition: experiments that import the loop that imports them."""
    assert imports("minisd.py") == imports("toy_tasks.py") == set()
    assert [name for name in (*CORE, *LAB) if "train_gpt.py" in imports(name)] == []


def test_imports_point_one_way():
    """Catches a circle, however long."""
    open_files = {name: imports(name) for name in (*CORE, *LAB)}
    while leaves := [name for name, uses in open_files.items() if not uses & open_files.keys()]:
        for name in leaves:
            del open_files[name]
    assert open_files == {}


def test_results_are_numbers_and_pictures():
    """Catches code that hides among results, and the folder of the first edition."""
    assert not (ROOT / "results").exists()
    kinds = {path.suffix for path in (ROOT / "lab/results").iterdir()}
    assert kinds <= {".md", ".json", ".png"}


def test_the_top_level_has_nothing_else():
    """Catches the file that nobody put where it belongs."""
    hidden = {".ci", ".git", ".gitignore", "LICENSE", "pyproject.toml"}
    shape = {"README.md", *CORE, "requirements.txt", "tests", "lab"}
    here = {path.name for path in ROOT.iterdir()}
    left = {name for name in here - hidden - shape if not name.startswith((".", "__"))}
    assert left <= {"out"} and shape <= here
