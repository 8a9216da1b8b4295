"""Two processes under torchrun do what one process does with the same global batch.

Started by torchrun, this file is the worker: it runs every case once and leaves what came of it in
a folder, where the tests, which run the same cases in one process, find it.
"""

import contextlib
import copy
import dataclasses
import faulthandler
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kill_and_resume import outcome

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
    "slices": {"method": "sdpo", "batch_size": 40},  # 20 rows for each, above minisd.SLICE_ROWS
    "odd groups": {"method": "sdpo_grpo", "batch_size": 6, "group_size": 2, "micro_batch": 2},
    "sequence_kl": {"method": "sequence_kl", "importance_cap": 2.0},
    "trust_region": {"method": "sdpo", "teacher": "trust_region", "teacher_update_rate": 0.3},
    "snapshot": {"method": "sdft", "teacher": "snapshot", "teacher_every": 1, "chunk_tokens": 7}
    | {"activation_checkpointing": True},
    "teacher writes": {"method": "opsd", "student_frac": 0.5},
    "resampled": {"method": "dapo", "resample": 3, "temperature": 2.0},
}


def cases(shard: bool) -> list[str]:
    """Every case once: the reductions of `sdpo` with whole weights, others divided."""
    return [name for name in CASES if name.startswith("sdpo") != shard]


def case_config(name: str, shard: bool):
    return dataclasses.replace(method_config(SMALL | CASES[name]), shard=shard)


def coin_grade(text, example):
    """A reward that differs within groups, so that the policy gradient is not zero."""
    right = toy_tasks.grade(text, example.answer).reward
    return toy_tasks.Grade(max(right, float(sum(map(ord, text)) % 2)), 0, False, False)


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
    """Whole runs, some of them interrupted in a step and resumed."""
    train_gpt.draw_curves = lambda path, *rest: path.touch()  # takes longer than the run
    train_gpt.LOG_EVERY, ToyTask.grade = 1, lambda task, *pair: coin_grade(*pair)
    for flags in commands:
        stop_in = flags.pop("stop_in", 0)
        config = method_config(flags)
        if stop_in:
            run_until_signal(config, stop_in)
            if not train_gpt.is_first():  # as if this one saw an older state of the folder
                train_gpt.checkpoint_files = lambda folder: []
        train_gpt.main_run(config, resume=stop_in > 0)


def run_until_signal(config, step: int) -> None:
    """The run until the second process has got a signal in that step, twice."""
    update, calls = train_gpt.update, []

    def signalled(*arguments):
        calls.append(None)
        if len(calls) == step and not train_gpt.is_first():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments)

    train_gpt.update = signalled
    with contextlib.suppress(train_gpt.Interrupted):
        train_gpt.run(config, quiet=True)
    train_gpt.update = update


def full_state(model: GPT, optimizer: torch.optim.Optimizer) -> dict:
    state = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
    return copy.deepcopy(train_gpt.full_state(state))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    torch.set_num_threads(1)
    with train_gpt.process_group(method_config(SMALL | {"shard": True})):
        run_cases(Path(sys.argv[1]))
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


def test_two_processes_do_what_one_does(tmp_path, capsys, monkeypatch):
    """Catches, in one start of two processes, which takes longer than all that they do:

    In a step: means of means, rows lost or doubled or in another order, teachers that stay behind,
    a state that does not survive `full_state` and `load_full_state`. In a run: one that hangs, a
    folder that both write, weights saved in parts. In an interrupted one: processes that stop at
    different steps, or go on with a teacher, reference or moments lost or divided wrongly.
    """
    monkeypatch.setattr(train_gpt, "draw_curves", lambda path, *rest: path.touch())
    monkeypatch.setattr(train_gpt, "LOG_EVERY", 1)
    toy = {"method": "sdpo_grpo", "kl_coef": 0.5, "teacher_update_rate": 0.3, "pretrain_steps": 2}
    toy |= {"cache_dir": str(tmp_path / "base"), "world": "max_operations=2", "steps": 3}
    runs = {"whole": {}, "whole resumed": {"stop_in": 2}}
    runs |= {f"{name}, divided": rest | {"shard": True} for name, rest in runs.items()}
    text = text_checkpoint(tmp_path)
    texts = {"divided": {"method": "sdpo"}, "grpo": {"method": "grpo", "dtype": "bfloat16"}}
    texts = {name: {"shard": True} | text | rest for name, rest in texts.items() if text}
    commands = [run_flags(tmp_path / name, **rest) for name, rest in texts.items()]
    commands += [run_flags(tmp_path / name, **toy, **rest) for name, rest in runs.items()]
    done = torchrun(__file__, str(tmp_path), json.dumps(commands))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written: ") == len(commands) and "FAIL" not in done.stdout

    compare_steps(tmp_path)
    # The same processes add the same numbers in the same order: not only to rounding.
    for name in ("whole", "whole, divided"):
        expected = outcome(tmp_path / name)
        found = outcome(tmp_path / name.replace("whole", "whole resumed"))
        assert "checkpoints/step-00000002.pt" in found.pop("files") and expected.pop("files")
        assert found == expected
    if text:
        train_gpt.main_run(method_config(run_flags(tmp_path / "one", method="sdpo", **text)))
        capsys.readouterr()
        compare_text_runs(tmp_path)


def run_flags(folder: Path, **rest) -> dict:
    small = {"steps": 2, "eval_every": 2, "micro_batch": 3, "chunk_tokens": 16, "threads": 1}
    return SMALL | small | {"out_dir": str(folder)} | rest


def text_checkpoint(folder: Path) -> dict:
    """--init and --data of a tiny model with random weights; nothing without transformers."""
    if importlib.util.find_spec("transformers") is None:
        return {}
    import transformers
    from test_real_checkpoints import QWEN3, lines, text_tokenizer, write_lines

    tokenizer, init = text_tokenizer(), folder / "init"
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=len(tokenizer) + 3, **QWEN3, **ids)
    transformers.Qwen3ForCausalLM(config).save_pretrained(init)
    tokenizer.save_pretrained(init)
    return {"init": str(init), "data": write_lines(folder / "data.jsonl", lines())}


def compare_steps(folder: Path) -> None:
    expected = {name: one_step(case_config(name, shard=False)) for name in CASES}
    for shard in (False, True):
        results = torch.load(folder / f"{shard}.pt")
        for name in cases(shard):
            step, *models = expected[name]
            assert step["norm"] > 1e-3, name
            # Old log-probs and the weights of means are float32.
            assert_same(results[name], step, tolerance=1e-6)
        assert_same(results["loaded state"], results["state"], tolerance=1e-12)
        # Adam's first step is the sign of the gradient, whatever the rounding of its size.
        assert_same(results["state"], full_state(*models), tolerance=1e-4)


def compare_text_runs(folder: Path) -> None:
    """Those of two processes, `divided` and `grpo`, with that of one."""
    import transformers

    names = {p.name for p in (folder / "one").iterdir()}
    for name in ("divided", "grpo"):
        assert {p.name for p in (folder / name).iterdir()} == names
        transformers.AutoModelForCausalLM.from_pretrained(folder / name / "checkpoint")
    folders = [folder / "init", *(folder / name / "checkpoint" for name in ("one", "divided"))]
    models = [minisd.load_hf(folder)[0] for folder in folders]
    start, one, divided = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
    # Adam turns the rounding of a gradient near 0 into a step; such weights are few.
    assert (divided - one).norm() < 1e-3 * (start - one).norm()
    rows = [(folder / name / "metrics.jsonl").read_text() for name in ("one", "divided")]
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


def test_rows_are_not_looked_for_by_one_process_alone(monkeypatch):
    """Catches a process that scores rows again while those whose rows are finite wait elsewhere."""
    monkeypatch.setattr(train_gpt, "processes", lambda: 2)
    assert "in one process" in train_gpt.guilty_rows(None, None, None)


def test_an_error_ends_all_processes_and_is_said_once(tmp_path):
    """Catches a process that waits for ever for one that has failed, or speaks of it as well."""
    (tmp_path / "taken").touch()
    folder = tmp_path / "taken" / "run"  # which the first process, and that one alone, makes
    done = torchrun(train_gpt.__file__, "--device", "cpu", "--out_dir", str(folder))
    assert done.returncode == 1 and done.stderr.count("train_gpt.py: error: --out_dir: ") == 1
    assert 'train_gpt.py", line' not in done.stderr
