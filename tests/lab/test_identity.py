"""Laws of what a run is: the content of what its flags name, and the tokens of its teacher."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_fuzz import SUMMARY
from test_huggingface import SMALL, WORDS, make_tokenizer
from tiny import build_gpt

import train_gpt
from lab import base, compare, hf, identity, storage
from lab.text_tasks import TextExample, TextTask
from lab.weights import with_rows
from minisd import GPT, GPTConfig

transformers = pytest.importorskip("transformers")

CHECKPOINT = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
              "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
              "chat_template.jinja", "config.json", "generation_config.json", "README.md")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, with data and two checkpoints, of which only the bytes count."""
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    for folder in ("model", "teacher", "toy"):
        Path(folder).mkdir()
        for name in CHECKPOINT:
            Path(folder, name).write_text(f"{name} of {folder}")
    Path("toy/student.pt").write_text("a student")
    return tmp_path


REAL = ["--init", "model", "--data", "data.jsonl", "--out_dir", "out"]
TAUGHT = [*REAL, "--method", "opd", "--external_teacher", "teacher"]
TOY = ["--method", "opd", "--external_teacher", "toy", "--out_dir", "out"]


def asked(arguments: list[str], resume: bool = False) -> dict | None:
    """What the folder of these arguments holds of the run that they ask for."""
    settings, _ = train_gpt.parse(arguments)
    return storage.finished_run(settings.run.folder, identity.Made(settings), resume)


def begun(arguments: list[str], finished: bool = True) -> Path:
    """The folder of a run, without its work."""
    settings, _ = train_gpt.parse(arguments)
    folder = settings.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    storage.start_folder(folder, identity.Made(settings), torch.device("cpu"))
    if finished:
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def change(path: Path) -> None:
    """Other content, as long as before and with its time: as a copy or an archive may leave it."""
    kept, content = path.stat(), path.read_bytes()
    path.write_bytes(content.swapcase())
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


CHANGES = [  # arguments, file, what is said; nothing: it does not count
    (REAL, "data.jsonl", "--data: 'data.jsonl' has not the data that"),
    (REAL, "model/model-00002-of-00002.safetensors", "--init: 'model' has not the weights that"),
    (REAL, "model/tokenizer.json", "--init: 'model' has not the tokenizer that"),
    (REAL, "model/chat_template.jinja", "--init: 'model' has not the tokenizer that"),
    (REAL, "model/config.json", "--init: 'model' has not the configuration that"),
    (REAL, "model/generation_config.json", "--init: 'model' has not the configuration that"),
    (REAL, "model/README.md", ""),
    (REAL, "teacher/config.json", ""),
    (TAUGHT, "teacher/model-00001-of-00002.safetensors", "--external_teacher: 'teacher' has not"),
    (TOY, "toy/student.pt", "--external_teacher: 'toy' has not the weights that"),
    (TOY, "toy/config.json", ""),
]


@pytest.mark.parametrize("arguments, name, said", CHANGES, ids=str)
def test_the_content_is_what_counts(arguments, name, said, here):
    """Catches results of the file as it was, shown for what it is now; and needless refusals."""
    folder = begun(arguments)
    assert asked(arguments) == asked(["--resume", str(folder)], True) == SUMMARY
    change(here / name)
    if not said:
        assert asked(arguments) == SUMMARY
        return
    with pytest.raises(ValueError, match=said) as error:
        asked(arguments)
    assert "allowed: the same content, or another --out_dir" in str(error.value)
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match=said.split()[0]):  # there the path is a whole one
        asked(["--resume", str(folder)], True)
    change(here / name)  # as it was
    assert asked(["--resume", str(folder)], True) is None


@pytest.mark.parametrize("arguments", [REAL, TAUGHT, TOY], ids=str)
def test_a_run_is_resumed_from_any_folder(arguments, here, monkeypatch):
    """Catches paths that mean something else, or nothing, where --resume is called."""
    folder = begun([*arguments, "--cache_dir", "bases"], finished=False).absolute()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert asked(["--resume", str(folder)], True) is None
    settings, _ = train_gpt.parse(["--resume", "../out"])
    assert settings.run.cache_dir == str(here / "bases")
    named = settings.checkpoint.init, settings.checkpoint.data, settings.method.external_teacher
    assert all(not x or Path(x).exists() for x in named if x != "larger")


def test_the_same_content_in_another_place_is_the_same_run(here, monkeypatch):
    """Catches a run that is its paths; a place for base models that makes two runs of one."""
    begun(TAUGHT)
    shutil.copytree(here, here / "moved")
    monkeypatch.chdir(here / "moved")
    Path("data.jsonl").rename("problems.jsonl")
    Path("model").rename("start")
    other = [{"data.jsonl": "problems.jsonl", "model": "start"}.get(x, x) for x in TAUGHT]
    assert asked([*other, "--cache_dir", "bases"]) == SUMMARY
    with pytest.raises(ValueError, match="--seed 0 instead of 1"):
        asked([*other, "--seed", "1"])
    with pytest.raises(ValueError, match="--external_teacher"):
        asked([*other, "--external_teacher", "start"])
    with pytest.raises(ValueError, match="holds a run with"):
        asked(["--out_dir", "out"])


def test_a_run_of_the_toy_reads_no_file(here, monkeypatch):
    """Catches checksums that make the toy slower, and a folder that is called as a teacher."""
    monkeypatch.setattr(identity, "checksum", lambda path: pytest.fail(f"{path} is read"))
    Path("larger").mkdir()
    for arguments in ([], ["--method", "gkd"], ["--method", "rlvr_teacher"],
                      ["--external_teacher", "toy"]):  # it is not used
        folder = begun([*arguments, "--out_dir", "out"])
        config = json.loads((folder / "config.json").read_text())
        assert config["checksums"] == {} and asked([*arguments, "--out_dir", "out"]) == SUMMARY
        teacher = config["settings"]["method"]["external_teacher"]
        assert not os.path.isabs(teacher)
        shutil.rmtree(folder)
    known = {*base.EXTERNAL_BASES, "adapted"}
    assert all(identity.checksums_of_teacher(name, False) == {} for name in known)


def test_a_run_without_checksums_is_not_taken_for_this_one(here):
    """Catches old results of an unknown content; a traceback from a broken record."""
    folder = begun(REAL)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for broken in ({}, {"data": {}}, [], 3, None, {"data": 3}, {"init": {"weights": []}}):
        path.write_text(json.dumps(config | {"checksums": broken}))
        with pytest.raises(ValueError, match=r"--(data|init|out_dir): .*; allowed: "):
            asked(REAL)
    del config["checksums"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"--(data|init|out_dir): .*; allowed: "):
        asked(REAL)


def test_what_is_missing_is_named_by_its_flag(here):
    """Catches a failure after minutes of training, or a traceback from a folder that has gone."""
    folder = begun(TOY, finished=False)
    Path("toy/student.pt").unlink()
    with pytest.raises(ValueError, match=r"--external_teacher: '.*toy/student.pt' is not there"):
        asked(["--resume", str(folder)], True)
    shutil.rmtree(folder)
    begun(REAL, finished=False)
    Path("data.jsonl").unlink()
    with pytest.raises(ValueError, match=r"--data: .*; allowed: a JSONL file"):
        asked(["--resume", str(folder)], True)


def test_a_name_on_the_hub_is_what_is_downloaded(here, monkeypatch):
    """Catches a checkpoint that was changed under its name."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(here / "model"))
    named = [x if x != "model" else "some/name" for x in REAL]
    folder = begun(named)
    stored = json.loads((folder / "config.json").read_text())["settings"]["checkpoint"]
    assert stored["init"] == "some/name" and asked(named) == SUMMARY
    change(here / "model/config.json")
    with pytest.raises(ValueError, match="--init: 'some/name' has not the configuration"):
        asked(named)


def test_a_comparison_with_a_changed_teacher_is_not_shown(here, monkeypatch):
    """Catches a table of results with the teacher as it was."""
    monkeypatch.setattr(compare, "compare", lambda asked, folder, workers: asked)
    monkeypatch.setattr(compare, "comparison_table", str)
    kept = []
    monkeypatch.setattr(compare, "finished_comparison", lambda _, x: kept.append(x))
    words = ["opd", "--seeds", "1", "--external_teacher", "toy", "--out_dir", "out"]
    compare.main(words)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    Path("out").mkdir()
    means = {"fresh": {"accuracy_frac": {"mean": 0.5, "change": [0, 0, 0]}}}
    Path("out/compare.json").write_text(json.dumps(kept[0] | {"code": "", "methods": means}))
    monkeypatch.setattr(compare, "comparison_table", str)
    compare.main(words)
    change(here / "toy/student.pt")
    with pytest.raises(ValueError, match="--external_teacher: 'toy' has not the weights"):
        compare.main(words)


def test_scratch_of_killed_saves_goes_at_the_next_start(here):
    """Catches gigabytes that stay, and a folder that is refused for what a kill has left in it."""
    left = Path("out/.checkpoint.ab_1/new"), Path("out/.checkpoint.x9/old"), Path("out/checkpoints")
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    Path("out/.summary.json.77").write_text("half")
    Path("out/checkpoints/.step-00000004.pt.77").write_bytes(b"half")
    Path("out/checkpoint").mkdir()
    begun(REAL, finished=False)
    names = {str(path.relative_to("out")) for path in Path("out").rglob("*")}
    assert names == {"checkpoint", "checkpoints", "checkpoints/model.safetensors"}
    shutil.rmtree("out")
    Path("out/.checkpoint.ab_1").mkdir(parents=True)
    assert asked(REAL) is None


# Teachers -----------------------------------------------------------------------------------------


TEXTS = [TextExample(f"w{i} w{i + 1}", f"{i}") for i in range(12)]


def checkpoint(folder: Path, words: list[str] = WORDS, **changes) -> GPT:
    """A random checkpoint of a whole-word tokenizer."""
    torch.manual_seed(len(words))
    config = transformers.Qwen3Config(**SMALL | {"head_dim": 8, "initializer_range": 0.5} | changes)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    make_tokenizer(words).save_pretrained(folder)
    return hf.load(folder)[0]


@pytest.mark.parametrize("words, said", [
    ([*WORDS[:7], WORDS[8], WORDS[7], *WORDS[9:]], r"where 'w4' is 8 instead of 7"),
    (WORDS[:-1], "where 'w59' is no token instead of 62"),
    ([*WORDS, "more"], "where 'more' is 63 instead of no token"),
    ([*WORDS[:20], "other", *WORDS[21:]], "where 'w17' is no token instead of 20"),
])
def test_a_teacher_of_other_tokens_is_refused(words, said, tmp_path):
    """Catches a teacher with as many rows whose numbers stand for other words."""
    student, task = GPT(GPTConfig(67)), TextTask(TEXTS, make_tokenizer(), reward="exact")
    checkpoint(tmp_path / "teacher", words)
    with pytest.raises(ValueError, match=f"--external_teacher: .*teacher', {said}; allowed") as e:
        identity.named_teacher(str(tmp_path / "teacher"), task, student)
    assert "\n" not in str(e.value)


def test_a_teacher_that_divides_text_otherwise_is_refused(tmp_path):
    """Catches the same words and numbers behind another rule of dividing."""
    from tokenizers import pre_tokenizers

    checkpoint(tmp_path)
    other = make_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("-")
    other.save_pretrained(tmp_path)
    task = TextTask(TEXTS, make_tokenizer(), reward="exact")
    with pytest.raises(ValueError, match=r"which divides 'w\d+ w\d+' into other tokens; allowed"):
        identity.named_teacher(str(tmp_path), task, GPT(GPTConfig(67)))


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [63, 64, 67, 80])
def test_a_teacher_with_other_padding_teaches(rows, tied, tmp_path):
    """Catches a refusal of Qwen2.5's 7B beside its 0.5B, and logits that moved to other tokens."""
    whole = checkpoint(tmp_path, tie_word_embeddings=tied)
    task = TextTask(TEXTS, make_tokenizer(), reward="exact")
    teacher = identity.named_teacher(str(tmp_path), task, GPT(GPTConfig(rows)))
    ids = torch.arange(2, 62)[None]
    logits, expected = teacher(ids), whole(ids)
    assert logits.shape == (1, 60, rows) and teacher.config.vocab_size == rows
    torch.testing.assert_close(logits[..., : min(rows, 67)], expected[..., :rows])
    assert (logits[..., 67:] == 0).all()
    assert (teacher.lm_head.weight is teacher.embed_tokens.weight) == tied
    again = GPT(teacher.config)  # as --resume makes it
    again.load_state_dict(teacher.state_dict())
    torch.testing.assert_close(again(ids), logits)


def test_a_teacher_of_the_toy_has_its_words(tmp_path):
    """Catches a student of another edition of the toy, and weights that are no numbers."""
    model = build_gpt(vocab_size=11)
    storage.save_student(tmp_path / "student.pt", model)
    task, name = SimpleNamespace(), str(tmp_path)
    assert identity.named_teacher(name, task, model).config == model.config
    with pytest.raises(ValueError, match=r"--external_teacher: .*; allowed: one of 12 tokens"):
        identity.named_teacher(name, task, build_gpt(vocab_size=12))
    model.layers[1].mlp.up_proj.weight.data[2, 3] = torch.nan
    storage.save_student(tmp_path / "student.pt", model)
    said = r"--external_teacher: '.*student.pt': layers.1.mlp.up_proj.weight has .*NaN"
    with pytest.raises(ValueError, match=said):
        identity.named_teacher(name, task, model)


def test_as_many_rows_are_the_same_model():
    """Catches a copy of a large embedding for nothing."""
    model = build_gpt(tied_embeddings=True)
    weight = model.embed_tokens.weight
    assert with_rows(model, 11).embed_tokens.weight is weight
    assert dataclasses.asdict(with_rows(model, 13).config)["vocab_size"] == 13
