"""The bridge to TRL: what is written, what is refused, and that both compute the same."""

import gc
import importlib.util
import json
import random
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import train_gpt
from lab import bridge

transformers = pytest.importorskip("transformers")

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 400, "bos_token_id": None,
    "tie_word_embeddings": True,
}
SMALL = {"batch_size": 6, "group_size": 3, "max_new_tokens": 9, "steps": 2}


def problems() -> list[dict[str, str]]:
    rng = random.Random(0)
    pairs = [(rng.randint(2, 90), rng.randint(2, 9)) for _ in range(12)]
    return [{"prompt": f"What is {a} x {b}?", "answer": str(a * b), "feedback": f"Try {b} x {a}.",
             "solution": f"{a} x {b} is {a * b}."} for a, b in pairs]


def make_checkpoint(folder: Path, seed: int) -> str:
    """A random Llama whose gradient is not small; seeds differ in their weights alone.

    As in SmolLM2 its embeddings are tied, and turns end with the padding token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([row["prompt"] for row in problems()], trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|im_end|>", eos_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    ids = {"eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(fast) + 2, **LLAMA, **ids))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(0.4 * noise + (weight.dim() == 1))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bridge")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in problems()))
    return {"init": make_checkpoint(folder / "model", 0), "data": str(data),
            "teacher": make_checkpoint(folder / "teacher", 1)}


def words(made: dict[str, str], method: str, **given) -> list[str]:
    """The command's words for a row, a small one."""
    given = {"method": method, "init": made["init"], "data": made["data"]} | SMALL | given
    return ["trl", *(f"--{name}={value}" for name, value in given.items())]


def refusal(arguments: list[str]) -> str:
    with pytest.raises(ValueError) as error:
        bridge.main(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# What is written ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [
    ["--method", "grpo", "--seed", "3"], ["--method", "sdpo_grpo", "--steps", "7"],
    ["--method", "opsd", "--divergence", "jensen_shannon", "--reward_weight", "1"],
    ["--dtype", "bfloat16", "--learning_rate", "1e-4", "--train_problems", "5"],
])
def test_flags_mean_what_they_mean_in_train_gpt(made, given):
    """Catches a default of train_gpt.py that has changed there alone, and a row that is another."""
    given = [*given, "--init", made["init"], "--data", made["data"]]
    (theirs, _), (ours, _) = train_gpt.parse(given), bridge.parse(["trl", *given])
    assert ours.method == theirs.method and ours.checkpoint == theirs.checkpoint
    shared = vars(ours.run).items() & vars(theirs.run).items()
    assert dict(shared) == vars(ours.run)


def test_the_data_set_has_the_teachers_prompt_and_the_script_its_settings(made, tmp_path):
    """Catches a teacher without its hint, a student with it, and a setting that is lost."""
    bridge.main(words(made, "sdpo", teacher_update_rate=0.125, out_dir=tmp_path / "x"))
    rows = [json.loads(line) for line in (tmp_path / "x/train.jsonl").read_text().splitlines()]
    known = {row["prompt"]: row for row in problems()}
    for row in rows:
        (turn,) = row["prompt"]
        problem = known[turn["content"].partition("\n")[0]]
        hint = f"\n\nA correct solution:\n{problem['solution']}"
        assert hint not in turn["content"] and row["answer"] == problem["answer"]
        assert row["privileged_context"].replace(hint, "") == turn["content"]
    text = (tmp_path / "x/train.py").read_text()
    assert '"teacher_update_rate": 0.125,' in text and f"INIT = \"{made['init']}\"" in text


def test_a_written_folder_can_be_carried_away(made, tmp_path):
    """Catches a grader that the script imports and that stays behind."""
    bridge.main(words(made, "grpo", out_dir=tmp_path / "x"))
    code = "from lab.graders import TEXT_REWARDS as r; print(r['boxed']('\\\\boxed{3}', '3'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "x", text=True,
                          capture_output=True, env={"PATH": ""})
    assert done.stdout == "1.0\n", done.stderr
    assert "trl==" in (tmp_path / "x/requirements.txt").read_text()


def test_nothing_is_overwritten(made, tmp_path):
    """Catches a second command that replaces a script which somebody has changed."""
    bridge.main(words(made, "grpo", out_dir=tmp_path))
    bridge.main(words(made, "grpo", out_dir=tmp_path))  # the same again is no harm
    (tmp_path / "train.py").write_text("mine")
    assert refusal(words(made, "grpo", out_dir=tmp_path)).startswith(f"--out_dir: '{tmp_path}' has")
    assert (tmp_path / "train.py").read_text() == "mine"


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method, given, start", [
    ("sequence_kl", {}, "--credit: 'sequence'; allowed: token, sampled with TRL"),
    ("dapo", {}, "--resample: 2; allowed: 0 with TRL"),
    ("sft_then_sdpo", {}, "--warm_start_steps: 50; allowed: 0 with TRL"),
    ("rlvr_teacher", {}, "--external_teacher: 'adapted'; allowed: a checkpoint"),
    ("sdpo", {"teacher": "trust_region"}, "--teacher: 'trust_region'; allowed: frozen, live, ema"),
    ("sdpo", {"token_weights": "first"}, "--token_weights: 'first'; allowed: all"),
    ("sdpo", {"context": "wrong"}, "--context: 'wrong'; allowed: none, partial"),
    ("sdpo", {"kl_coef": 0.1}, "--kl_coef: 0.1; allowed: 0 with TRL's distillation"),
    ("sdpo", {"divergence": "clipped_forward_kl"}, "--divergence: 'clipped_forward_kl'; allowed:"),
    ("sdpo", {"divergence": "top_k_reverse_kl", "top_k_support": "union"}, "--top_k_support: 'uni"),
    ("sdpo", {"student_frac": 0.5}, "--student_frac: 0.5; allowed: 0, 1 with"),
    ("sdpo", {"teacher_template": '{"a": 1}'}, "--teacher_template"),
    ("sft", {"reduction": "constant"}, "--reduction: 'constant'; allowed: token_mean"),
    ("sdpo", {"device": "cpu"}, "--device: allowed: not with TRL (accelerate launch decides it)"),
    ("sdpo", {"chunk_tokens": 4}, "--chunk_tokens: allowed: not with TRL"),
    ("sdpo", {"batch_size": 300}, "--batch_size: 300; allowed: up to"),
    ("sdpo", {"group_size": 4}, "--group_size: 4; allowed: a divisor of batch_size 6"),
])
def test_what_trl_does_not_have_is_refused_by_name(made, tmp_path, method, given, start):
    """Catches a setting that is dropped in silence: the run would be another method."""
    assert refusal(words(made, method, out_dir=tmp_path / "x", **given)).startswith(start)
    assert not (tmp_path / "x").exists()


def test_an_external_teacher_of_trl_is_a_checkpoint_of_the_same_tokens(made, tmp_path):
    """Catches a group where GKD has none, and a teacher whose numbers stand for other tokens."""
    teacher = {"external_teacher": made["teacher"], "out_dir": tmp_path / "x"}
    said = refusal(words(made, "gkd", **teacher))
    assert said == "--group_size: 3; allowed: 1 with GKDTrainer"
    said = refusal(words(made, "gkd", group_size=1, micro_batch=2, **teacher))
    assert said.startswith("--student_frac: 0.5; allowed: a multiple of 1/3")
    assert refusal(words(made, "gkd")).startswith("--external_teacher: 'larger'; allowed: a check")


def test_a_prompt_that_trl_would_divide_otherwise_is_refused(made, tmp_path):
    """Catches a control token in a problem, which minisd spells and TRL would obey."""
    path = tmp_path / "data.jsonl"
    rows = [row | {"prompt": row["prompt"] + " <|im_end|>"} for row in problems()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refusal(words(made | {"data": str(path)}, "grpo", out_dir=tmp_path / "x"))
    assert said.startswith(f"--data {path} line 1: TRL divides its prompt into other tokens")


def test_a_check_without_trl_says_what_to_install(made, tmp_path, monkeypatch):
    """Catches a traceback, and a folder that is written before it."""
    monkeypatch.setitem(sys.modules, "trl", None)
    said = refusal([*words(made, "sdpo", out_dir=tmp_path / "x"), "--check"])
    assert said.startswith("trl: not importable") and "lab/requirements-bridge.txt" in said
    assert not (tmp_path / "x").exists()


# The same numbers ---------------------------------------------------------------------------------

needs_trl = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("trl", "datasets"))),
    reason="TRL is not installed: pip install -r lab/requirements-bridge.txt")

TO_TEACHER = {"external_teacher": True}
ALONE = TO_TEACHER | {"group_size": 1}
ROWS = {  # by what it shows: row, flags, trainer
    "self-distillation": ("sdpo", {}, "SDPO"),
    "means of completions": ("opsd", {}, "SDPO"),
    "siblings": ("sdft", {"reduction": "sequence_mean"}, "SDPO"),
    "rewards as well": ("sdpo_grpo", {"importance_cap": 2}, "SDPO"),
    "divided by a constant": ("sdpo", {"reduction": "constant", "teacher": "snapshot"}, "SDPO"),
    "top k": ("sdpo", {"divergence": "top_k_reverse_kl", "top_k": 3}, "SDPO"),
    "its own teacher writes": ("sdpo", {"student_frac": 0, "teacher": "live"}, "SDFT"),
    "grpo": ("grpo", {"temperature": 0.7}, "GRPO"),
    "dr_grpo": ("dr_grpo", {"kl_coef": 0.1}, "GRPO"),
    "dapo": ("dapo", {"resample": 0}, "GRPO"),
    "imitation": ("sft", {}, "SFT"),
    "references": ("seq_kd", {"off_policy": "data"}, "SFT"),
    "gkd": ("gkd", {"micro_batch": 3} | ALONE, "GKD"),
    "gkd without references": (
        "gkd", {"micro_batch": 3, "off_policy": "teacher"} | ALONE, "GKD"),
    "larger teacher": ("gkd", {"student_frac": 1, "divergence": "forward_kl"} | ALONE,
                       "Distillation"),
    "sampled tokens": ("opd", TO_TEACHER, "SDPO"),
}


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Data sets are cached beside the test; what all tests made is not searched for garbage."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    gc.freeze()  # accelerate collects at the end of every training, half a second each time
    yield
    gc.unfreeze()


@needs_trl
@pytest.mark.parametrize("what", ROWS)
def test_a_row_is_the_same_in_trl(made, tmp_path, capsys, own_cache, what):
    """Catches another mean, direction, mask, share, prompt or verdict in the written script."""
    method, given, trainer = ROWS[what]
    if "external_teacher" in given:
        given = given | {"external_teacher": made["teacher"]}
    bridge.main([*words(made, method, out_dir=tmp_path / "x", **given), "--check"])
    said = capsys.readouterr().out
    assert said.startswith(f"{trainer}Trainer of TRL") and said.endswith("verdict   the same\n")
    loss, gradient = (float(x) for x in re.findall(r"difference (\S+) ", said))
    assert loss < 1e-5 and gradient < 2e-5  # narrower than the command's: the vocabulary is small


@needs_trl
def test_a_changed_script_is_compared_as_it_is(made, tmp_path, capsys, own_cache):
    """Catches a check of something else than the script: here it learns the other direction."""
    arguments = words(made, "sdpo", out_dir=tmp_path / "x")
    bridge.main(arguments)
    path = tmp_path / "x/train.py"
    changed = path.read_text().replace('"distillation_alpha": 1.0', '"distillation_alpha": 0.0')
    path.write_text(changed)
    with pytest.raises(SystemExit) as stop:
        bridge.main([*arguments, "--check"])
    said = capsys.readouterr().out
    assert stop.value.code == 1 and said.endswith("verdict   NOT the same\n")
    assert "has been changed" in said and path.read_text() == changed


@needs_trl
def test_the_script_trains_and_its_teacher_follows(made, tmp_path, own_cache, monkeypatch):
    """Catches a script that only builds its trainer, and a teacher that stays or runs ahead."""
    monkeypatch.setenv("CI", "1")  # no telemetry
    arguments = words(made, "sdpo", out_dir=tmp_path / "x", teacher_update_rate=0.25,
                      learning_rate=1e-2, steps=2)
    bridge.main(arguments)
    kept = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL and transformers, on names that will change

        class Keep(transformers.TrainerCallback):
            def on_step_end(self, *_, model, **__):
                kept.append({n: w.detach().clone() for n, w in model.named_parameters()})

        monkeypatch.setattr(
            transformers.trainer, "DEFAULT_CALLBACKS",
            [Keep, *transformers.trainer.DEFAULT_CALLBACKS])
        done = runpy.run_path(str(tmp_path / "x/train.py"), run_name="__main__")
    start = done["load"](made["init"]).state_dict()
    teacher = dict(done["trainer"].teacher_model.named_parameters())
    assert len(kept) == 2 and (tmp_path / "x/checkpoint/model.safetensors").exists()
    for name, weight in teacher.items():
        expected = start[name]
        for student in kept:
            expected = 0.75 * expected + 0.25 * student[name]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)
    assert any(not torch.equal(w, start[n]) for n, w in teacher.items())
