"""Laws of the command line, of a run's files, and of every row of the method table."""

import dataclasses
import functools
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor

import minisd
import toy_tasks
import train_gpt
from lab import base, flags, hf, report, storage
from lab.evaluation import evaluate
from lab.extra_losses import ERROR_PARTS
from minisd import GPT, METHODS, GPTConfig, Method

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, str(ROOT / "train_gpt.py")]
CPU = torch.device("cpu")
# A world that is learned in seconds: one or two sums, with a solution answered directly, and many
# unreliable authors, so that reward can improve even who knows the solution.
EASY_WORLD = ("operators=+,max_operations=2,drills_first=0,direct_rate.none=0.2,"
              "direct_rate.solution=1,persona_rate=0.3")
# A run of a second on a base model that has learned this world.
EASY = {"world": EASY_WORLD, "train_problems": 16, "pretrain_steps": 80, "max_new_tokens": 32,
        "eval_problems": 32, "eval_every": 100, "page_problems": 0, "threads": 1}
# A run of a moment on one that has learned nothing: for everything but learning.
QUICK = EASY | {"steps": 2, "batch_size": 8, "group_size": 4, "max_new_tokens": 12,
                "pretrain_steps": 2, "eval_problems": 6, "eval_every": 2}


SIZES = base.SIZES  # those of the program, which the whole command has

pytestmark = pytest.mark.usefixtures("small_runs")


def words(**settings) -> list[str]:
    """Settings as a command line has them."""
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def run(folder: Path, cache_dir: str, **settings) -> dict:
    """The summary of a run of the command."""
    train_gpt.main(words(**QUICK | settings, out_dir=folder, cache_dir=cache_dir))
    return json.loads((folder / "summary.json").read_text())


def metrics(folder: Path, kind: str) -> list[dict]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


def weights_in(folder: Path) -> Tensor:
    """The trained weights of a run as one vector."""
    weights = torch.load(folder / "student.pt", weights_only=True)["weights"]
    return torch.cat([tensor.flatten() for tensor in weights.values()])


# Learning -----------------------------------------------------------------------------------------

DISTILLED = ("sft", "seq_kd", "opsd", "sdpo", "sdft", "sequence_kl", "rlvr_teacher",
             "sft_then_sdpo")
REWARDED = ("grpo", "dr_grpo", "dapo", "sdpo_grpo")


@pytest.fixture(scope="session")
def learned(tmp_path_factory, cache_dir):
    """The summary of a run that learns something, made once."""
    by_reward = {"steps": 8, "batch_size": 64, "learning_rate": 0.003}
    quickly = {"steps": 4, "batch_size": 32, "learning_rate": 0.002, "eval_problems": 16}
    changes = dict.fromkeys(REWARDED, by_reward) | dict.fromkeys(DISTILLED, quickly)
    changes["rlvr_teacher"] = by_reward | {"steps": 4, "adapt_steps": 6}
    changes["sft_then_sdpo"] = quickly | {"warm_start_steps": 2}

    @functools.cache
    def summary_of(method: str) -> dict:
        folder, settings = tmp_path_factory.mktemp("learned") / method, EASY | changes[method]
        return run(folder, cache_dir, method=method, group_size=8, seed=1, **settings)

    return summary_of


@pytest.mark.slow
@pytest.mark.parametrize("method", [*DISTILLED, *REWARDED])
def test_every_method_changes_what_it_should(method, learned):
    """Catches a row of the table whose settings do not reach the loss, or push the wrong way."""
    measure, margin = ("accuracy_frac", 0.1) if method in REWARDED else ("direct_frac", 0.3)
    summary = learned(method)
    change = summary["after"]["train"][measure] - summary["before"]["train"][measure]
    assert change > margin, summary


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gkd", "opd"])
def test_a_larger_teacher_is_approached(method, cache_dir, tmp_path):
    """Catches distillation that does not see the larger teacher, or moves away from it."""
    settings = QUICK | {"steps": 10, "batch_size": 16, "pretrain_steps": 8, "eval_every": 100}
    run(tmp_path / "run", cache_dir, method=method, learning_rate=3e-3, **settings)
    first, *_, last = [row["reverse_kl"] for row in metrics(tmp_path / "run", "step")]
    assert last < 0.6 * first


@pytest.mark.slow
def test_a_teacher_adapted_by_reward_beats_the_unadapted_one(learned):
    """Catches an adaptation that does not show the context to the model, or trains another copy."""
    accuracy = learned("rlvr_teacher")["teacher_accuracy_frac"]
    assert accuracy["before"] > accuracy["unadapted"] + 0.05, accuracy


# Every setting reaches the weights ----------------------------------------------------------------


@pytest.fixture
def coin_rewards(monkeypatch):
    """Rewards that differ at random: an untrained model is never right. References stay right."""
    honest = toy_tasks.ToyTask.reward

    def reward(self, text, example) -> float:
        return max(honest(self, text, example), float(sum(map(ord, text)) % 2))

    monkeypatch.setattr(toy_tasks.ToyTask, "reward", reward)


@pytest.fixture
def trained(cache_dir, coin_rewards):
    """Settings -> the weights after two steps, without evaluations and files."""
    def weights(**changes) -> Tensor:
        usual = {"learning_rate": 0.01, "max_new_tokens": 6, "cache_dir": cache_dir}
        return weights_after(tuple(words(**QUICK | usual | changes)))

    return weights


@functools.cache
def weights_after(arguments: tuple[str, ...]) -> Tensor:
    settings, _ = train_gpt.parse(list(arguments))
    task, student, _, _ = train_gpt.initial(settings, CPU)
    if settings.method.warm_start_steps:
        train_gpt.warm_start(settings, task, student, CPU)
    use = settings.has_external
    external = train_gpt.external_teacher(settings, task, student, CPU) if use else None
    state = train_gpt.new_state(settings, settings.method, student, "post-training", external)
    train_gpt.train(settings, task, state, "post-training", settings.run.steps)
    return torch.cat([p.detach().flatten() for p in student.parameters()])


TOP_2 = {"divergence": "top_k_reverse_kl", "top_k": 2}
OPTION_EFFECTS = [
    ("gkd", {}, {"student_frac": 0.0}),
    ("gkd", {}, {"off_policy": "teacher"}),
    ("grpo", {}, {"student_context": "solution"}),
    ("sdpo", {}, {"teacher": "live"}),
    ("sdpo", {}, {"context": "partial"}),
    ("sdpo", {}, {"teacher_update_rate": 0.9}),
    ("sdpo", {"teacher": "snapshot"}, {"teacher_every": 1}),
    ("rlvr_teacher", {"adapt_steps": 2}, {"external_teacher": "larger"}),
    ("rlvr_teacher", {"adapt_steps": 2}, {"adapt_steps": 1}),
    ("sft_then_sdpo", {"warm_start_steps": 2}, {"warm_start_steps": 1}),
    ("sdpo", {}, {"divergence": "forward_kl"}),
    ("sdpo", {}, {"credit": "averaged"}),
    ("sdpo", {}, {"token_weights": "last"}),
    ("sdpo", {"token_weights": "last"}, {"token_share": 0.6}),
    ("sdpo", {"divergence": "jensen_shannon"}, {"teacher_weight": 0.2}),
    ("sdpo", {"divergence": "clipped_forward_kl"}, {"clip": 0.001}),
    ("sdpo", TOP_2, {"top_k": 3}),
    ("sdpo", TOP_2, {"top_k_support": "teacher"}),
    ("sdpo", TOP_2, {"top_k_tail": "naive"}),
    ("sequence_kl", {}, {"discount": 0.0}),
    ("sdpo", {"temperature": 2.0}, {"importance_cap": 0.5}),
    ("sdpo", {}, {"reward_weight": 0.5}),
    ("grpo", {}, {"advantage": "group_without_std"}),
    ("grpo", {"updates_per_batch": 3, "learning_rate": 0.1}, {"clip_low": 0.9}),
    ("grpo", {"updates_per_batch": 3, "learning_rate": 0.1}, {"clip_high": 0.9}),
    ("grpo", {"learning_rate": 0.1}, {"kl_coef": 5.0}),
    ("dapo", {"group_size": 2}, {"resample": 0}),
    ("sdpo", {}, {"reduction": "sequence_mean"}),
    ("sdpo", {}, {"seed": 5}),
    ("sdpo", {}, {"train_problems": 0}),
    ("sdpo", {}, {"batch_size": 4}),
    ("sdpo", {}, {"group_size": 2}),
    ("sdpo", {}, {"max_new_tokens": 3}),
    ("sdpo", {}, {"temperature": 0.5}),
    ("sdpo", {}, {"learning_rate": 0.02}),
    ("sdpo", {}, {"updates_per_batch": 2}),
    ("sdpo", {}, {"grad_clip": 1e-6}),
    ("sdpo", {}, {"world": EASY_WORLD + ",persona_rate=1"}),
    ("sdpo", {"world": "max_operations=2"}, {"train_operators": "+"}),
    ("sdpo", {}, {"train_operations": 1}),
    ("sdpo", {"context": "rule", "rules": "3"}, {"rules": "2,7"}),
    ("sdpo", {}, {"pretrain_steps": 3}),
]


@pytest.mark.parametrize("method, settings, change", OPTION_EFFECTS, ids=str)
def test_every_option_changes_the_weights(method, settings, change, trained):
    """Catches a flag that is declared and never used, a mistake found in published code."""
    weights = trained(method=method, **settings)
    assert not torch.equal(weights, trained(method=method, **settings | change))


def test_no_option_is_left_out():
    """Catches a new setting of a method or of the toy that nobody has seen change a weight."""
    seen = {name for _, _, change in OPTION_EFFECTS for name in change}
    fields = {f.name for kind in (Method, toy_tasks.Toy) for f in dataclasses.fields(kind)}
    assert fields - seen == {"source", "target", "task"}


def rows_of(table: dict, but: Collection[str] = ()) -> list[str]:
    """Without those that lab/fixes adds: they need settings which the command does not have."""
    return [name for name, row in table.items() if name not in but
            and not (getattr(row, "__module__", None) or "").startswith("lab.fixes")]


@pytest.mark.parametrize("flag, table, settings", [
    ("divergence", minisd.DIVERGENCES, {"top_k": 2, "clip": 0.001}),
    ("credit", rows_of(minisd.CREDITS, ["imitation"]), {}),
    ("token_weights", rows_of(minisd.TOKEN_WEIGHTS, ERROR_PARTS), {}),  # see there
    ("advantage", rows_of(minisd.ADVANTAGES), {"reward_weight": 1}),
    ("reduction", minisd.REDUCTIONS, {}),
    ("top_k_tail", minisd.TAILS, TOP_2),
    ("teacher", [*rows_of(minisd.TEACHERS), *minisd.TARGETS],
     {"teacher_update_rate": 0.3, "teacher_every": 2, "steps": 3}),
])
def test_every_row_of_a_table_trains_something_of_its_own(flag, table, settings, trained):
    """Catches a row that falls through to another one."""
    found = {name: trained(method="sdpo", **settings | {flag: name}) for name in table}
    assert len({tuple(weights.tolist()) for weights in found.values()}) == len(found) > 1


def test_same_seed_gives_the_same_weights(trained):
    """Catches a generator that is not seeded by --seed."""
    before = trained(seed=1)
    weights_after.cache_clear()
    assert torch.equal(before, trained(seed=1)) and not torch.equal(before, trained(seed=2))


def test_sampling_follows_the_seed_and_nothing_else(cache_dir):
    """Catches completions that are the same for every seed: intervals over nothing."""
    arguments = words(**QUICK, cache_dir=cache_dir)
    settings, _ = train_gpt.parse(arguments)
    weights = []
    for seed in (1, 1, 2):
        # One problem and one base model: no choice but sampling.
        task, student = settings.toy.make_task(1, 0), train_gpt.initial(settings, CPU)[1]
        other = dataclasses.replace(settings, run=dataclasses.replace(settings.run, seed=seed))
        state = train_gpt.new_state(other, other.method, student, "post-training")
        train_gpt.train(other, task, state, "post-training", 2)
        weights.append(student.lm_head.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_evaluations_have_a_temperature_of_their_own(cache_dir):
    """Catches evaluations at the temperature of training, or always at 1."""
    arguments = words(**QUICK, cache_dir=cache_dir, eval_temperature=0)
    settings, _ = train_gpt.parse(arguments)
    task, student, *_ = train_gpt.initial(settings, CPU)
    found = train_gpt.evaluated(settings, task, minisd.Teacher(settings.method, student))["fresh"]
    prompts = minisd.Prompts.of([task.prompt_ids(e) for e in found.examples], task.pad_id)
    greedy = minisd.sample(
        [(1.0, student, prompts)], max_new_tokens=settings.run.max_new_tokens, temperature=0,
        end_ids=task.end_ids, pad_id=task.pad_id)
    texts = [task.decode(ids[mask].tolist()) for ids, mask in zip(greedy.ids, greedy.mask)]
    assert found.texts == texts


def test_flags_go_before_the_row_and_the_row_before_the_defaults():
    """Catches a row that beats a flag, and defaults of checkpoints that beat either."""
    settings, _ = train_gpt.parse([])
    assert settings.method == METHODS["sdpo"] and settings.run.batch_size == 128
    settings, _ = train_gpt.parse(["--teacher", "live"])
    assert settings.method == dataclasses.replace(METHODS["sdpo"], teacher="live")
    data = str(ROOT / "requirements.txt")  # any file: it is read later
    given = ["--init", "there", "--data", data, "--method", "grpo", "--eval_problems", "3"]
    settings, _ = train_gpt.parse(given)
    assert settings.run.max_new_tokens == hf.CHECKPOINT_DEFAULTS["max_new_tokens"]
    assert settings.run.eval_problems == 3 and settings.checkpoint.micro_batch == 4
    rate = {"learning_rate": hf.CHECKPOINT_DEFAULTS["learning_rate"]}
    assert settings.method == dataclasses.replace(
        METHODS["grpo"], teacher="live", context="none", **rate)


# Files of a run -----------------------------------------------------------------------------------


def test_a_run_writes_what_it_promises(cache_dir, tmp_path):
    """Catches a missing file or key, and a number that no reader expects."""
    summary = run(tmp_path / "run", cache_dir, steps=5, page_problems=1)
    names = {"config.json", "metrics.jsonl", "page.jsonl", "curves.png", "student.pt",
             "summary.json"}
    assert {p.name for p in (tmp_path / "run").iterdir()} == names
    assert all(summary[name] >= 0 for name in storage.SPENT)
    assert summary.keys() == {*storage.SPENT, "method", "seed", "steps", "before", "after",
                              "samples", "teacher_accuracy_frac"}
    assert summary["teacher_accuracy_frac"].keys() == {"unadapted", "before", "after"}
    measures = {*report.MEASURES, "remark_frac"} - {"cut_frac"}  # that is of text alone
    for when in ("before", "after"):
        assert summary[when].keys() == {"train", "fresh"}
        assert all(means.keys() == measures for means in summary[when].values())
    steps = metrics(tmp_path / "run", "step")
    assert [row["step"] for row in steps] == [1, 5]
    assert all(row.keys() == {*report.COLUMNS, "kind"} for row in steps)
    evaluations = metrics(tmp_path / "run", "evaluation")
    assert [row["step"] for row in evaluations] == [0, 2, 4, 5]
    assert all(row["teacher"].keys() == row["fresh"].keys() == measures for row in evaluations)
    assert evaluations[-1]["fresh"] == summary["after"]["fresh"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert config.keys() == {"run", "method", "toy", "checkpoint"}


def test_before_is_the_untouched_base_model(cache_dir, tmp_path, coin_rewards):
    """Catches a comparison whose `base` has already been through a warm start."""
    warm = {"method": "sft_then_sdpo", "warm_start_steps": 2, "learning_rate": 0.05}
    runs = [run(tmp_path / "a", cache_dir), run(tmp_path / "b", cache_dir, **warm)]
    assert runs[0]["before"] == runs[1]["before"]
    started = [metrics(tmp_path / name, "evaluation")[0]["train"] for name in "ab"]
    assert started[0] == runs[0]["before"]["train"] != started[1]


def test_an_external_teacher_is_the_checkpoint_that_is_named(cache_dir, tmp_path):
    """Catches a teacher that is another model than the one asked for."""
    run(tmp_path / "a", cache_dir)
    given = {"teacher": "external", "external_teacher": tmp_path / "a", "cache_dir": cache_dir}
    settings, _ = train_gpt.parse(words(**QUICK | given))
    task, student, _, _ = train_gpt.initial(settings, CPU)
    teacher = train_gpt.external_teacher(settings, task, student, CPU)
    saved = torch.load(tmp_path / "a" / "student.pt", weights_only=True)["weights"]
    assert torch.equal(teacher.lm_head.weight, saved["lm_head.weight"])
    assert not torch.equal(student.lm_head.weight, saved["lm_head.weight"])


def test_a_folder_with_something_else_is_left_alone(cache_dir, tmp_path):
    """Catches results that are overwritten by a run with other settings."""
    run(tmp_path / "run", cache_dir)
    content = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match="--steps 2 instead of 3"):
        run(tmp_path / "run", cache_dir, steps=3)
    assert content == {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    for name, reason in (("file", "is a file"), ("other", "holds other files")):
        with pytest.raises(ValueError, match=f"--out_dir.*{reason}"):
            run(tmp_path / name, cache_dir)
    for path in (tmp_path / "file", tmp_path / "other" / "notes.txt"):
        assert path.read_text() == "mine"


def test_damaged_results_are_named(cache_dir, tmp_path):
    """Catches a traceback, or an error without a file, from half a summary."""
    run(tmp_path / "run", cache_dir)
    for content in ("", "{}", "[]"):
        (tmp_path / "run" / "summary.json").write_text(content)
        with pytest.raises(ValueError, match=r"summary\.json' is damaged"):
            run(tmp_path / "run", cache_dir)


# Base models --------------------------------------------------------------------------------------


def test_a_kept_base_model_is_never_stale(monkeypatch):
    """Catches a name that forgets something on which the weights depend."""
    usual = {"world": toy_tasks.World(), "seed": 0, "steps": 2, "size": "base"}
    changes = ({}, {"world": toy_tasks.World(glance_rate=0)}, {"seed": 1}, {"steps": 3},
               {"size": "larger"}, {"device": "cuda"})
    monkeypatch.setattr(inspect, "getsource", functools.cache(inspect.getsource))  # it parses files
    found = [base.recipe_hash(**usual | change) for change in changes]
    assert base.recipe_hash(**usual) == found[0]
    source = inspect.getsource
    edited = lambda part: source(part) + "#" * (part is toy_tasks)  # noqa: E731
    for owner, name, value in (
        (minisd, "rotate", minisd.kl), (minisd, "Attention", minisd.MLP),
        (base, "written", base.pretrain), (base, "MUON", base.MUON | {"lr": 0.03}),
        (base, "PRETRAIN_TOKENS", 512), (inspect, "getsource", edited),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            base.sources.cache_clear()
            found.append(base.recipe_hash(**usual))
    base.sources.cache_clear()
    assert len(set(found)) == len(changes) + 6
    with monkeypatch.context() as patch:  # an edited loss keeps it
        patch.setattr(minisd, "forward_kl", minisd.reverse_kl)
        assert base.recipe_hash(**usual) == found[0]
    usual = base.here("cpu")
    for name, value in (("__version__", "1.0"), ("get_num_threads", lambda: 7)):
        with monkeypatch.context() as patch:
            patch.setattr(torch, name, value)
            assert base.here("cpu") != usual
    assert base.here("meta") != usual == base.here("cpu")


def test_a_base_model_is_pretrained_once(tmp_path, capfd):
    """Catches a second wait of a minute, and weights that differ from those of the first."""
    how = {"steps": 1, "cache_dir": str(tmp_path)}
    (first, seconds), (again, same) = (
        base.base_model(toy_tasks.World(), 0, **how) for _ in range(2))
    assert capfd.readouterr().out.count("pretraining of 1 steps") == 1 and seconds == same
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)


def test_the_shipped_base_model_is_of_this_recipe_and_small(monkeypatch):
    """Catches a recipe that was edited without making the file anew (python -m lab.base)."""
    monkeypatch.setattr(base, "SIZES", SIZES)
    (path,) = base.BASES.iterdir()
    steps = toy_tasks.Toy.pretrain_steps
    assert path.stem == f"base-{base.recipe_hash(toy_tasks.World(), 0, steps, 'base')}"
    assert path.stat().st_size <= 700_000


def test_what_is_shipped_is_taken_and_nothing_else_for_it(tmp_path, monkeypatch, capfd):
    """Catches a shipped model that is passed over, or that stands in for another recipe."""
    monkeypatch.setattr(base, "BASES", tmp_path / "bases")
    monkeypatch.setattr(base.Toy, "pretrain_steps", 1)
    path = base.ship()
    assert [*base.BASES.iterdir()] == [path] == [base.ship()]
    how = {"steps": 1, "cache_dir": str(tmp_path / "kept")}
    taken, seconds = base.base_model(toy_tasks.World(), 0, **how)
    assert not (tmp_path / "kept").exists()
    said = capfd.readouterr().out
    assert said == f"base model: shipped, made by --pretrain in {seconds:.0f} s\n"
    made, _ = base.base_model(toy_tasks.World(), 0, here_made=True, **how)
    assert "pretraining of 1 steps" in capfd.readouterr().out
    assert torch.equal(taken.lm_head.weight, made.lm_head.weight)
    for world, seed, steps in ((toy_tasks.World(), 1, 1), (toy_tasks.World(), 0, 2),
                               (toy_tasks.World(glance_rate=0), 0, 1)):
        base.base_model(world, seed, **how | {"steps": steps})
        assert f"pretraining of {steps} steps" in capfd.readouterr().out
    for content in (b"", b"no model", path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name}' is damaged; allowed: --pretrain"):
            base.base_model(toy_tasks.World(), 0, **how)
    settings, _ = train_gpt.parse(["--pretrain"])
    assert settings.pretraining(CPU)["here_made"] and not train_gpt.parse([])[0].run.pretrain


@pytest.mark.skipif("MINISD_PRETRAIN" not in os.environ, reason="MINISD_PRETRAIN is not set: 100 s")
def test_pretraining_finds_a_model_as_good_as_the_shipped_one(tmp_path, monkeypatch):
    """Catches a shipped model that this code does not make."""
    monkeypatch.setattr(base, "SIZES", SIZES)
    how, task = {"cache_dir": str(tmp_path)}, toy_tasks.Toy().make_task(64, 0)
    models = [base.base_model(toy_tasks.World(), 0, here_made=made, **how)[0]
              for made in (False, True)]
    for split in task.splits:
        shipped, made = (
            evaluate(task, model, split, count=512, seed=0,
                     sizes=minisd.Sizes(max_new_tokens=96)).means for model in models)
        assert abs(shipped["accuracy_frac"] - made["accuracy_frac"]) < 2 * (0.5 / 512) ** 0.5


def test_an_external_base_model_is_one_for_all_seeds(tmp_path):
    """Catches seeds that each pretrain a teacher of their own, and one that a student starts as."""
    how, world = {"steps": 1, "cache_dir": str(tmp_path)}, toy_tasks.World()
    for name in base.EXTERNAL_BASES:
        base.external_base(name, world, **how)
    known = set(tmp_path.glob("*.pt"))
    assert len(known) == len(base.EXTERNAL_BASES)
    for seed in (1, 2):
        base.base_model(world, seed, **how)
    for name in base.EXTERNAL_BASES:
        base.external_base(name, world, **how)
    assert len(set(tmp_path.glob("*.pt")) - known) == 2


def test_pretraining_warms_up_and_falls_to_zero(monkeypatch):
    """Catches a schedule that ends early, stays high, or moves one of the optimisers alone."""
    rates = {}
    for name, owner in (("Muon", base), ("AdamW", torch.optim)):
        optimizer = getattr(owner, name)

        def step(self, *a, name=name, plain=optimizer.step, **kw):
            rates.setdefault(name, []).append(self.param_groups[0]["lr"])
            return plain(self, *a, **kw)

        monkeypatch.setattr(optimizer, "step", step)
    monkeypatch.setattr(base, "PRETRAIN_TOKENS", 64)
    shape = GPTConfig(len(toy_tasks.VOCABULARY), n_layers=1, width=4, head_dim=2)
    base.pretrain(GPT(shape), toy_tasks.World(), steps=40, seed=0)
    for name, peak in (("Muon", base.MUON["lr"]), ("AdamW", base.ADAMW["lr"])):
        shares = [rate / peak for rate in rates[name]]
        assert shares[:10] == pytest.approx([(i + 1) / 20 for i in range(10)])
        assert shares[20:] == pytest.approx([1 - i / 40 for i in range(20, 40)])


def test_a_damaged_base_model_is_named(tmp_path):
    """Catches a traceback from half a file."""
    how = {"steps": 1, "cache_dir": str(tmp_path)}
    base.base_model(toy_tasks.World(), 0, **how)
    (path,) = tmp_path.glob("*.pt")
    for content in (b"", b"no model", path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"--cache_dir: .*{path.name}' is damaged"):
            base.base_model(toy_tasks.World(), 0, **how)


# Bad input ----------------------------------------------------------------------------------------

BAD = [  # a command line, what is named, what is said to be allowed
    ("--method sdpa", "--method: 'sdpa'", "list, sft"),
    ("--divergence kl", "--divergence: 'kl'", "reverse_kl"),
    ("--credit x", "--credit: 'x'", "averaged"),
    ("--token_weights x", "--token_weights: 'x'", "correct_only, first"),
    ("--advantage x", "--advantage: 'x'", "group_without_std"),
    ("--teacher x", "--teacher: 'x'", "trust_region"),
    ("--reduction x", "--reduction: 'x'", "token_mean"),
    ("--off_policy x", "--off_policy: 'x'", "data"),
    ("--top_k_support x", "--top_k_support: 'x'", "union"),
    ("--top_k_tail x", "--top_k_tail: 'x'", "bucket, naive"),
    ("--task x", "--task: 'x'", "arithmetic"),
    ("--context hint", "--context: 'hint'", "solution"),
    ("--steps 0", "--steps: 0", "1 to"),
    ("--steps x", "--steps: 'x'", "a whole number"),
    ("--steps=--", "--steps=--", "a value"),
    ("--stepz 3", "--stepz", ""),
    ("--deterministic=3", "--deterministic", ""),
    ("--seed 99999999999999999999", "--seed", "below 2^63"),
    ("--max_new_tokens 99999999999", "--max_new_tokens", "2147483647"),
    ("--threads 5000", "--threads", "0 to 1024"),
    ("--learning_rate -1", "--learning_rate: -1.0", "above 0"),
    ("--learning_rate 0", "--learning_rate: 0.0", "above 0"),
    ("--learning_rate 1e300", "--learning_rate: 1e+300", "0 to"),
    ("--learning_rate 1e-300", "--learning_rate: 1e-300", "1e-12 and more"),
    ("--method grpo --kl_coef 5e-324", "--kl_coef: 5e-324", "0, or 1e-12"),
    ("--temperature 1e300", "--temperature: 1e+300", "1e-12 to 2^31"),
    ("--temperature 1e-300", "--temperature: 1e-300", "above 0"),
    ("--grad_clip 1e-320", "--grad_clip: 1e-320", "above 0"),
    ("--grad_clip 1e39", "--grad_clip: 1e+39", "1e-12 to 2^31"),
    ("--steps 1e9", "--steps: '1e9'", "a whole number in digits"),
    ("--learning_rate nan", "--learning_rate: 'nan'", "a finite number"),
    ("--teacher_update_rate -0.1", "--teacher_update_rate", "0 to 1"),
    ("--teacher snapshot --teacher_every 0", "--teacher_every: 0", "1 or more"),
    ("--kl_coef -1", "--kl_coef: -1.0", "0 to"),
    ("--adapt_steps -1", "--adapt_steps: -1", "0 to"),
    ("--token_weights first --token_share 2", "--token_share: 2.0", "above 0, to 1"),
    ("--divergence jensen_shannon --teacher_weight 1", "--teacher_weight: 1.0", "between 0 and 1"),
    ("--divergence clipped_forward_kl --clip 0", "--clip: 0.0", "above 0"),
    ("--divergence top_k_reverse_kl --top_k 100", "--top_k: 100", "1 to the vocabulary 30"),
    ("--divergence top_k_reverse_kl --top_k_tail renormalised --top_k 1", "--top_k: 1", "2 or"),
    ("--device tpu", "--device: 'tpu'", "cpu"),
    ("--device cpu:x", "--device: 'cpu:x'", "cpu"),
    ("--group_size 3", "--group_size: 3", "divisor"),
    ("--method grpo --group_size 1", "--group_size: 1", "2 or more"),
    ("--method rlvr_teacher --group_size 1", "--group_size: 1", "2 or more"),
    ("--world persona=1", "--world: 'persona'", "persona_rate"),
    ("--world persona_rate=2", "persona_rate: 2", "0 to 1"),
    ("--world max_operations=1000", "max_operations: 1000", "1 to 9"),
    ("--rules 12", "--rules: '12'", "digits"),
    ("--rules 3", "--context: 'solution'", "rule"),
    ("--context rule --rules ,", "--rules: ','", "numbers"),
    ("--world operators=+- --train_operators *", "--train_operators", "+ -"),
    ("--train_problems 51 --world operators=+,max_operations=1", "--train_problems: 51", "0 to 50"),
    ("--credit sampled --student_frac 0.5", "--credit: 'sampled'", "--student_frac is 1"),
    ("--credit sequence --temperature 2", "--temperature: 2.0", "1 with"),
    ("--student_frac 0.02", "--student_frac: 0.02", "1/16"),
    ("--context none", "--context: 'none'", "teacher and student are one"),
    ("--init there", "--init: 'there'", "only with --data"),
    ("--shard", "--shard: True", "several processes"),
    ("--resume nowhere", "--resume: 'nowhere'", "a run's folder"),
    ("--resume nowhere --steps 3", "--steps", "not with --resume"),
    ("--compare sdpo grpo", "--compare", "python -m lab.compare"),
    ("--claim suppression", "--claim", "python -m lab.claims"),
    ("--inspect 3*7", "--inspect", "python -m lab.microscope"),
    ("--list_methods", "--list_methods", "--method list"),
    ("--loss=reverse_kl", "--loss", "--divergence NAME and --credit NAME"),
    ("--only_correct", "--only_correct", "--token_weights correct_only"),
]
# What is found out with the task and the models, after a moment of pretraining.
LATE = [
    ("--method rlvr_teacher --context feedback", "--context: 'feedback'", "own completions"),
    ("--method sft_then_sdpo --context sibling", "--context: 'sibling'", "own completions"),
    ("--method sft --context feedback", "--context: 'feedback'", "own completions"),
    ("--method grpo --student_context sibling", "--context: 'sibling'", "own completions"),
    ("--teacher external --external_teacher nowhere", "--external_teacher", "nowhere/student.pt"),
]


@pytest.mark.parametrize("line, named, allowed", [*BAD, *LATE], ids=str)
def test_bad_input_is_one_line_and_exit_code_2(
    line, named, allowed, cache_dir, capsys, tmp_path, monkeypatch
):
    """Catches a traceback, a message that does not say what is allowed, and a folder left over."""
    monkeypatch.chdir(tmp_path)
    tiny = words(**QUICK, cache_dir=cache_dir) if (line, named, allowed) in LATE else []
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", *tiny, *line.split()])
    with pytest.raises(SystemExit) as stop:
        flags.run_main("train_gpt.py", train_gpt.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    assert f"error: {named}" in error or f"{named}" in error.partition(";")[0]
    assert allowed in error
    assert not list(tmp_path.glob("out/*-0"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda_is_refused():
    """Catches a late failure deep inside PyTorch."""
    with pytest.raises(ValueError, match="--device: 'cuda'; allowed here: auto, cpu"):
        storage.pick_device("cuda")


def test_flat_signals_are_warned_of_once(cache_dir, tmp_path, capsys):
    """Catches a run that silently learns nothing."""
    run(tmp_path / "run", cache_dir, method="sdpo_grpo", teacher="snapshot", steps=5)
    error = capsys.readouterr().err
    for said in ("all rewards are equal", "--teacher_every 25: no snapshot is taken"):
        assert error.count(said) == 1


# The command line as a user meets it --------------------------------------------------------------


def test_a_whole_run_from_the_command_line(cache_dir, tmp_path, monkeypatch, capsys):
    """Catches a break in what a newcomer sees: four lines, log, wrong answers, table, files."""
    given = words(**QUICK | {"steps": 3, "batch_size": 16, "eval_every": 3}, cache_dir=cache_dir)
    monkeypatch.setattr(base, "SIZES", SIZES)
    base.base_model(toy_tasks.parse_world(EASY_WORLD), 0, steps=2, cache_dir=cache_dir)
    done = subprocess.run([*COMMAND, *given], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("sdpo (Huebotter et al. 2601.20802): student writes, EMA teacher")
    assert lines[1] == ("0.15M parameters, 16 problems, 3 steps of 16 completions (4 problems x 4)"
                        ", device auto, seed 0 -> out/sdpo-0")
    assert lines[2].startswith("changed: steps=3 ") and "pretrain_steps=2" in lines[2]
    assert "batch_size=16" in lines[2] and "learning_rate" not in lines[2]
    assert lines[3].startswith("checks: ") and lines[3].count(" ok") == 5
    assert lines[4] == report.UNITS and lines[5] == report.HEADER
    assert len(lines[6]) == len(report.HEADER) and lines[6].startswith("    1 ")
    assert sum(line.startswith("    wrong: ") for line in lines) == 3  # of its evaluation
    summary = json.loads((tmp_path / "out/sdpo-0/summary.json").read_text())
    table = report.before_after_table(summary)
    assert table in done.stdout and "out/sdpo-0/curves.png" in done.stdout
    assert "On fresh problems the model now" in done.stdout
    assert (tmp_path / "out/sdpo-0/curves.png").stat().st_size > 10_000

    # The same command shows it again, another one is refused.
    monkeypatch.chdir(tmp_path)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/sdpo-0").iterdir()}
    train_gpt.main(given)
    again = capsys.readouterr().out
    assert "already holds this run" in again and table in again and "NOTE" not in again
    monkeypatch.setattr(storage, "code_version", lambda: "another")
    train_gpt.main(given)
    assert "NOTE: the code has changed since" in capsys.readouterr().out
    assert written == {p: p.stat().st_mtime_ns for p in (tmp_path / "out/sdpo-0").iterdir()}
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", *given, "--learning_rate", "0.1"])
    with pytest.raises(SystemExit) as stop:
        flags.run_main("train_gpt.py", train_gpt.main)
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and not out and error.count("\n") == 1
    assert error.startswith("train_gpt.py: error: --out_dir: 'out/sdpo-0' holds a run")


def test_the_methods_are_listed(capsys):
    """Catches a list that begins a run, or lacks a row."""
    train_gpt.main(["--method", "list"])
    assert capsys.readouterr().out.strip() == report.method_table(METHODS)


def test_help_has_four_groups_and_every_setting_once(capsys, monkeypatch):
    """Catches a setting that the command line does not reach, or a flag without a word."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        train_gpt.main(["--help"])
    assert stop.value.code == 0
    usage, text = capsys.readouterr().out.split("\n\n", 1)
    assert len(usage.splitlines()) == 2 and max(map(len, text.splitlines())) <= 100
    groups = {"run": train_gpt.Run, "method": Method, "toy": toy_tasks.Toy,
              "checkpoint": hf.Checkpoint}
    titles = [line[:-1] for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["options", *groups]
    for name, kind in groups.items():
        part = text.partition(f"\n{name}:\n")[2].partition("\n\n")[0]
        found = [line.split()[0].strip(",") for line in part.splitlines() if line[2:4] == "--"]
        hidden = {"source", "target"}  # words, and a tuple: in the table alone
        assert found == [f"--{f.name}" for f in dataclasses.fields(kind) if f.name not in hidden]
        described = flags.comments_of(kind)
        assert all(described.get(flag[2:]) for flag in found)


def test_the_readme_has_the_method_table_that_the_code_prints():
    """Catches a table in the README that no longer is what the code does."""
    assert report.method_table(METHODS) in (ROOT / "README.md").read_text()


def test_a_small_share_of_students_passes_the_start_up_checks(cache_dir, tmp_path, capsys):
    """Catches checks that validate their own smaller batch instead of the run's settings."""
    share = {"method": "gkd", "batch_size": 64, "student_frac": 0.0625, "steps": 1}
    run(tmp_path / "run", cache_dir, **share)
    assert "checks: untrained loss is log V ok" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["matplotlib", "matplotlib.backends.backend_agg"])
def test_a_missing_package_is_told_before_the_work(missing, cache_dir, tmp_path, monkeypatch):
    """Catches a run of minutes that ends at its picture, and a folder that such a run leaves."""
    monkeypatch.setitem(sys.modules, missing, None)
    for name in [n for n in sys.modules if n.startswith("matplotlib.") and n != missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(train_gpt, "train_and_report", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(ValueError, match=r"matplotlib: not importable .*; allowed: pip install"):
        run(tmp_path / "run", cache_dir)
    assert not (tmp_path / "run").exists()


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    """Catches a run that dies because git is not installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert storage.record(CPU)["git_commit"] == "unknown"
