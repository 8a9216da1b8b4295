"""Laws of the command line, of a run's files, and of every row of the method table."""

import dataclasses
import json
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

import minisd
import toy_tasks
import train_gpt
from minisd import GPT, GPTConfig, Teacher
from train_gpt import METHODS, TrainConfig, method_config

ROOT = Path(__file__).parent.parent
# A world that is learned in seconds: one or two sums.
EASY_WORLD = "operators=+,max_operations=2,direct_slope=0.5"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> str:
    """Base models are pretrained once for all tests."""
    return str(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """A picture takes longer than a tiny run; that of the command line is a real one."""
    monkeypatch.setattr(train_gpt, "draw_curves", lambda path, *_: path.touch())


def easy_config(cache_dir, method="sdpo", **flags) -> TrainConfig:
    """A run of seconds on a base model that has learned the easy world."""
    flags = {"steps": 12, "batch_size": 64, "eval_problems": 32, "eval_every": 12} | flags
    flags = {
        "max_new_tokens": 24,
        "pretrain_steps": 100,
        "adapt_steps": 10,
        "learning_rate": 1e-3,
    } | flags
    if METHODS[method].settings.get("warm_start_steps"):
        flags = {"warm_start_steps": 5} | flags
    shared = {"method": method, "world": EASY_WORLD, "cache_dir": cache_dir, "train_problems": 16}
    return method_config(shared | flags)


def quick_config(cache_dir, tmp_path, method="sdpo", **flags) -> TrainConfig:
    """A run of a moment on a base model that has learned nothing: for everything but learning."""
    flags = {"steps": 2, "batch_size": 8, "group_size": 4, "max_new_tokens": 12} | flags
    flags = {"pretrain_steps": 2, "eval_problems": 6, "eval_every": 2} | flags
    return easy_config(cache_dir, method, **{"out_dir": str(tmp_path / "run"), **flags})


def read_metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Learning -----------------------------------------------------------------------------------------

CHANGES = {  # method: what must rise on the training problems, and by how much at least
    **dict.fromkeys(("sft", "seq_kd", "opsd", "sdpo", "sdft"), ("direct_frac", 0.15)),
    **dict.fromkeys(("sequence_kl", "rlvr_teacher", "sft_then_sdpo"), ("direct_frac", 0.15)),
    **dict.fromkeys(("grpo", "dr_grpo", "dapo", "sdpo_grpo"), ("accuracy_frac", 0.05)),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", CHANGES)
def test_every_method_changes_what_it_should(method, cache_dir, tmp_path):
    """Catches a row of the table whose settings do not reach the loss, or push the wrong way."""
    config = easy_config(cache_dir, method, out_dir=str(tmp_path / "run"))
    summary = train_gpt.run(config, quiet=True)
    measure, margin = CHANGES[method]
    change = summary["after"]["train"][measure] - summary["before"]["train"][measure]
    assert change > margin, summary


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gkd", "opd"])
def test_a_larger_teacher_is_approached(method, cache_dir):
    """Catches distillation that does not see the larger teacher, or moves away from it."""
    config = easy_config(cache_dir, method, steps=20, pretrain_steps=30)
    student, _ = train_gpt.base_model(config)
    task = train_gpt.make_task(config)
    teacher = train_gpt.make_teacher(config, task, student)
    fixed = easy_config(cache_dir, "gkd", student_frac=0.0, batch_size=512, loss="forward_kl")
    rng, generator = random.Random(0), torch.Generator()
    batch = train_gpt.collect(*(fixed, task, student, teacher, rng, generator), groups=64)
    before, _ = train_gpt.batch_loss(fixed, student, teacher, None, batch)
    train_gpt.post_train(config, task, student, teacher)
    after, _ = train_gpt.batch_loss(fixed, student, teacher, None, batch)
    assert after.item() < 0.9 * before.item()


@pytest.mark.slow
def test_a_teacher_adapted_by_reward_beats_the_unadapted_one(cache_dir, tmp_path):
    """Catches an adaptation that does not show the context to the model, or trains another copy."""
    config = easy_config(
        *(cache_dir, "rlvr_teacher"),
        **{"context": "answer", "steps": 1, "out_dir": str(tmp_path / "run")},
    )
    accuracy = train_gpt.run(config, quiet=True)["teacher_accuracy_frac"]
    assert accuracy["before"] > accuracy["unadapted"] + 0.01, accuracy


# One batch ----------------------------------------------------------------------------------------


def rollouts(config, **options):
    """A task, a student and one collected batch."""
    student, _ = train_gpt.base_model(config)
    task, teacher = train_gpt.make_task(config), Teacher("frozen", student)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    groups = config.batch_size // config.group_size
    batch = train_gpt.collect(
        *(config, task, student, teacher, rng, generator), groups=groups, **options
    )
    return task, student, teacher, batch


@pytest.mark.parametrize("context", [c for c in toy_tasks.CONTEXTS if c != "none"])
def test_no_privileged_token_is_ever_in_a_student_prompt(context, cache_dir, tmp_path):
    """Catches the leak of a hint to the student, under which every method looks wonderful."""
    rules = {"rules": "3"} if context == "rule" else {}
    config = quick_config(cache_dir, tmp_path, context=context, **rules)
    task, _, _, batch = rollouts(config)
    for ids, hinted, example in zip(
        batch.prompts.ids.tolist(), batch.teacher_prompts.ids.tolist(), batch.examples
    ):
        assert task.decode(ids) == example.prompt
        assert task.decode(hinted).endswith(example.prompt)


def test_a_sibling_is_another_successful_completion_of_the_group():
    """Catches a completion that is shown to itself, or one from another problem's group."""
    grades = [toy_tasks.Grade(r, 0, False, False) for r in (1, 0, 1, 0, 1, 0, 0, 0)]
    texts = list("abcdefgh")
    for seed in range(20):
        siblings = train_gpt.pick_siblings(texts, grades, 4, random.Random(seed))
        assert siblings[0] == "c" and siblings[2] == "a"
        assert siblings[1] in "ac" and siblings[3] in "ac"
        assert siblings[4:] == [None, "e", "e", "e"]


def test_completions_without_a_context_are_left_out_of_the_loss(cache_dir, tmp_path):
    """Catches distillation from a teacher that sees nothing when a group has no success."""
    config = quick_config(cache_dir, tmp_path, "sdft")
    task, student, teacher, batch = rollouts(config)
    batch.has_context[:] = False
    loss, _ = train_gpt.batch_loss(config, student, teacher, None, batch)
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in student.parameters() if p.grad is not None)


def test_resampling_replaces_groups_with_equal_rewards_and_counts_them(cache_dir, tmp_path):
    """Catches rows of prompts, texts and completions that no longer belong together after it."""
    config = quick_config(cache_dir, tmp_path, "dapo", batch_size=24, resample=2)
    task, _, _, batch = rollouts(config, resample=2)
    assert len(batch.texts) == len(batch.examples) == len(batch.rewards) == 24
    for i, example in enumerate(batch.examples):
        assert task.decode(batch.prompts.ids[i].tolist()) == example.prompt
        assert task.decode(batch.completions.ids[i].tolist()) == batch.texts[i]
        assert task.grade(batch.texts[i], example).reward == batch.rewards[i]
    assert batch.equal_groups == 1.0  # an untrained model never answers


def test_mixed_sampling_takes_the_stated_share_from_the_data(cache_dir, tmp_path):
    """Catches a fraction that counts completions of the wrong author."""
    config = quick_config(cache_dir, tmp_path, "gkd", batch_size=16, student_frac=0.25)
    _, _, _, batch = rollouts(config)
    assert (batch.rewards[4:] == 1).all() and len(batch.rewards) == 16  # references are right


@pytest.mark.parametrize("loss", train_gpt.LOSSES)
def test_every_loss_gives_the_student_a_gradient_and_the_teacher_none(loss, cache_dir, tmp_path):
    """Catches a --loss that is not wired, and a teacher that is trained with the student."""
    method = "seq_kd" if loss == "imitation" else "sdpo"
    config = quick_config(cache_dir, tmp_path, method, loss=loss, top_k=3)
    _, student, teacher, batch = rollouts(config)
    loss_value, _ = train_gpt.batch_loss(config, student, teacher, None, batch)
    loss_value.backward()
    assert any(p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(p.grad is None for p in teacher.model.parameters())


OPTION_EFFECTS = [
    ("sdpo", {"loss": "jensen_shannon"}, {"teacher_weight": 0.2}),
    ("sdpo", {"loss": "clipped_forward_kl"}, {"clip": 0.001}),
    ("sdpo", {"loss": "top_k_reverse_kl"}, {"top_k": 2}),
    ("sdpo", {"loss": "top_k_reverse_kl", "top_k": 2}, {"top_k_support": "teacher"}),
    ("sdpo", {"loss": "top_k_reverse_kl", "top_k": 2}, {"top_k_tail": "naive"}),
    ("sequence_kl", {}, {"discount": 0.0}),
    ("sdpo", {}, {"reduction": "sequence_mean"}),
    ("sdpo", {}, {"reward_weight": 0.5}),
    ("sdpo", {"temperature": 2.0}, {"importance_cap": 0.5}),
    ("grpo", {}, {"advantage": "mean"}),
    ("grpo", {"updates_per_batch": 3, "learning_rate": 0.1}, {"clip_low": 0.9, "clip_high": 0.9}),
    ("grpo", {"learning_rate": 0.1}, {"kl_coef": 5.0}),
    ("sdpo", {}, {"updates_per_batch": 2}),
    ("sdpo", {}, {"grad_clip": 1e-6}),
    ("sdpo", {}, {"teacher_update_rate": 0.9}),
    ("sdpo", {}, {"teacher": "live"}),
    ("sdpo", {"teacher_update_rate": 0.5}, {"teacher": "trust_region"}),
    ("sdpo", {"teacher": "snapshot"}, {"teacher_every": 1}),
    ("sdpo", {}, {"context": "partial"}),
    ("sdpo", {"context": "rule", "rules": "3"}, {"rules": "2,7"}),
    ("gkd", {}, {"off_policy": "teacher"}),
    ("gkd", {}, {"student_frac": 0.0}),
    ("sft", {}, {"only_correct": False}),
    ("rlvr_teacher", {}, {"adapt_steps": 1}),
    ("rlvr_teacher", {}, {"external_teacher": "larger"}),
    ("sft_then_sdpo", {}, {"warm_start_steps": 1}),
    ("sdpo", {"world": "max_operations=2"}, {"train_operators": "+"}),
    ("sdpo", {}, {"train_problems": 0}),
    ("sdpo", {}, {"seed": 5}),
    ("sdpo", {}, {"group_size": 2}),
    ("sdpo", {}, {"temperature": 0.5}),
    ("sdpo", {}, {"max_new_tokens": 3}),
    ("sdpo", {}, {"pretrain_steps": 3}),
    ("sdpo", {}, {"world": EASY_WORLD + ",persona_rate=1"}),
]


@pytest.mark.parametrize("method, settings, change", OPTION_EFFECTS, ids=str)
def test_every_option_changes_the_weights(method, settings, change, cache_dir, tmp_path):
    """Catches a flag that is declared and never used, a mistake found in published code."""
    weights = []
    for flags in (settings, settings | change):
        config = quick_config(
            cache_dir, tmp_path, method, **({"learning_rate": 0.01, "steps": 3} | flags)
        )
        # Rewards differ at random here, so that the policy gradient of an untrained model is not 0.
        student, _ = train_gpt.base_model(config)
        task = train_gpt.make_task(config)
        task.grade = coin_grade
        if config.warm_start_steps:
            train_gpt.warm_start(config, task, student)
        teacher = train_gpt.make_teacher(config, task, student)
        train_gpt.post_train(config, task, student, teacher)
        weights.append(torch.cat([p.flatten() for p in student.parameters()]))
    assert not torch.equal(*weights)


def coin_grade(text, example):
    """A reward that depends on the completion in no useful way, but depends on it."""
    return toy_tasks.Grade(float(sum(map(ord, text)) % 2), 0, False, False)


# Files of a run -----------------------------------------------------------------------------------


def test_a_run_writes_what_it_promises_and_the_same_command_shows_it_again(cache_dir, tmp_path):
    """Catches a missing file or key, and a second call that trains again."""
    config = quick_config(cache_dir, tmp_path)
    summary = train_gpt.run(config, quiet=True)
    folder = tmp_path / "run"
    names = {"config.json", "metrics.jsonl", "curves.png", "student.pt", "summary.json"}
    assert {p.name for p in folder.iterdir()} == names
    assert {"method", "seed", "steps", "pretrain_s", "train_s", "wall_s"} <= summary.keys()
    for when in ("before", "after"):
        assert set(summary[when]) == {"train", "fresh", "longer"}
        for means in summary[when].values():
            assert means.keys() == train_gpt.MEASURES.keys()
    rows = read_metrics(folder)
    assert {row["kind"] for row in rows} == {"step", "evaluation"}
    for row in rows:
        if row["kind"] == "step":
            assert {*train_gpt.COLUMNS, "kind"} == row.keys()
    written = (folder / "summary.json").stat().st_mtime_ns
    assert train_gpt.run(config, quiet=True) == json.loads((folder / "summary.json").read_text())
    assert (folder / "summary.json").stat().st_mtime_ns == written


def test_same_seed_gives_the_same_weights_and_another_seed_does_not(cache_dir, tmp_path):
    """Catches a generator that is not seeded by --seed."""
    weights = []
    for i, seed in enumerate((1, 1, 2)):
        config = quick_config(cache_dir, tmp_path, seed=seed, out_dir=str(tmp_path / str(i)))
        train_gpt.run(config, quiet=True)
        saved = torch.load(tmp_path / str(i) / "student.pt", weights_only=True)["weights"]
        weights.append(saved["head.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_sampling_follows_the_seed_and_nothing_else(cache_dir, tmp_path):
    """Catches completions that are the same for every seed: intervals over nothing."""
    config = quick_config(
        cache_dir, tmp_path, train_problems=1
    )  # one problem: no choice but sampling
    task, weights = train_gpt.make_task(config), []
    for seed in (1, 1, 2):
        student, _ = train_gpt.base_model(config)
        train_gpt.post_train(
            dataclasses.replace(config, seed=seed), task, student, Teacher("frozen", student)
        )
        weights.append(student.head.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_cached_base_model_is_never_stale(tmp_path, monkeypatch):
    """Catches a cache key that forgets something on which the weights depend."""
    config = quick_config(str(tmp_path / "cache"), tmp_path)
    for change in (
        {}, {"seed": 1}, {"pretrain_steps": 3}, {"world": EASY_WORLD + ",slip_rate=0"}
    ):  # fmt: skip
        train_gpt.base_model(dataclasses.replace(config, **change))
        train_gpt.base_model(dataclasses.replace(config, **change))
    train_gpt.base_model(config, "larger")
    monkeypatch.setattr(train_gpt, "PRETRAIN_TOKENS", 512)
    train_gpt.code_of.cache_clear()
    train_gpt.base_model(config)
    train_gpt.code_of.cache_clear()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    train_gpt.base_model(config)
    assert len(list((tmp_path / "cache").iterdir())) == 7


def test_pretraining_warms_up_and_falls_to_zero(monkeypatch):
    """Catches a schedule that ends early, stays high, or moves one of the optimisers alone."""
    rates = {}
    for name in ("Muon", "AdamW"):
        optimizer = getattr(torch.optim, name)

        def step(self, *a, name=name, plain=optimizer.step, **kw):
            rates.setdefault(name, []).append(self.param_groups[0]["lr"])
            return plain(self, *a, **kw)

        monkeypatch.setattr(optimizer, "step", step)
    shape = GPTConfig(vocab_size=len(toy_tasks.VOCABULARY), n_layers=1, width=4, head_dim=2)
    train_gpt.pretrain(GPT(shape), toy_tasks.World(), steps=40, seed=0)
    peaks = {"Muon": train_gpt.MUON["lr"], "AdamW": train_gpt.ADAMW["lr"]}
    for name, peak in peaks.items():
        shares = [rate / peak for rate in rates[name]]
        assert shares[:10] == pytest.approx([(i + 1) / 20 for i in range(10)])
        assert shares[20:] == pytest.approx([1 - i / 40 for i in range(20, 40)])


def test_a_damaged_base_model_is_named(tmp_path):
    """Catches a traceback from half a file."""
    config = quick_config(str(tmp_path / "cache"), tmp_path)
    train_gpt.base_model(config)
    (path,) = (tmp_path / "cache").iterdir()
    for content in (b"", b"no model", path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"--cache_dir: .*{path.name}' is damaged"):
            train_gpt.base_model(config)


def test_before_is_the_untouched_base_model(cache_dir, tmp_path):
    """Catches a comparison whose `base` has already been through a warm start."""
    runs = []
    for method in ("sdpo", "sft_then_sdpo"):
        flags = {"warm_start_steps": 3} if method != "sdpo" else {}
        config = quick_config(cache_dir, tmp_path, method, out_dir=str(tmp_path / method), **flags)
        runs.append(train_gpt.run(config, quiet=True))
    assert runs[0]["before"] == runs[1]["before"]


def test_an_external_teacher_is_the_checkpoint_that_is_named(cache_dir, tmp_path):
    """Catches a teacher that is another model than the one asked for."""
    train_gpt.run(quick_config(cache_dir, tmp_path, out_dir=str(tmp_path / "a")), quiet=True)
    flags = {"teacher": "external", "external_teacher": str(tmp_path / "a")}
    config = quick_config(cache_dir, tmp_path, out_dir=str(tmp_path / "b"), **flags)
    student, _ = train_gpt.base_model(config)
    teacher = train_gpt.make_teacher(config, train_gpt.make_task(config), student)
    saved = torch.load(tmp_path / "a" / "student.pt", weights_only=True)["weights"]
    assert torch.equal(teacher.model.head.weight, saved["head.weight"])
    assert not torch.equal(student.head.weight, saved["head.weight"])


@pytest.mark.parametrize("name", train_gpt.EXTERNAL_BASES)
def test_an_external_base_model_is_one_for_all_seeds(name, cache_dir, tmp_path):
    """Catches seeds that each pretrain a teacher of their own, and one that a student starts as."""
    flags = {"teacher": "external", "external_teacher": name, "context": "none"}
    paths = []
    for seed in (1, 2):
        config = quick_config(cache_dir, tmp_path, seed=seed, **flags)
        paths += [train_gpt.base_path(*base) for base in train_gpt.bases_of(config)]
    (own, teacher), (other, same) = paths[:2], paths[2:]
    assert teacher == same and len({own, other, teacher}) == 3


def test_compare_writes_means_and_intervals_over_seeds(cache_dir, tmp_path, monkeypatch):
    """Catches an interval over completions instead of seeds, and jobs that no worker can take."""
    pool = train_gpt.ProcessPoolExecutor  # of one worker: a second one costs more than the runs
    monkeypatch.setattr(train_gpt, "ProcessPoolExecutor", lambda n, *a, **kw: pool(1, *a, **kw))
    flags = dataclasses.asdict(quick_config(cache_dir, tmp_path, steps=1))
    keep = ("steps", "batch_size", "group_size", "max_new_tokens", "pretrain_steps")
    keep += ("eval_problems", "world", "cache_dir", "train_problems")
    folder = tmp_path / "compare"
    result = train_gpt.compare(
        ["base", "sdpo"], {k: flags[k] for k in keep}, seeds=[3, 4], folder=folder, workers=2
    )
    assert (folder / "compare.png").stat().st_size > 0
    assert json.loads((folder / "compare.json").read_text()) == result
    runs = [json.loads((folder / f"sdpo-{s}" / "summary.json").read_text()) for s in (3, 4)]
    values = [run["after"]["fresh"]["completion_tokens"] for run in runs]
    cell = result["methods"]["sdpo"]["fresh"]["completion_tokens"]
    assert cell["mean"] == pytest.approx(sum(values) / 2) and cell["n"] == 2
    assert set(result["methods"]) == {"base", "sdpo"}
    written = (folder / "compare.png").stat().st_mtime_ns
    again = train_gpt.compare(["base", "sdpo"], {k: flags[k] for k in keep}, [3, 4], folder, 1)
    assert again == result and (folder / "compare.png").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="holds a comparison"):
        train_gpt.compare(["base", "sdpo"], {k: flags[k] for k in keep}, [3], folder, 1)


def test_interval_is_student_t_over_the_values():
    """Catches the normal quantile, which makes intervals of five seeds too narrow by a third."""
    cell = train_gpt.mean_and_interval([1.0, 2.0, 3.0])  # sd 1, t(2) = 4.303, / sqrt 3
    assert cell["mean"] == 2.0
    assert cell["high"] - 2.0 == pytest.approx(4.303 / 3**0.5) == 2.0 - cell["low"]
    assert train_gpt.mean_and_interval([1.0])["low"] is None


# Bad input ----------------------------------------------------------------------------------------

BAD = [
    (["--method", "sdpa"], "--method", "grpo"),
    (["--context", "hint"], "--context", "solution"),
    (["--steps", "0"], "--steps", "1 or more"),
    (["--steps", "x"], "--steps", "int"),
    (["--learning_rate", "-1"], "--learning_rate", "above 0"),
    (["--learning_rate", "nan"], "--learning_rate", ""),
    (["--teacher_update_rate", "-0.1"], "--teacher_update_rate", "0 to 1"),
    (["--device", "tpu"], "--device", "cpu"),
    (["--group_size", "3"], "--group_size", "divisor"),
    (["--world", "persona=1"], "--world", "persona_rate"),
    (["--world", "persona_rate=2"], "persona_rate", "0 to 1"),
    (["--rules", "12"], "--rules", "digits"),
    (["--rules", "3"], "--context", "rule"),
    (["--context", "rule", "--rules", ","], "--rules", "numbers"),
    (["--world", "operators=+-", "--train_operators", "*"], "--train_operators", "+ -"),
    (
        ["--train_problems", "51", "--world", "operators=+,max_operations=1"],
        "--train_problems",
        "0 to 50",
    ),
    (["--loss", "sampled_token", "--student_frac", "0.5"], "--student_frac", "1 with"),
    (["--loss", "sequence_kl", "--temperature", "2"], "--temperature", "1 with"),
    (["--student_frac", "0.02"], "--student_frac", "1/16"),
    (["--loss", "top_k_reverse_kl", "--top_k", "100"], "--top_k", "1 to 31"),
    (["--method", "rlvr_teacher", "--group_size", "1"], "--group_size", "2 or more"),
    (["--method", "rlvr_teacher", "--context", "feedback"], "--context", "own completions"),
    (["--method", "sft_then_sdpo", "--context", "sibling"], "--context", "own completions"),
    (
        ["--teacher", "external", "--external_teacher", "nowhere"],
        "--external_teacher",
        "student.pt",
    ),
    (["--seed", "99999999999999999999"], "--seed", "2^63"),
    (["--device", "cpu:x"], "--device", "cuda:0"),
    (["--seeds", "5"], "--seeds", "with --compare"),
    (["--compare", "sdpo", "--threads", "2"], "--threads", "without --compare"),
    (["--context", "none"], "--context", "zero by construction"),
    (["--method", "grpo", "--group_size", "1"], "--group_size", "2 or more"),
    (
        ["--top_k_tail", "renormalised", "--top_k", "1", "--loss", "top_k_reverse_kl"],
        "--top_k",
        "2",
    ),
    (["--compare", "base"], "--compare", "beside"),
    (["--compare", "sdpo", "nope"], "--compare", "sdpo"),
    (["--compare", "sdpo", "--seeds", "0"], "--seeds", "1 or more"),
    (["--stepz", "3"], "--stepz", ""),
    (["--steps=--"], "--steps", "a value"),
    (["two\nlines"], "two lines", ""),
    (["--max_new_tokens", "99999999999"], "--max_new_tokens", "below 2^31"),
    (["--threads", "5000"], "--threads", "0 to 1024"),
    (["--world", "max_operations=1000"], "max_operations", "1 to 100"),
    (["--compare", "sdpo", "--seeds", "99999999999"], "--seeds", "at most 1000"),
]


@pytest.mark.parametrize("arguments, named, allowed", BAD, ids=str)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments, named, allowed, capsys, tmp_path, monkeypatch
):
    """Catches a traceback, or a message that does not say what is allowed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train_gpt.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and named in error and allowed in error
    assert not (tmp_path / "out" / "sdpo-0").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_refused():
    """Catches a late failure deep inside PyTorch."""
    with pytest.raises(ValueError, match="--device: 'cuda'; allowed here: auto, cpu"):
        train_gpt.pick_device("cuda")


def test_a_folder_with_something_else_is_left_alone(cache_dir, tmp_path):
    """Catches results that are overwritten by a run with other settings."""
    config = quick_config(cache_dir, tmp_path)
    train_gpt.run(config, quiet=True)
    content = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match=r"--steps 2 instead of 3"):
        train_gpt.run(dataclasses.replace(config, steps=3), quiet=True)
    assert content == {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for name, reason in (("file", "is a file"), ("other", "holds other files")):
        with pytest.raises(ValueError, match=f"--out_dir.*{reason}"):
            train_gpt.run(dataclasses.replace(config, out_dir=str(tmp_path / name)), quiet=True)
    assert (
        (tmp_path / "file").read_text() == (tmp_path / "other" / "notes.txt").read_text() == "mine"
    )


def test_flat_signals_are_warned_of_once(cache_dir, tmp_path, capsys):
    """Catches a run that silently learns nothing."""
    for name, method, flags, words in (
        ("a", "grpo", {"kl_coef": 0.0}, "all rewards are equal"),
        ("b", "sdft", {}, "no completion of a batch has a privileged context"),
        ("c", "sdpo", {"teacher_update_rate": 0.0}, "never moves"),
        ("d", "sdpo", {"teacher": "snapshot"}, "no snapshot is taken"),
    ):
        out_dir = str(tmp_path / name)
        config = quick_config(cache_dir, tmp_path, method, steps=5, out_dir=out_dir, **flags)
        train_gpt.run(config, quiet=True)
        assert capsys.readouterr().err.count(words) == 1


# The command line as a user meets it --------------------------------------------------------------


def test_a_whole_run_from_the_command_line(cache_dir, tmp_path, monkeypatch, capsys):
    """Catches a break in what a newcomer sees: checks, log line, table, samples, paths."""
    flags = ["--steps", "5", "--batch_size", "16", "--pretrain_steps", "2", "--eval_problems", "8"]
    flags += ["--cache_dir", cache_dir, "--world", EASY_WORLD, "--max_new_tokens", "8"]
    flags += ["--threads", "1"]
    command = [sys.executable, str(ROOT / "train_gpt.py"), *flags]
    first = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    for words in (
        "ok   KL of the student to itself is 0",
        "KL(s||t)",
        "accuracy",
        "before",
        "after",
    ):
        assert words in first.stdout
    assert "out/sdpo-0/curves.png" in first.stdout
    assert (tmp_path / "out/sdpo-0/curves.png").stat().st_size > 10_000
    monkeypatch.chdir(tmp_path)
    train_gpt.main(flags)
    assert "already holds this run" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        train_gpt.main([*flags, "--learning_rate", "0.1"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err.count("\n") == 1 and not said.out


def test_the_readme_has_the_method_table_that_the_code_prints():
    """Catches a table in the README that no longer is what the code does."""
    assert train_gpt.method_table() in (ROOT / "README.md").read_text()


def test_every_field_is_a_flag_and_the_row_gives_way_to_it():
    """Catches a setting that the command line does not reach, and a row that beats a flag."""
    flags = {a.dest for a in train_gpt.make_parser()._actions}
    assert {f.name for f in dataclasses.fields(TrainConfig)} <= flags
    assert method_config({"method": "sdpo"}).teacher == "ema"
    assert method_config({"method": "sdpo", "teacher": "live"}).teacher == "live"


def test_the_library_needs_neither_the_toy_nor_more_than_torch():
    """Catches an import that ties minisd to the toy world or to optional packages."""
    code = "import sys, minisd; print(*{m.split('.')[0] for m in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = set(out.stdout.split())
    others = {"transformers", "safetensors", "huggingface_hub", "matplotlib"}
    assert not loaded & {"toy_tasks", "train_gpt", *others}


def test_no_public_name_of_the_library_is_undocumented():
    """Catches a function that a reader meets without a word about shapes and units."""
    text = Path(minisd.__file__).read_text()
    public = [getattr(minisd, n) for n in re.findall(r"^(?:def|class) (\w+)", text, re.M)]
    assert all(item.__doc__ for item in public)


def test_a_small_share_of_students_passes_the_start_up_checks(cache_dir, tmp_path):
    """Catches checks that validate their own smaller batch instead of the run's settings."""
    config = quick_config(cache_dir, tmp_path, "gkd", batch_size=64, student_frac=0.125)
    task = train_gpt.make_task(config)
    student = train_gpt.initial_model(config)[0]
    assert all(passed for _, passed, _ in train_gpt.start_up_checks(config, task, student))


def test_without_git_the_commit_is_unknown(cache_dir, tmp_path, monkeypatch):
    """Catches a run that dies because git is not installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    record = train_gpt.record(quick_config(cache_dir, tmp_path))
    assert record["git_commit"] == "unknown"


def test_damaged_results_are_named(cache_dir, tmp_path, capsys):
    """Catches a traceback, or an error without a file, from half a summary."""
    config = quick_config(cache_dir, tmp_path)
    train_gpt.run(config, quiet=True)
    for content in ("", "{}", "[]"):
        (config.folder / "summary.json").write_text(content)
        with pytest.raises(ValueError, match=r"summary\.json' is damaged"):
            train_gpt.run(config, quiet=True)


def test_a_failed_run_of_a_comparison_is_named():
    """Catches an error that leaves the reader to guess which of the runs it was."""
    future = Future()
    future.set_exception(ValueError("loss nan"))
    with pytest.raises(ValueError, match=r"^grpo, seed 3: loss nan$"):
        train_gpt.result_of(future, "grpo", 3)


def test_a_stopped_pool_begins_no_further_work(tmp_path):
    """Catches workers that go on with the queue after Ctrl-C."""
    refused = pytest.raises(train_gpt.Interrupted, match="the same command goes on")
    with refused, train_gpt.worker_pool(1) as pool:
        futures = [pool.submit(time.sleep, 0.2) for _ in range(40)]
        raise train_gpt.Interrupted(signal.SIGINT)
    assert sum(future.cancelled() for future in futures) > 30
