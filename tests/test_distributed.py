"""Two processes under torchrun do what one process does with the same global batch.

Started by torchrun, this file is the worker: it runs every case once and leaves what came of it in
a folder, where the tests, which run the same cases in one process, find it.
"""

import copy
import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the worker, which pytest does not start

import toy_tasks
import train_gpt
from minisd import GPT, GPTConfig
from toy_tasks import ToyTask, World
from train_gpt import method_config

SMALL = {
    **{"batch_size": 8, "group_size": 4, "max_new_tokens": 12, "eval_problems": 3},
    **{"learning_rate": 1e-3, "device": "cpu"},
}
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
            for name in CASES:
                config = case_config(name, shard)
                results[name], student, optimizer = one_step(config)
            state = full_state(student, optimizer)
            again = tiny_student(config)
            optimizer = adamw(again)
            everywhere = train_gpt.on_first(lambda s=state: s)  # as if all had read the same file
            weights, moments = everywhere["weights"], everywhere["optimizer"]
            train_gpt.load_full_state(again, weights, optimizer, moments)
            results |= {"state": state, "loaded state": full_state(again, optimizer)}
            if train_gpt.is_first():
                torch.save(results, folder / f"{shard}.pt")


def run_commands(folder: Path, commands: list[list[str]]) -> None:
    """Runs that end with 0, then one whose folder only the first process finds taken."""
    for arguments in commands:
        train_gpt.main(arguments)
    (folder / "taken").touch()
    with pytest.raises(SystemExit) as stop:
        train_gpt.main([*commands[0], "--out_dir", str(folder / "taken")])
    (folder / f"exit-{train_gpt.distributed.get_rank()}").write_text(str(stop.value.code))


def full_state(model: GPT, optimizer: torch.optim.Optimizer) -> dict:
    state = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
    return copy.deepcopy(train_gpt.full_state(state))


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen, where = sys.argv[1], Path(sys.argv[2])
    run_cases(where) if chosen == "cases" else run_commands(where, json.loads(sys.argv[3]))
    sys.exit()


# The tests ----------------------------------------------------------------------------------------


def torchrun(*arguments: str) -> str:
    """What two processes of this file print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
    torchrun("cases", str(tmp_path))
    for shard in (False, True):
        results = torch.load(tmp_path / f"{shard}.pt")
        for name in CASES:
            expected, student, optimizer = one_step(case_config(name, shard=False))
            assert expected["norm"] > 1e-3, name
            # Old log-probs and the weights of means are float32.
            assert_same(results[name], expected, tolerance=1e-6)
        assert_same(results["loaded state"], results["state"], tolerance=1e-12)
        # Adam's first step is the sign of the gradient, whatever the rounding of its size.
        assert_same(results["state"], full_state(student, optimizer), tolerance=1e-4)
