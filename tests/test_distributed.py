"""Two processes under torchrun do what one process does with the same global batch.

Started by torchrun, this file is the worker: it runs every case once and leaves what came of it in
a folder, where the tests, which run the same cases in one process, find it.
"""

import copy
import dataclasses
import faulthandler
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the worker, which pytest does not start

import minisd
import toy_tasks
import train_gpt
from minisd import GPT, GPTConfig
from toy_tasks import ToyTask, World
from train_gpt import method_config

SMALL = {
    **{"batch_size": 8, "group_size": 4, "max_new_tokens": 8, "eval_problems": 3},
    **{"learning_rate": 1e-3, "device": "cpu"},
}
LIMIT_S = 100  # after which a worker that waits for the other says where, and ends
REDUCTIONS = ("token_mean", "sequence_mean", "constant")
CASES = {  # name: flags; the batch of 8 makes 4 rows for each process
    **{f"sdpo {r}": {"method": "sdpo", "reduction": r, "micro_batch": 3} for r in REDUCTIONS},
    **{f"grpo {r}": {"method": "grpo", "reduction": r} for r in REDUCTIONS},
    "odd groups": {"method": "sdpo_grpo", "batch_size": 6, "group_size": 2, "micro_batch": 2},
    "sequence_kl": {"method": "sequence_kl", "importance_cap": 2.0},
    "trust_region": {"method": "sdpo", "teacher": "trust_region", "teacher_update_rate": 0.3},
    "snapshot": {"method": "sdft", "teacher": "snapshot", "teacher_every": 1, "chunk_tokens": 7}
    | {"activation_checkpointing": True},
    "teacher writes": {"method": "opsd", "student_frac": 0.5},
    "resampled": {"method": "dapo", "resample": 3, "temperature": 2.0},
}


def cases(shard: bool) -> list[str]:
    """All with divided weights; with whole ones only what differs there, the sums."""
    return [name for name in CASES if shard or name.startswith("sdpo")]


def case_config(name: str, shard: bool):
    return dataclasses.replace(method_config(SMALL | CASES[name]), shard=shard)


def coin_grade(text, example):
    """A reward that differs within groups, so that the policy gradient is not zero."""
    return toy_tasks.Grade(float(sum(map(ord, text)) % 2), 0, False, False)


def tiny_student(config) -> GPT:
    shape = GPTConfig(
        vocab_size=len(toy_tasks.VOCABULARY), width=16, head_dim=4, mlp_width=20, qk_norm=True
    )
    student = GPT(shape, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        student.head.weight.mul_(20)  # far from uniform
    student.activation_checkpointing = config.activation_checkpointing
    return train_gpt.spread(config, student)


def adamw(model: GPT) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def one_step(config):
    """A batch, its loss, the gradient, the weights after a step, an evaluation; and the models."""
    student = tiny_student(config)
    task = ToyTask(World(), pool_size=8)
    task.grade = coin_grade
    teacher = train_gpt.make_teacher(config, task, student)
    reference = train_gpt.copied(config, student)
    with torch.no_grad():
        student.head.weight.mul_(1.2)  # away from teacher and reference
    batch = train_gpt.collect(
        *(config, task, student, teacher, random.Random(0), torch.Generator().manual_seed(0)),
        groups=config.batch_size // config.group_size,
        resample=config.resample,
    )
    optimizer = adamw(student)
    loss, means = train_gpt.backward(config, student, teacher, reference, batch)
    gradient = {f"d {name}": p.grad for name, p in student.named_parameters()}
    gradient = copy.deepcopy(train_gpt.full_state(gradient))  # clipping changes it in place
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1e-3).item()
    optimizer.step()
    teacher.update(1)
    evaluation = train_gpt.evaluate(config, task, teacher, "fresh")
    result = {
        "ids": batch.completions.ids,
        "log_probs": batch.completions.token_log_probs,
        "scalars": torch.stack([loss, *means.values()]),
        "norm": torch.tensor(norm),
        **gradient,
        **{f"teacher {k}": v for k, v in train_gpt.full_state(teacher.model.state_dict()).items()},
        "texts": evaluation.texts,
    }
    return result, student, optimizer


# The worker ---------------------------------------------------------------------------------------


def run_cases(folder: Path) -> None:
    """Every case with whole and with divided weights, and a state saved and loaded."""
    with train_gpt.process_group(method_config(SMALL | {"shard": True})):
        for shard in (False, True):
            results = {}
            for name in cases(shard):
                config = case_config(name, shard)
                results[name], student, optimizer = one_step(config)
            state = full_state(student, optimizer)
            again = tiny_student(config)
            optimizer = adamw(again)
            everywhere = train_gpt.on_first(lambda s=state: s)  # as if all had read the same file
            weights, moments = everywhere["weights"], everywhere["optimizer"]
            train_gpt.load_full_state(again, weights)
            train_gpt.load_full_optimizer(optimizer, again, moments)
            results |= {"state": state, "loaded state": full_state(again, optimizer)}
            if train_gpt.is_first():
                torch.save(results, folder / f"{shard}.pt")


def run_commands(commands: list[dict]) -> None:
    """Whole runs; one group of processes for all, since a second one can hang in PyTorch."""
    train_gpt.draw_curves = lambda path, *rest: path.touch()  # takes longer than the run
    with train_gpt.process_group(method_config(SMALL | {"shard": True})):
        for flags in commands:
            train_gpt.main_run(method_config(flags))


def full_state(model: GPT, optimizer: torch.optim.Optimizer) -> dict:
    state = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
    return copy.deepcopy(train_gpt.full_state(state))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    torch.set_num_threads(1)
    if sys.argv[1] == "cases":
        run_cases(Path(sys.argv[2]))
    else:
        run_commands(json.loads(sys.argv[2]))
    sys.exit()


# The tests ----------------------------------------------------------------------------------------


def torchrun(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Two processes of a script, and what they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def assert_same(found: dict, expected: dict, tolerance: float) -> None:
    """Equal texts and ids; numbers to a tolerance relative to the norm of their tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_same(found[name], value, tolerance)
        elif isinstance(value, torch.Tensor) and value.is_floating_point():
            error = (found[name] - value).norm() / value.norm()
            assert error < tolerance or value.norm() < 1e-12, (name, error)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def test_two_processes_take_the_step_of_one(tmp_path):
    """Catches means of means, rows lost or doubled or in another order, teachers that stay behind.

    Also a state that does not survive `full_state` and `load_full_state`, or that one process
    could not load.
    """
    done = torchrun(__file__, "cases", str(tmp_path))
    assert done.returncode == 0, done.stderr
    expected = {name: one_step(case_config(name, shard=False)) for name in CASES}
    for shard in (False, True):
        results = torch.load(tmp_path / f"{shard}.pt")
        for name in cases(shard):
            step, *models = expected[name]
            assert step["norm"] > 1e-3, name
            # Old log-probs and the weights of means are float32.
            assert_same(results[name], step, tolerance=1e-6)
        assert_same(results["loaded state"], results["state"], tolerance=1e-12)
        # Adam's first step is the sign of the gradient, whatever the rounding of its size.
        assert_same(results["state"], full_state(*models), tolerance=1e-4)


def test_runs_of_two_processes_end_with_the_checkpoint_of_one(tmp_path, capsys, monkeypatch):
    """Catches a run that hangs, a folder that both processes write, and weights saved in parts."""
    transformers = pytest.importorskip("transformers")
    from test_real_checkpoints import QWEN3, lines, text_tokenizer, write_lines

    tokenizer, init = text_tokenizer(), tmp_path / "init"
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=len(tokenizer) + 3, **QWEN3, **ids)
    transformers.Qwen3ForCausalLM(config).save_pretrained(init)
    tokenizer.save_pretrained(init)
    data = write_lines(tmp_path / "data.jsonl", lines())

    def flags(name: str, method: str, **rest) -> dict:
        small = {"steps": 2, "eval_every": 2, "micro_batch": 3, "chunk_tokens": 16, "threads": 1}
        return SMALL | small | {"method": method, "out_dir": str(tmp_path / name)} | rest

    text = {"init": str(init), "data": data}
    toy = {"pretrain_steps": 2, "cache_dir": str(tmp_path / "base")}
    commands = [
        flags("divided", "sdpo", shard=True, **text),
        flags("grpo", "grpo", shard=True, dtype="bfloat16", **text),
        flags("toy", "grpo", **toy),  # whole weights
    ]
    done = torchrun(__file__, "commands", json.dumps(commands))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written: ") == len(commands) and "FAIL" not in done.stdout
    monkeypatch.setattr(train_gpt, "draw_curves", lambda path, *rest: path.touch())
    train_gpt.main_run(method_config(flags("one", "sdpo", **text)))
    capsys.readouterr()
    names = {p.name for p in (tmp_path / "one").iterdir()}
    for name in ("divided", "grpo"):
        assert {p.name for p in (tmp_path / name).iterdir()} == names
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name / "checkpoint")
    assert (tmp_path / "toy" / "student.pt").exists()
    folders = [init, *(tmp_path / name / "checkpoint" for name in ("one", "divided"))]
    models = [minisd.load_hf(folder)[0] for folder in folders]
    start, one, divided = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
    # Adam turns the rounding of a gradient near 0 into a step; such weights are few.
    assert (divided - one).norm() < 1e-3 * (start - one).norm()
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "divided")]
    rows = [[json.loads(line) for line in text.splitlines()] for text in rows]
    assert [row["kind"] for row in rows[0]] == [row["kind"] for row in rows[1]]
    for left, right in zip(*([r for r in file if r["kind"] == "step"] for file in rows)):
        for name in ("loss", "grad_norm", "reward", "completion_tokens", "student_entropy"):
            assert right[name] == pytest.approx(left[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    "processes, flags, words",
    [
        (1, ["--shard"], "--shard: True; allowed: only with several processes (torchrun)"),
        (3, [], "--batch_size: 128; allowed: a multiple of 3, the number of processes"),
        (2, ["--device", "cpu:0"], "--device: 'cpu:0'; allowed: auto, cpu or cuda"),
        (2, ["--compare", "sdpo"], "--compare: not with torchrun"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused_in_one_line(
    processes, flags, words, tmp_path, monkeypatch, capsys
):
    """Catches a hang or a traceback where a setting does not fit the processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(SystemExit) as stop:
        train_gpt.main(flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_an_error_ends_all_processes_and_is_said_once(tmp_path):
    """Catches a process that waits for ever for one that has failed."""
    (tmp_path / "taken").touch()
    done = torchrun(train_gpt.__file__, "--device", "cpu", "--out_dir", str(tmp_path / "taken"))
    assert done.returncode == 1 and done.stderr.count("train_gpt.py: error: --out_dir: ") == 1
    assert done.stdout == "" and 'train_gpt.py", line' not in done.stderr
