"""From a checkpoint and a JSONL file to a trained checkpoint, and the options that make it fit."""

import dataclasses
import errno
import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
import torch

import minisd
import toy_tasks
import train_gpt
from lab import base, evaluation, hf, moments, page, report
from minisd import METHODS, Prompts, Sizes, Teacher
from toy_tasks import ToyTask, World

transformers = pytest.importorskip("transformers")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 400,
    "tie_word_embeddings": True, "bos_token_id": None,
}
# A run of a moment.
SMALL = {
    "steps": 2, "batch_size": 8, "group_size": 4, "max_new_tokens": 8, "eval_problems": 2,
    "eval_every": 2, "micro_batch": 3, "chunk_tokens": 16, "learning_rate": 1e-2, "threads": 1,
    "device": "cpu", "page_problems": 0,
}
FILES = {"config.json", "metrics.jsonl", "curves.png", "checkpoint", "summary.json"}


def problems(count: int = 20) -> list[dict]:
    """In GSM8K's form, with dollars that a plot would read as broken mathematics."""
    rng, rows = random.Random(0), []
    for _ in range(count):
        a, b = rng.randint(2, 90), rng.randint(2, 9)
        question = f"A box of {a} pens costs $12, \\cheap, not $15. How many pens are in {b} boxes?"
        solution = f"Each box holds {a} pens.\nSo there are {b}*{a} = <<{b}*{a}={a * b}>>{a * b}."
        rows.append({"question": question, "answer": f"{solution}\n#### {a * b}"})
    return rows


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_tokenizer():
    """Byte-level BPE with a chat template, trained on the problems."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    texts = (f"{x['question']}\n{x['answer']}" for x in problems())
    tokenizer.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_checkpoint(folder: Path) -> tuple[str, str]:
    """Folder of a random tiny Qwen3 with its tokenizer, and a data file."""
    tokenizer = make_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=len(tokenizer) + 3, **QWEN3, **ids)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model"), write_lines(folder / "data.jsonl", problems())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> dict[str, str]:
    init, data = make_checkpoint(tmp_path_factory.mktemp("text"))
    return {"init": init, "data": data}


@pytest.fixture
def folder(tmp_path, small_runs) -> Path:
    """Where a run without a picture goes."""
    return tmp_path / "run"


def words(**flags) -> list[str]:
    """The command line of the flags; True: a switch."""
    return [f"--{k}" if v is True else f"--{k}={v}" for k, v in flags.items() if v is not None]


def run(folder: Path, checkpoint: dict, **flags) -> dict:
    """The summary of a run of a moment."""
    train_gpt.main(words(**SMALL | checkpoint | {"out_dir": folder} | flags))
    return json.loads((folder / "summary.json").read_text())


def settings(checkpoint: dict, **flags) -> train_gpt.Settings:
    return train_gpt.parse(words(**checkpoint | flags))[0]


def weights(folder: Path) -> torch.Tensor:
    """Those of a checkpoint as one vector in float32."""
    return torch.cat([p.detach().flatten() for p in hf.load(folder)[0].parameters()])


# Settings -----------------------------------------------------------------------------------------


def test_a_checkpoint_has_defaults_of_its_own(checkpoint):
    """Catches a checkpoint that is trained with the sizes and the learning rate of the toy."""
    toy, real = settings({}), settings(checkpoint)
    for name, value in hf.CHECKPOINT_DEFAULTS.items():
        groups = ("run", "method", "checkpoint")
        group = next(group for group in groups if hasattr(getattr(real, group), name))
        assert getattr(getattr(real, group), name) == value
        same = getattr(getattr(toy, group), name) == value
        assert not same or name == "dtype"  # float32 on a processor without bfloat16
    assert settings(checkpoint, batch_size=16).run.batch_size == 16
    assert settings(checkpoint, learning_rate=0.5).method.learning_rate == 0.5
    rate = {"learning_rate": METHODS["sdpo"].learning_rate}
    assert dataclasses.replace(real.method, **rate) == toy.method == METHODS["sdpo"]


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.reward_weight == 1])
def test_a_policy_gradient_holds_no_second_model_and_needs_no_solutions(name, checkpoint):
    """Catches a copy of the weights for a teacher that the loss does not use."""
    method = settings(checkpoint, method=name).method
    student, _ = hf.load(checkpoint["init"])
    assert Teacher(method, student).copies == {} and method.contexts == ["none"]
    changed = {field: getattr(METHODS[name], field)
               for field in ("teacher", "context", "learning_rate")}
    assert dataclasses.replace(method, **changed) == METHODS[name]
    assert settings({}, method=name).method == METHODS[name]
    assert settings(checkpoint, method=name, context="answer").method.context == "answer"


# A whole run --------------------------------------------------------------------------------------


def test_from_jsonl_to_a_checkpoint_that_transformers_loads(checkpoint, tmp_path, capsys):
    """Catches any break between data and saved weights, and settings that are not shown."""
    folder = tmp_path / "run"
    summary = run(folder, checkpoint, method="sdpo", activation_checkpointing=True)
    out, saved = capsys.readouterr().out, folder / "checkpoint"
    for shown in (f"checkpoint {checkpoint['init']}, endless problems, 2 steps of 8 completions",
                  "micro_batch=3", "chunk_tokens=16", f"data={checkpoint['data']}",
                  "max_new_tokens=8", "no leak into the student's prompt ok", str(saved)):
        assert shown in out, shown
    assert "student.pt" not in out and "untrained" not in out
    assert {p.name for p in folder.iterdir()} == FILES
    assert set(summary["after"]) == set(summary["before"]) == {"train", "fresh"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    ours, _ = hf.load(saved)
    ids = torch.tensor([tokenizer.encode("How many pens?")])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    before, _ = hf.load(checkpoint["init"])
    for (name, old), new in zip(before.named_parameters(), ours.parameters()):
        assert (old - new).abs().max() > 1e-3, name
    written = (folder / "summary.json").stat().st_mtime_ns
    run(folder, checkpoint, method="sdpo", activation_checkpointing=True)
    assert "already holds this run" in capsys.readouterr().out
    assert (folder / "summary.json").stat().st_mtime_ns == written


def test_a_page_of_a_checkpoint_has_its_tokens_and_contexts(
    checkpoint, folder, tmp_path, monkeypatch
):
    """Catches tokens of the toy, a hint that the data do not have, and a forecast of the toy."""
    monkeypatch.setattr(moments, "SHARE", 10.0)  # a run of a moment has time for one hint
    monkeypatch.setattr(moments, "CHUNK", 1000)  # three tokens at a time
    run(folder, checkpoint, method="sdpo", page_problems=2)
    page.main([str(folder)])
    text = (folder / "page.html").read_text().partition('id="data">')[2].partition("<")[0]
    data, tokenizer = json.loads(text), hf.load(checkpoint["init"])[1]
    known = {tokenizer.decode([i]) for i in range(len(tokenizer) + 3)}  # rows without a token, too
    assert set(data["words"]) <= known and "about" in data and not data["about"]
    (shown,) = data["runs"]
    assert shown["steps"] == [0, 2] and "toy alone" in shown["forecast"]["why"]
    for m in (m for x in shown["moments"] for m in x):
        assert m["taught"] == "solution" and "feedback" not in m["teachers"]
        assert {"none", "answer", "sibling", "other_problem", "wrong"} < m["teachers"].keys()
        assert "Each box holds" in m["teachers"]["solution"]["sees"]
        assert len(m["tokens"]) == len(m["student"]["p"]) == len(m["teachers"]["answer"]["kl"]) <= 8
        assert "content" not in m["teachers"]["solution"]


@pytest.mark.parametrize("method, flags", [
    ("grpo", {}),
    ("sdft", {"reward": "boxed", "dtype": "bfloat16"}),
    ("sft", {"warm_start_steps": 1}),
    ("gkd", {"external_teacher": "adapted", "context": "answer", "adapt_steps": 1}),
], ids=str)
def test_other_methods_run_on_a_checkpoint(method, flags, checkpoint, folder, capsys):
    """Catches a method that needs something that only the toy has."""
    run(folder, checkpoint, method=method, **flags)
    assert {p.name for p in folder.iterdir()} == FILES
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    assert str(theirs.dtype) == f"torch.{flags.get('dtype', 'float32')}"


def test_a_teacher_is_the_checkpoint_of_another_run(checkpoint, folder, tmp_path, capsys):
    """Catches an external teacher that is the student's own start, or that is trained as well."""
    other = tmp_path / "other"
    run(other, checkpoint, method="sdpo", seed=1, eval_every=4, steps=4)
    teacher = other / "checkpoint"
    saved = weights(teacher)
    flags = {"method": "opd", "external_teacher": teacher, "divergence": "reverse_kl",
             "credit": "token", "steps": 12, "eval_every": 12, "learning_rate": 1e-2}
    run(folder, checkpoint, **flags)
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in rows if row["kind"] == "step"]
    assert losses[0] > 0.005 and losses[-1] < 0.7 * losses[0]
    assert torch.equal(weights(teacher), saved)
    with pytest.raises(ValueError, match=r"--external_teacher: .*; allowed: one of"):
        run(tmp_path / "third", checkpoint, **flags | {"external_teacher": toy_words(tmp_path)})


def toy_words(tmp_path: Path) -> Path:
    """A checkpoint of another vocabulary, with the toy's words as a tokenizer of transformers."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = {word: i for i, word in enumerate(toy_tasks.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=toy_tasks.PAD))
    pattern = toy_tasks.TOKEN_PATTERN.pattern.replace(r"\ ", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=toy_tasks.PAD, eos_token=toy_tasks.END)
    ids = {"eos_token_id": toy_tasks.END_ID, "pad_token_id": toy_tasks.PAD_ID}
    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=len(words), **QWEN3, **ids)
    config.initializer_range = 0.1
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "toy")
    fast.save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


def test_a_resumed_checkpoint_is_the_uninterrupted_one(
    checkpoint, folder, tmp_path, monkeypatch, capsys
):
    """Catches a resume that starts from --init, or cannot rebuild what the toy lacks."""
    flags = {"method": "sdpo_grpo", "kl_coef": 0.1, "steps": 3, "save_every": 2, "eval_every": 3}
    expected = run(tmp_path / "whole", checkpoint, **flags)
    step, calls = minisd.step, itertools.count(1)

    def fails_at_the_end(*arguments, **options):
        if next(calls) == 3:
            raise InterruptedError
        return step(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(minisd, "step", fails_at_the_end)
        with pytest.raises(OSError, match="to go on"):
            run(folder, checkpoint, **flags)
    train_gpt.main(["--resume", str(folder)])
    found = json.loads((folder / "summary.json").read_text())
    for part in ("after", "before", "samples", "teacher_accuracy_frac"):
        assert found[part] == expected[part]
    assert torch.equal(weights(folder / "checkpoint"), weights(tmp_path / "whole" / "checkpoint"))


@pytest.mark.slow
def test_a_model_pretrained_by_transformers_answers_there_as_here(tmp_path):
    """Catches weights that are changed on the way in or out, and training that does not save."""
    start = toy_words(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(start)
    task = ToyTask(World(operators="+", max_operations=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = base.pretrain_batches(toy_tasks.draw_document, task.world, random.Random(0))
    for rows in itertools.islice(batches, 40):
        labels = rows.masked_fill(rows == toy_tasks.PAD_ID, -100)
        model(rows, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(start)
    student, tokenizer = hf.load(start)
    for i in range(5):  # the tokenizer is the toy's
        text = "".join(toy_tasks.draw_document(random.Random(i), task.world))
        assert tokenizer.encode(text) == toy_tasks.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    method, rng, generator = METHODS["sdpo"], random.Random(0), torch.Generator().manual_seed(0)
    teacher, sizes = Teacher(method, student), Sizes(4, 4, 24)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for _ in range(3):
        batch = minisd.rollout(method, task, student, teacher, rng, generator, sizes)
        minisd.step(method, student, teacher, optimizer, batch)
    hf.save(student, tokenizer, tmp_path / "saved")
    rows = [task.prompt_ids(task.draw("fresh", rng)) for _ in range(6)]
    prompts = Prompts.of(rows, task.pad_id)
    ours = minisd.sample([(1.0, student, prompts)], max_new_tokens=24, end_ids=task.end_ids,
                         pad_id=task.pad_id, temperature=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    attention = (torch.arange(prompts.ids.shape[1]) >= prompts.pad_count[:, None]).long()
    generated = theirs.generate(prompts.ids, attention_mask=attention, max_new_tokens=24,
                                do_sample=False, use_cache=True)[:, prompts.ids.shape[1]:]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in generated.tolist()]
    assert texts == [task.decode(row) for row in ours.ids.tolist()]
    assert any(text.startswith((toy_tasks.MARKER, toy_tasks.ANSWER)) for text in texts)
    assert (weights(start) - weights(tmp_path / "saved")).abs().max() > 1e-4


# Options ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(checkpoint, tmp_path_factory) -> torch.Tensor:
    """The weights that a run without further flags leaves."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curves", lambda path, *_: path.touch())
        run(folder, checkpoint, learning_rate=1e-3)
    return weights(folder / "checkpoint")


@pytest.mark.parametrize("change, same_weights", [
    ({"dtype": "bfloat16"}, False),
    ({"train_problems": 1}, False),
    ({"context": "answer"}, False),
    ({"micro_batch": 0, "chunk_tokens": 0}, True),
    ({"activation_checkpointing": True}, True),
], ids=str)
def test_options_of_checkpoints_change_what_they_should(
    change, same_weights, plain, checkpoint, folder, capsys
):
    """Catches a flag that is declared and never used, and one that buys memory with accuracy."""
    run(folder, checkpoint, **{"learning_rate": 1e-3} | change)
    difference = (weights(folder / "checkpoint") - plain).abs().mean().item()
    # Adam turns the rounding of a gradient near 0 into a step; such weights are few.
    assert difference < 1e-5 if same_weights else difference > 2e-5


def test_small_steps_and_the_cache_in_bfloat16(checkpoint, folder, monkeypatch, capsys):
    """Catches weights or an EMA in bfloat16, where an update of 1e-6 rounds to nothing.

    And keys and values in float32, which take twice the memory of all else in sampling.
    """
    seen, states, append, step = set(), [], minisd.KVCache.append, minisd.step

    def spy(cache, *arguments):
        seen.add(cache.keys.dtype)
        return append(cache, *arguments)

    def keep(method, student, teacher, *rest, **options):
        states.append((student, teacher, weights_of_mlp(student)))
        return step(method, student, teacher, *rest, **options)

    monkeypatch.setattr(minisd.KVCache, "append", spy)
    monkeypatch.setattr(minisd, "step", keep)
    run(folder, checkpoint, dtype="bfloat16", learning_rate=1e-6, teacher_update_rate=0.5)
    assert seen == {torch.bfloat16}
    student, teacher, before = states[0]
    for model in (student, teacher.copies["ema"]):
        assert (weights_of_mlp(model) != before).float().mean() > 0.5


def weights_of_mlp(model) -> torch.Tensor:
    """A copy of one matrix; those of a student are in bfloat16 when it has been saved."""
    return model.layers[0].mlp.down_proj.weight.detach().clone()


def test_a_run_stops_at_every_end_token_of_the_checkpoint(
    checkpoint, folder, tmp_path, monkeypatch, capsys
):
    """Catches end tokens that are read and then not passed on to the sampling."""
    init, stops = tmp_path / "init", set()
    shutil.copytree(checkpoint["init"], init)
    path = init / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 5]}))

    def spy(*arguments, end_ids, **options):
        stops.add(end_ids)
        return sample(*arguments, end_ids=end_ids, **options)

    sample = minisd.sample
    for module in (minisd, evaluation):
        monkeypatch.setattr(module, "sample", spy)
    run(folder, checkpoint | {"init": str(init)})
    assert stops == {(2, 5)}


# Bad input ----------------------------------------------------------------------------------------


def break_checkpoint(good: str, folder: Path) -> None:
    """A copy of a checkpoint with the damage that its name says."""
    shutil.copytree(good, folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    if folder.name == "truncated":  # a download that broke off
        path.write_bytes(content[:-100])
    else:  # more tokens than rows of the embedding
        tokenizer = make_tokenizer()
        tokenizer.add_tokens(["one", "two", "three", "four"])
        tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("flags, said", [
    ({"init": None}, "--data: 'DATA'; allowed: only with --init"),
    ({"data": None}, "--init: 'INIT'; allowed: only with --data"),
    ({"data": "missing.jsonl"}, "--data: 'missing.jsonl'; allowed: a JSONL file"),
    ({"init": "empty"}, "config.json"),
    ({"micro_batch": "-1"}, "--micro_batch: -1; allowed: 0"),
    ({"world": "persona_rate=0"}, "--init: with flags of the toy; allowed: without them"),
    ({"rules": "3"}, "--init: with flags of the toy"),
    ({"method": "opd"}, "--external_teacher: 'larger'; allowed: adapted, or a checkpoint"),
    ({"method": "opd", "external_teacher": "empty"}, "config.json"),
    ({"context": "rule"}, "--context: 'rule'; DATA line 1 has no rule (and 19 more); allowed"),
    ({"context": "feedback"}, "allowed with these data: none, partial, answer, solution, sibling"),
    ({"init": "DATA"}, "--init: 'DATA'; allowed: a checkpoint's folder"),
    ({"method": "opd", "external_teacher": "DATA"}, "DATA: a file; allowed: a checkpoint's folder"),
    ({"context": "nothing"}, "--context: 'nothing'; allowed: none, partial, "),
    ({"max_new_tokens": "390"}, "allowed: 400, its context window"),
    ({"data": "short.jsonl"}, ": none of the 1 problems"),
    ({"data": "broken.jsonl"}, "broken.jsonl line 2: not JSON"),
    ({"data": "lacks.jsonl"}, "lacks.jsonl line 2: lacks the field 'answer'"),
    ({"data": "nothing.jsonl"}, "nothing.jsonl: no examples"),
    ({"data": "long.jsonl"}, "allowed: 400, its context window"),
    ({"data": "wordy.jsonl"}, "the answer 'many' has no number"),
    ({"init": "truncated"}, "model.safetensors: not a complete safetensors file"),
    ({"init": "wordy"}, "allowed: below vocab_size"),
], ids=str)
def test_bad_input_is_one_line_and_leaves_nothing(
    flags, said, checkpoint, tmp_path, capsys, monkeypatch
):
    """Catches a traceback, a failure only after minutes, and a folder that blocks the next try."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    long = {"prompt": "a b " * 300, "answer": "1", "solution": "1"}
    for name, rows in {
        "short": problems(1), "lacks": [problems(1)[0], {"prompt": "1+1"}],
        "long": [long, *problems()], "wordy": [{"prompt": "How?", "answer": "many"}, *problems()],
    }.items():
        write_lines(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "broken.jsonl").write_text(json.dumps(problems(1)[0]) + "\n{\n")
    (tmp_path / "nothing.jsonl").write_text("\n")
    if flags.get("init") in ("truncated", "wordy"):
        break_checkpoint(checkpoint["init"], tmp_path / flags["init"])
    before = set(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError)) as error:
        flags = {k: v and v.replace("DATA", checkpoint["data"]) for k, v in flags.items()}
        train_gpt.main(words(**{"max_new_tokens": "8", "device": "cpu"} | checkpoint | flags))
    message = " ".join(str(error.value).split())
    said = said.replace("DATA", checkpoint["data"]).replace("INIT", checkpoint["init"])
    assert said in message and message == str(error.value)
    assert set(tmp_path.rglob("*")) - {tmp_path / "out"} == before


def test_a_disk_that_fills_up_while_saving_is_one_line(checkpoint, folder, monkeypatch, capsys):
    """Catches a traceback at the end of a run, half a checkpoint, and a scratch folder left."""

    def full(model, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(OSError) as error:
        run(folder, checkpoint, steps=1, save_every=0)
    message = str(error.value)
    assert "checkpoint: not saved, nothing there was changed" in message and "\n" not in message
    assert "No space left" in message and "to go on: " in message
    assert {p.name for p in folder.iterdir()} == {"config.json", "metrics.jsonl"}
