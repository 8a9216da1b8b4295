"""From a checkpoint and a JSONL file to a trained checkpoint, and the options that make it fit."""

import dataclasses
import errno
import json
import random
import shutil

import pytest
import torch

import minisd
import toy_tasks
import train_gpt
from minisd import GPT, GPTConfig, Teacher
from toy_tasks import TextExample, TextTask, ToyTask, World
from train_gpt import method_config

transformers = pytest.importorskip("transformers")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 400},
    **{"tie_word_embeddings": True, "bos_token_id": None},
}


def lines(count: int = 24) -> list[dict]:
    """Problems in GSM8K's form, with dollars that a plot would read as broken mathematics."""
    rng, rows = random.Random(0), []
    for _ in range(count):
        a, b = rng.randint(2, 90), rng.randint(2, 9)
        question = f"A box of {a} pens costs $12, \\cheap, not $15. How many pens are in {b} boxes?"
        solution = f"Each box holds {a} pens.\nSo there are {b}*{a} = <<{b}*{a}={a * b}>>{a * b}."
        rows.append({"question": question, "answer": f"{solution}\n#### {a * b}"})
    return rows


def write_lines(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text_tokenizer():
    """Byte-level BPE with a chat template, trained on the problems."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{x['question']}\n{x['answer']}" for x in lines()), trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer) -> tuple[str, str]:
    """Folder of a random tiny Qwen3 with its tokenizer, and a data file."""
    folder = tmp_path_factory.mktemp("text")
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=len(tokenizer) + 3, **QWEN3, **ids)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model"), write_lines(folder / "data.jsonl", lines())


def text_config(checkpoint, tmp_path, method="sdpo", **flags):
    """A run of a moment."""
    init, data = checkpoint
    small = {"steps": 2, "batch_size": 8, "group_size": 4, "max_new_tokens": 12}
    small |= {"eval_problems": 3, "eval_every": 2, "micro_batch": 3, "chunk_tokens": 16}
    small |= {"learning_rate": 1e-2, "out_dir": str(tmp_path / "run"), "threads": 1}
    return method_config({"method": method, "init": init, "data": data} | small | flags)


def coin_grade(text, example):
    """A reward that differs within groups, so that the policy gradient is not zero."""
    return toy_tasks.Grade(float(sum(map(ord, text)) % 2), 0, False, False)


# Micro-batches ------------------------------------------------------------------------------------


def toy_batch(config):
    """A student, its teacher and a collected batch of the toy, in float64 for exact sums."""
    shape = GPTConfig(vocab_size=len(toy_tasks.VOCABULARY), width=32, head_dim=8, mlp_width=40)
    student = GPT(shape, torch.Generator().manual_seed(0)).double()
    teacher, task = Teacher("frozen", student), ToyTask(World(), pool_size=8)
    task.grade = coin_grade
    with torch.no_grad():
        student.head.weight.mul_(20)  # away from the teacher, and far from uniform
    batch = train_gpt.collect(
        *(config, task, student, teacher, random.Random(0), torch.Generator().manual_seed(0)),
        groups=config.batch_size // config.group_size,
    )
    batch.completions.token_log_probs = batch.completions.token_log_probs.double()
    lengths = batch.completions.mask.sum(1)
    assert lengths.min() < lengths.max()  # else all reductions are the same
    return student, teacher, batch


def gradient(config, student, teacher, batch) -> torch.Tensor:
    """The gradient that `backward` leaves, as one vector, and the loss as its last entry."""
    student.zero_grad(set_to_none=True)
    reference = Teacher("frozen", student).model
    loss, _ = train_gpt.backward(config, student, teacher, reference, batch)
    return torch.cat([*(p.grad.flatten() for p in student.parameters()), loss[None]])


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize(
    "method, flags",
    [
        ("sdpo", {}),
        ("sdpo", {"only_correct": True}),
        ("sequence_kl", {"importance_cap": 2.0}),
        ("grpo", {}),
        ("sdpo_grpo", {}),
    ],
    ids=str,
)
def test_micro_batches_give_the_gradient_of_the_whole_batch(method, flags, reduction):
    """Catches means over the micro-batch, and advantages of a group that is cut in two."""
    flags = {"method": method, "batch_size": 12, "group_size": 4, "reduction": reduction} | flags
    config = method_config({"max_new_tokens": 20, **flags})
    student, teacher, batch = toy_batch(config)
    whole = gradient(config, student, teacher, batch)
    assert whole[:-1].abs().max() > 1e-4
    # What autograd says of the loss that existed before any micro-batch.
    loss, _ = train_gpt.batch_loss(
        config, student, teacher, Teacher("frozen", student).model, batch
    )
    plain = torch.autograd.grad(loss, list(student.parameters()))
    plain = torch.cat([*(g.flatten() for g in plain), loss.detach()[None]])
    torch.testing.assert_close(whole, plain, rtol=0, atol=0)
    for micro_batch, chunk_tokens in ((1, 0), (5, 0), (5, 7)):  # 5 cuts groups and leaves a rest
        smaller = dataclasses.replace(config, micro_batch=micro_batch, chunk_tokens=chunk_tokens)
        parts = gradient(smaller, student, teacher, batch)
        # Divergences are float64; weights of a mean are float32, so sums differ by their rounding.
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-8)


def test_micro_batches_log_what_the_whole_batch_logs():
    """Catches a reading that is the mean of means, or of the last micro-batch alone."""
    config = method_config({"batch_size": 12, "group_size": 4, "max_new_tokens": 20})
    student, teacher, batch = toy_batch(config)
    readings = []
    for micro_batch in (0, 5):
        smaller = dataclasses.replace(config, micro_batch=micro_batch)
        loss, means = train_gpt.backward(smaller, student, teacher, None, batch)
        readings.append(torch.stack([loss, *means.values()]))
    torch.testing.assert_close(*readings, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["sdpo", "grpo", "sdpo_grpo"])
def test_a_step_that_is_not_logged_learns_the_same(method):
    """Catches a loss that loses a term with the readings, or a teacher run for nothing."""
    config = method_config(
        {"method": method, "batch_size": 12, "group_size": 4, "max_new_tokens": 20}
    )
    student, teacher, batch = toy_batch(config)
    scored = []
    teacher.model.norm.register_forward_hook(lambda *_: scored.append(1))
    results = []
    for logged in (True, False):
        reference = Teacher("frozen", student).model
        loss, means = train_gpt.backward(config, student, teacher, reference, batch, logged=logged)
        results.append([loss, *(p.grad for p in student.parameters())])
        student.zero_grad(set_to_none=True)
    assert means == {}
    assert len(scored) == (1 if method == "grpo" else 2)
    for with_readings, without in zip(*results):
        assert torch.equal(with_readings, without)


@pytest.mark.parametrize(
    ("flags", "used"),
    [
        ({"method": "sdpo"}, {"divergence"}),
        ({"method": "sdpo", "kl_coef": 0.1}, {"divergence", "student_log_probs"}),
        ({"method": "sequence_kl"}, {"divergence", "student_log_probs"}),
        ({"method": "sdpo_grpo"}, {"divergence", "student_log_probs"}),
        ({"method": "grpo"}, {"student_log_probs"}),
        ({"method": "opd"}, {"student_log_probs"}),
        ({"method": "sft"}, {"student_log_probs"}),
    ],
)
def test_only_terms_of_the_loss_have_a_gradient_path(flags, used):
    """Catches an unused term: chunks computed again would keep its logits, all at a time."""
    logits = torch.randn(2, 3, 5, requires_grad=True)
    ids = torch.zeros(2, 3, dtype=torch.long)
    terms = train_gpt.position_terms(method_config(flags), logits, torch.randn(2, 3, 5), ids)
    assert {name for name, value in terms.items() if value.requires_grad} == used


def test_activation_checkpointing_changes_the_memory_and_not_the_gradient():
    """Catches blocks that are computed again with other inputs, or a flag that does nothing."""
    config = method_config({"batch_size": 12, "group_size": 4, "max_new_tokens": 20})
    student, teacher, batch = toy_batch(config)
    results, kept = [], []
    for student.activation_checkpointing in (False, True):
        sizes = []

        def keep(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            student.hidden(batch.prompts.ids)
        kept.append(sum(sizes))
        results.append(gradient(config, student, teacher, batch))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert kept[1] < kept[0] / 4


# The task -----------------------------------------------------------------------------------------


def examples(count: int = 24, **fields) -> list[TextExample]:
    return [
        TextExample(prompt=f"What is {i} + 1?", answer=str(i + 1), **fields) for i in range(count)
    ]


def test_text_splits_share_no_problem_whatever_the_pool(tokenizer):
    """Catches held-out problems that move into training with another pool size or order."""
    tasks = [TextTask(examples(), tokenizer, pool_size=n) for n in (0, 3)]
    tasks.append(TextTask(examples()[::-1] + examples()[:5], tokenizer))
    held_out = [{e.prompt for e in task.pools["fresh"]} for task in tasks]
    assert held_out[0] == held_out[1] == held_out[2]
    for task in tasks:
        assert not held_out[0] & {e.prompt for e in task.pools["train"]}
    assert tasks[1].pools["train"] == tasks[0].pools["train"][:3]
    again = [dataclasses.replace(e, prompt=f" {e.prompt.upper()} ") for e in examples()]
    copies = TextTask(again, tokenizer).pools["fresh"]
    assert {e.prompt.strip().capitalize() for e in copies} == held_out[0]


def test_text_draws_and_evaluations_come_from_their_split(tokenizer):
    """Catches an evaluation on training problems."""
    task, rng = TextTask(examples(), tokenizer), random.Random(0)
    for split in task.splits:
        pool = task.pools[split]
        assert {task.draw(split, rng) for _ in range(300)} == set(pool)
        assert task.evaluation(split, len(pool) + 2, rng) == [*pool, *pool[:2]]


def test_text_prompts_differ_in_the_context_alone(tokenizer):
    """Catches a student's prompt with the solution, and a teacher's in another template."""
    task, rng = TextTask(examples(solution="Add one."), tokenizer), random.Random(0)
    example = task.draw("train", rng)
    context = task.context(example, "solution", rng)
    student, teacher = (
        tokenizer.decode(task.prompt_ids(example, c), skip_special_tokens=False)
        for c in ("", context)
    )
    assert "Add one." in context and "Add one." not in student
    assert teacher.replace(context, "") == student
    assert student.startswith("<|im_start|>user") and teacher.startswith("<|im_start|>user")
    assert task.decode([*task.encode("It is 3."), task.end_id, task.pad_id]) == "It is 3."


@pytest.mark.parametrize("kind", ["wrong", "other_problem"])
def test_other_problems_are_training_problems_with_another_answer(kind, tokenizer):
    """Catches a held-out problem that leaks through the context of a training problem."""
    task, rng = TextTask(examples(solution="Add one."), tokenizer), random.Random(0)
    example = task.pools["train"][0]
    shown = {task.context(example, kind, rng) for _ in range(300)}
    key, before, after = ("answer", " is ", ".")
    if kind == "other_problem":
        key, before, after = ("prompt", "\n", "\n")
    found = {
        e.prompt
        for e in examples()
        if any(f"{before}{getattr(e, key)}{after}" in text for text in shown)
    }
    assert found == {e.prompt for e in task.pools["train"]} - {example.prompt}


@pytest.mark.parametrize("reward", toy_tasks.TEXT_REWARDS)
def test_text_references_score_1_and_garbage_0(reward, tokenizer):
    """Catches data completions that the reward does not recognise, and --reward without effect."""
    task = TextTask(examples(solution="maybe; wait, check"), tokenizer, reward=reward)
    example = task.pools["fresh"][0]
    reference = task.reference(example, random.Random(0))
    grade = task.grade(reference, example)
    assert grade.reward == 1 and grade.markers == (0 if reward == "exact" else 3)
    assert task.grade("nothing", example).reward == 0
    wordy = task.grade(f"It is {example.answer}", example).reward
    assert wordy == (reward == "last_number")


def test_impossible_text_tasks_are_refused(tokenizer):
    """Catches training on rewards that are always 0, and an evaluation on nothing."""
    with pytest.raises(ValueError, match="split fresh: none of the 1 problems"):
        TextTask(TextTask(examples(), tokenizer).pools["train"][:1], tokenizer)
    with pytest.raises(ValueError, match="has no number"):
        TextTask([TextExample("Who?", "Ada"), *examples()], tokenizer)
    with pytest.raises(ValueError, match="can never be 1 for the answer 'b}'"):
        TextTask([TextExample("What?", "b}"), *examples()], tokenizer, reward="boxed")
    unending = text_tokenizer()
    unending.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        TextTask(examples(), unending)


# A whole run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, flags",
    [
        ("sdpo", {"activation_checkpointing": True}),
        ("grpo", {}),
        ("sdft", {"dtype": "bfloat16", "reward": "boxed"}),
    ],
    ids=str,
)
def test_from_jsonl_to_a_checkpoint_that_transformers_loads(
    method, flags, checkpoint, tmp_path, capsys
):
    """Catches any break between data and saved weights; a random model learns nothing here."""
    config = text_config(checkpoint, tmp_path, method, **flags)
    train_gpt.main_run(config)
    out = capsys.readouterr().out
    assert "FAIL" not in out and "checkpoint" in out and "student.pt" not in out
    names = {"config.json", "metrics.jsonl", "curves.png", "checkpoint", "summary.json"}
    assert {p.name for p in (tmp_path / "run").iterdir()} == names
    saved = tmp_path / "run" / "checkpoint"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved)
    assert str(theirs.dtype) == f"torch.{config.dtype}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    ours, _ = minisd.load_hf(saved)
    ids = torch.tensor([tokenizer.encode("How many pens?")])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs.float()(ids).logits, rtol=1e-4, atol=1e-4)
    before, _ = minisd.load_hf(config.init)
    if method == "sdpo":  # rewards are all 0 here, so the others have nothing to learn from
        assert (ours.embedding.weight - before.embedding.weight).abs().max() > 1e-3
    written = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    train_gpt.main_run(config)
    assert "already holds this run" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("method, flags", [("sdpo", {"dtype": "bfloat16"}), ("grpo", {})], ids=str)
def test_a_resumed_checkpoint_is_the_uninterrupted_one(
    method, flags, checkpoint, tmp_path, monkeypatch
):
    """Catches a resume that starts from --init, or cannot rebuild what the toy lacks."""
    evaluate_all, folders = train_gpt.evaluate_all, (tmp_path / "whole", tmp_path / "broken")
    calls, small = [], {"steps": 3, "save_every": 2, "eval_every": 3}

    def fails_at_the_end(*arguments):
        calls.append(None)
        if len(calls) == 6:  # 3 in the whole run; then before everything, at steps 0 and 3
            raise InterruptedError
        return evaluate_all(*arguments)

    monkeypatch.setattr(train_gpt, "evaluate_all", fails_at_the_end)
    monkeypatch.setattr(train_gpt, "draw_curves", lambda path, *_: path.touch())
    whole, broken = (
        text_config(checkpoint, tmp_path, method, out_dir=str(folder), **small, **flags)
        for folder in folders
    )
    expected = train_gpt.run(whole, quiet=True)
    with pytest.raises(InterruptedError):
        train_gpt.run(broken, quiet=True)
    found = train_gpt.run(broken, quiet=True, resume=True)
    for part in ("after", "before", "samples", "teacher_accuracy_frac"):
        assert found[part] == expected[part]
    weights = [(f / "checkpoint" / "model.safetensors").read_bytes() for f in folders]
    assert weights[0] == weights[1]


def toy_tokenizer():
    """The toy's vocabulary as a tokenizer of transformers: its tokens carry their own spaces."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(dict(toy_tasks.TOKEN_ID), unk_token=toy_tasks.PAD))
    tokens = Regex(toy_tasks.TOKEN_PATTERN.pattern.replace(r"\ ", " "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokens, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=toy_tasks.PAD, eos_token=toy_tasks.END
    )


@pytest.fixture(scope="module")
def toy_checkpoint(tmp_path_factory) -> str:
    """A tiny Qwen3 that transformers' own model and a plain loop trained on the toy world."""
    folder = tmp_path_factory.mktemp("toy")
    ids = {"eos_token_id": toy_tasks.END_ID, "pad_token_id": toy_tasks.PAD_ID}
    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=len(toy_tasks.VOCABULARY), **QWEN3, **ids)
    config.initializer_range = 0.1
    model = transformers.Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    world = World(operators="+", max_operations=1)
    batches = train_gpt.pretrain_batches(world, random.Random(0))
    for _ in range(60):
        rows = next(batches)
        labels = rows.masked_fill(rows == toy_tasks.PAD_ID, -100)
        model(rows, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("method", ["sdpo", "grpo"])
def test_a_model_pretrained_by_transformers_answers_there_as_here(method, toy_checkpoint, tmp_path):
    """Catches weights that are changed on the way in or out, and training that does not save."""
    initial, tokenizer = minisd.load_hf(toy_checkpoint)
    student, _ = minisd.load_hf(toy_checkpoint)
    task = ToyTask(World(operators="+", max_operations=1))
    sentences = [
        p + c for p, c in (toy_tasks.draw_document(random.Random(i), task.world) for i in range(5))
    ]
    for text in sentences:  # the tokenizer is the toy's
        assert tokenizer.encode(text) == toy_tasks.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    task.grade = coin_grade
    config = method_config(
        {"method": method, "steps": 4, "batch_size": 32, "max_new_tokens": 24, "micro_batch": 8}
    )
    train_gpt.post_train(config, task, student, Teacher(config.teacher, student, update_rate=0.01))
    minisd.save_hf(student, tokenizer, tmp_path / "saved")

    def answers(model) -> list[list[int]]:
        rng = random.Random(1)
        rows = [task.prompt_ids(task.draw("fresh", rng)) for _ in range(6)]
        ids, padding = minisd.pad_left(rows, task.pad_id)
        written = minisd.sample(
            *(model, ids, padding),
            **{"max_new_tokens": 24, "end_id": task.end_id, "pad_id": task.pad_id},
            temperature=0,
        )
        return [r[m].tolist() for r, m in zip(written.ids, written.mask)], ids, padding

    ours, ids, padding = answers(student)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    attention = (torch.arange(ids.shape[1]) >= padding[:, None]).long()
    generated = theirs.generate(
        ids, attention_mask=attention, max_new_tokens=24, do_sample=False, use_cache=True
    )[:, ids.shape[1] :]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in generated.tolist()]
    assert texts == [task.decode(row) for row in ours]
    assert any(
        text.startswith((toy_tasks.MARKER, toy_tasks.ANSWER)) for text in texts
    )  # pretrained
    start, trained = ((tuple(p.flatten() for p in m.parameters())) for m in (initial, student))
    assert (torch.cat(start) - torch.cat(trained)).abs().max() > 1e-4


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, same_weights",
    [
        ({"dtype": "bfloat16"}, False),
        ({"train_problems": 1}, False),
        ({"context": "answer"}, False),
        ({"micro_batch": 0}, True),
        ({"chunk_tokens": 0}, True),
        ({"activation_checkpointing": True}, True),
    ],
    ids=str,
)
def test_options_of_checkpoints_change_what_they_should(change, same_weights, checkpoint, tmp_path):
    """Catches a flag that is declared and never used, and one that buys memory with accuracy."""
    weights = []
    for flags in ({}, change):
        config = text_config(checkpoint, tmp_path, learning_rate=1e-3, **flags)
        student, tokenizer, _ = train_gpt.initial_model(config)
        assert student.activation_checkpointing == config.activation_checkpointing
        task = train_gpt.make_task(config, tokenizer)
        train_gpt.post_train(config, task, student, train_gpt.make_teacher(config, task, student))
        assert all(p.dtype == torch.float32 for p in student.parameters())
        weights.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    difference = (weights[0] - weights[1]).abs().mean().item()
    # Adam turns the rounding of a gradient near 0 into a step; such weights are few.
    assert difference < 1e-5 if same_weights else difference > 2e-5


def test_small_steps_are_not_lost_in_bfloat16(checkpoint, tmp_path):
    """Catches weights or an EMA in bfloat16, where an update of 1e-6 rounds to nothing."""
    config = text_config(checkpoint, tmp_path, dtype="bfloat16", learning_rate=1e-6)
    student, tokenizer, _ = train_gpt.initial_model(config)
    before = student.blocks[0].mlp.down.weight.detach().clone()
    task = train_gpt.make_task(config, tokenizer)
    teacher = train_gpt.make_teacher(config, task, student)
    train_gpt.post_train(config, task, student, teacher)
    for model in (student, teacher.model):
        assert ((model.blocks[0].mlp.down.weight - before) != 0).float().mean() > 0.5


def test_the_cache_is_in_bfloat16_with_the_computation(checkpoint, tmp_path, monkeypatch):
    """Catches keys and values in float32, which take twice the memory of all else in sampling."""
    config = text_config(checkpoint, tmp_path, dtype="bfloat16", eval_problems=2)
    student, tokenizer, _ = train_gpt.initial_model(config)
    seen, append = [], minisd.KVCache.append

    def spy(cache, *arguments):
        seen.append(cache.keys.dtype)
        return append(cache, *arguments)

    monkeypatch.setattr(minisd.KVCache, "append", spy)
    train_gpt.evaluate(config, train_gpt.make_task(config, tokenizer), student, "fresh")
    assert set(seen) == {torch.bfloat16}


def test_a_run_stops_at_every_end_token_of_the_checkpoint(checkpoint, tmp_path, monkeypatch):
    """Catches end tokens that are read and then not passed on to the sampling."""
    config, stops, sample = text_config(checkpoint, tmp_path), [], minisd.sample
    folder = tmp_path / "init"
    shutil.copytree(config.init, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 5]}))

    def spy(*arguments, **options):
        stops.append(options["end_id"])
        return sample(*arguments, **options)

    monkeypatch.setattr(minisd, "sample", spy)
    train_gpt.run(dataclasses.replace(config, init=str(folder)), quiet=True)
    assert set(stops) == {(2, 5)}


def test_a_policy_gradient_holds_no_second_model(checkpoint, tmp_path):
    """Catches a copy of the weights for a teacher that the loss does not use."""
    config = text_config(checkpoint, tmp_path, "dapo")
    student, tokenizer, _ = train_gpt.initial_model(config)
    teacher = train_gpt.make_teacher(config, train_gpt.make_task(config, tokenizer), student)
    assert teacher.model is student and config.context == "none"
    assert method_config({"method": "grpo"}).context == "solution"  # the toy is as it was


# Bad input ----------------------------------------------------------------------------------------


def break_checkpoint(good: str, folder) -> None:
    """A copy of a checkpoint with the damage that its name says."""
    shutil.copytree(good, folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    if folder.name == "truncated":  # a download that broke off
        weights.write_bytes(content[:-100])
    elif folder.name == "flipped":  # a bit of the header's length
        weights.write_bytes(bytes([content[0] ^ 4]) + content[1:])
    else:  # more tokens than rows of the embedding
        tokenizer = text_tokenizer()
        tokenizer.add_tokens(["one", "two", "three", "four"])
        tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"init": None}, "--data: 'DATA'; allowed: only with --init"),
        ({"data": None}, "--init: 'INIT'; allowed: only with --data"),
        ({"data": "missing.jsonl"}, "--data: 'missing.jsonl'; allowed: a JSONL file"),
        ({"init": "empty"}, "config.json"),
        ({"reward": "number"}, "--reward: 'number'; allowed: last_number, boxed, exact"),
        ({"dtype": "float16"}, "--dtype: 'float16'; allowed: float32, bfloat16"),
        ({"micro_batch": "-1"}, "--micro_batch: -1; allowed: 0 or more"),
        ({"chunk_tokens": "-1"}, "--chunk_tokens: -1; allowed: 0 or more"),
        ({"world": "persona_rate=0"}, "--world: 'persona_rate=0'; allowed: unset with --init"),
        ({"rules": "3"}, "--rules: '3'; allowed: unset with --init"),
        ({"method": "opd"}, "--external_teacher: 'larger'; allowed: adapted, or a checkpoint"),
        ({"context": "rule"}, "context rule: 'A box of"),
        ({"context": "feedback"}, "has no feedback"),
        ({"max_new_tokens": "390"}, "allowed: 400, the model's context window"),
        ({"data": "short.jsonl"}, ": none of the 1 problems"),
        ({"data": "broken.jsonl"}, "broken.jsonl line 2: not JSON"),
        ({"data": "lacks.jsonl"}, "lacks.jsonl line 2: lacks the field 'answer'"),
        ({"data": "nothing.jsonl"}, "nothing.jsonl: no examples"),
        ({"data": "long.jsonl"}, "allowed: 400, the model's context window"),
        ({"init": "truncated"}, "model.safetensors: not a complete safetensors file"),
        ({"init": "flipped"}, "model.safetensors: not a complete safetensors file"),
        ({"init": "wordy"}, "allowed: below vocab_size"),
        ({"compare": "sdpo"}, "--compare: not with --init or --data"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(
    flags, words, checkpoint, tmp_path, capsys, monkeypatch
):
    """Catches a traceback, a failure only after minutes, and a folder that blocks the next try."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_lines(tmp_path / "short.jsonl", lines(1))
    (tmp_path / "broken.jsonl").write_text(json.dumps(lines(1)[0]) + "\n{\n")
    write_lines(tmp_path / "lacks.jsonl", [lines(1)[0], {"prompt": "1+1"}])
    (tmp_path / "nothing.jsonl").write_text("\n")
    write_lines(
        tmp_path / "long.jsonl",
        [{"prompt": "a b " * 300, "answer": "1", "solution": "1"}, *lines()],
    )
    if flags.get("init") in ("truncated", "flipped", "wordy"):
        break_checkpoint(checkpoint[0], tmp_path / flags["init"])
    before = set(tmp_path.iterdir())
    given = {"init": checkpoint[0], "data": checkpoint[1], "max_new_tokens": "8"} | flags
    arguments = [x for k, v in given.items() if v is not None for x in (f"--{k}", v)]
    with pytest.raises(SystemExit) as stop:
        train_gpt.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    words = words.replace("DATA", checkpoint[1]).replace("INIT", checkpoint[0])
    assert words in error and set(tmp_path.iterdir()) == before


def test_a_disk_that_fills_up_while_saving_is_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    """Catches a traceback at the end of a run, half a checkpoint, and a scratch folder left."""

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    config = dataclasses.asdict(text_config(checkpoint, tmp_path, steps=1))
    arguments = [f"--{k}={v}" for k, v in config.items() if not isinstance(v, bool)]
    with pytest.raises(SystemExit) as stop:
        train_gpt.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "checkpoint: not saved, nothing there was changed" in error and "No space left" in error
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.json", "metrics.jsonl"}
