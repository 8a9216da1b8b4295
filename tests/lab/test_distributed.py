"""Two processes under torchrun: a step is that of one process with the batches of both.

The launcher behind torchrun starts the worker below twice, once for all tests: it runs every case
and leaves what came of it in a folder, where the tests, which run the same cases in one process,
find it. Without CUDA the processes are forked, which saves their imports.
"""

import contextlib
import dataclasses
import faulthandler
import gc
import importlib
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed import launcher
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

import minisd
import toy_tasks
import train_gpt
from lab import base, distributed, hf, report, storage
from lab.evaluation import evaluate_all, seeded
from lab.flags import run_main
from minisd import GPT, METHODS, Batch, Completions, GPTConfig, Teacher, prompts_of
from toy_tasks import Toy, ToyTask, World

LIMIT_S = 200  # after which a worker that waits for the other says where, and ends
CPU = torch.device("cpu")
CASES = {  # name: settings; groups: the problems of each process
    **{r: {"method": "sdpo_grpo", "kl_coef": 0.3, "reduction": r, "micro_batch": 3}
       for r in minisd.REDUCTIONS},
    "odd groups, resampled": {"method": "sdpo_grpo", "groups": 3, "group_size": 2, "resample": 3,
                              "micro_batch": 4, "temperature": 2.0},
    "sequence": {"method": "sequence_kl", "importance_cap": 2.0, "reduction": "token_mean"},
    "snapshot": {"method": "sdft", "teacher": "snapshot", "teacher_every": 1, "chunk_tokens": 20,
                 "activation_checkpointing": True},
    "teacher writes": {"method": "opsd", "student_frac": 0.5, "micro_batch": 3,
                       "teacher": "trust_region", "teacher_update_rate": 0.3},
    "nothing for one": {"method": "sdft", "rewards_of": 0},  # only of this process are not all 0
}
# With divided weights once, whatever the reduction: totals are made before them.
SHARDS = [(name, shard) for name in CASES for shard in (False, True)
          if not shard or name not in [*minisd.REDUCTIONS][1:]]
# What fully_shard costs grows with the number of weights and of their shapes.
SHAPE = {"n_layers": 1, "width": 16, "head_dim": 4, "n_heads": 4, "n_kv_heads": 4, "mlp_width": 16}
EVALUATED = ["teacher writes", "snapshot"]
ADAPTED = {"shard": None, "method": "rlvr_teacher", "adapt_steps": 1}
RUNS = {  # name: flags of a whole run, and in which step it is stopped to be gone on with
    "whole": {}, "whole stopped": {"stop_in": 2},
    "divided": ADAPTED, "divided stopped": ADAPTED | {"stop_in": 3},
}
IMPORTED = ("torch._dynamo", *report.NEEDED, "torch.distributed.fsdp", "torch.distributed.tensor",
            "torch.distributed.checkpoint.state_dict")
TOY = {"method": "sdpo_grpo", "kl_coef": 0.5, "teacher_update_rate": 0.3, "pretrain_steps": 2,
       "world": "max_operations=2", "steps": 3}


class CoinTask(ToyTask):
    """Several end tokens and rewards that differ within groups, so that all gradients do."""

    end_ids = (toy_tasks.END_ID, *toy_tasks.encode("7; wait "))

    def __init__(self, rewards_of: int | None = None):
        super().__init__(World(max_operations=2), pool_size=8)
        self.worth = rewards_of in (None, distributed.rank())

    def reward(self, text, example):
        right = super().reward(text, example)  # of references, whatever the coin says
        return max(right, float(sum(map(ord, text)) % 2 and self.worth))


def case(name: str) -> train_gpt.Settings:
    """The settings of a case, for as many processes as there are."""
    fields = {"groups": 2, "group_size": 4, "max_new_tokens": 8, "grad_clip": 1e-3} | CASES[name]
    fields["batch_size"] = fields["groups"] * fields["group_size"] * distributed.processes()

    def made(kind, row: dict):
        own = {f.name for f in dataclasses.fields(kind)}
        return kind(**row | {k: v for k, v in fields.items() if k in own})

    method = made(minisd.Method, dataclasses.asdict(METHODS[fields["method"]]))
    return train_gpt.Settings(made(train_gpt.Run, {}), method, Toy(), made(hf.Checkpoint, {}))


class Recorder(torch.optim.AdamW):
    """Keeps the gradients with which it is asked to step."""

    def step(self):
        parameters = self.param_groups[0]["params"]
        self.gradients = [full(p.grad).clone() for p in parameters]
        super().step()


def full(x: torch.Tensor) -> torch.Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach()


def new_state(name: str, shard: bool) -> storage.State:
    """The state of training as it is after some steps, with a generator for each process."""
    settings, key = case(name), f"{name}-{distributed.rank()}"
    more = {"n_layers": 2, "qk_norm": True} if name in EVALUATED else {}
    shape = GPTConfig(len(toy_tasks.VOCABULARY), **SHAPE | more, head_std=0.5)
    student = GPT(shape, torch.Generator().manual_seed(0)).double()
    if settings.checkpoint.activation_checkpointing:
        distributed.checkpoint_blocks(student)
    student = distributed.spread(student, CPU, shard=shard)
    teacher = Teacher(settings.method, student, copied=distributed.copied)
    reference = distributed.copied(student).requires_grad_(False)
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(1.2)
    optimizer = Recorder(student.parameters(), lr=1e-2)
    return storage.State(
        student, teacher, reference, optimizer, random.Random(key), seeded(key, CPU))


def one_step(name: str, state: storage.State, batch: Batch | None = None) -> dict:
    """A step of the loop: its rows, gradients, norm and loss, and the teacher's weights after it.

    batch: instead of one that is drawn.
    """
    settings, seen, numbers = case(name), [], []

    def drawn(*arguments) -> Batch:
        seen.append(batch or rollout(*arguments))
        return seen[-1]

    def stepped(*arguments, **options) -> dict:
        numbers.append(step(*arguments, **options))
        return numbers[-1]

    rollout, step, task = minisd.rollout, minisd.step, CoinTask(CASES[name].get("rewards_of"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minisd, "rollout", drawn)
        patch.setattr(minisd, "step", stepped)
        train_gpt.train(settings, task, state, "a step", 1)
    result = {k: torch.tensor(v).double() for k, v in distributed.mean(numbers[0]).items()}
    clipped = settings.run.grad_clip / result["grad_norm"]
    result |= {f"gradient {i}": g / clipped for i, g in enumerate(state.optimizer.gradients)}
    result |= {f"{kind} {k}": full(v) for kind, model in state.teacher.copies.items()
               for k, v in model.state_dict().items()}
    return result | {"rows": distributed.gather(seen[0].rows)}


def evaluations(name: str, state: storage.State) -> list:
    """Of 3 completions, of which one process writes 2, and of one, of which it writes none."""
    with distributed.gathered(state.student, state.teacher):
        results = [evaluate_all(CoinTask(), state.student, state.teacher, count=n, seed=0,
                                sizes=case(name).sizes) for n in (3, 1)]
    return [[e.texts, e.rewards, e.means] for r in results for e in r.values()]


# The worker ---------------------------------------------------------------------------------------


def run_case(name: str, shard: bool) -> dict:
    state = new_state(name, shard)
    result = one_step(name, state)
    if name in EVALUATED:
        result["evaluated"] = distributed.gather(evaluations(name, state))
    return result


def run_commands(folder: Path, commands: list[dict]) -> None:
    """Whole runs, some of them stopped in a step and gone on with."""
    report.draw_curves = lambda path, *_: path.touch()  # takes longer than the run
    train_gpt.LOG_EVERY = 1
    base.SIZES["base"] = SHAPE
    distributed.process_group = lambda *_: contextlib.nullcontext()  # there is one already
    right = ToyTask.reward
    ToyTask.reward = lambda task, *pair: max(right(task, *pair), sum(map(ord, pair[0])) % 2.0)
    for flags in commands:
        out, stop_in = Path(flags["out_dir"]), flags.pop("stop_in", 0)
        if stop_in:
            said = distributed.gather(run_until_signal(words(flags), stop_in))
            distributed.on_first(lambda out=out: shutil.copytree(out, f"{out} copy") and None)
            if distributed.rank() == 0:
                (folder / f"{out.name}.json").write_text(json.dumps(said))
            else:  # as if this one saw an older state of the folder
                storage.checkpoint_files = lambda folder: []
            train_gpt.main(["--resume", str(out)])
        else:
            train_gpt.main(words(flags))


def run_until_signal(arguments: list[str], step: int) -> str:
    """The run until the second process has got a signal in that step, twice; what it says."""
    original, calls = minisd.step, []

    def signalled(method, *rest, **options):
        calls.append(None)
        if distributed.rank() and len(calls) == step:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        return original(method, *rest, **options)

    minisd.step = signalled
    try:
        train_gpt.main(arguments)
    except storage.Interrupted as stop:
        return str(stop)
    finally:
        minisd.step = original


def words(flags: dict) -> list[str]:
    """The command line of the flags; None: a switch."""
    return [f"--{k}" if v is None else f"--{k}={v}" for k, v in flags.items()]


def work(folder: Path, commands: list[dict]) -> None:
    """Everything; at the end a run that is refused, by the first process alone."""
    with distributed.process_group(CPU, True, 2, 1.0):
        results = {(name, shard): run_case(name, shard) for name, shard in SHARDS}
        if distributed.rank() == 0:
            torch.save(results, folder / "steps.pt")
        run_commands(folder, commands)
        train_gpt.main(["--device=cpu", f"--out_dir={folder / 'taken' / 'run'}"])


def worker(folder: Path, commands: list[dict]) -> None:
    """One of the two processes, from its start to its end."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=sys.__stderr__)
    gc.freeze()  # else every collection touches, so copies, the memory of all tests
    torch.set_num_threads(1)
    warnings.resetwarnings()  # errors are those of pytest
    with contextlib.ExitStack() as stack:
        for kind in ("stdout", "stderr"):
            file = stack.enter_context((folder / f"{kind}-{os.environ['RANK']}").open("w"))
            stack.enter_context(getattr(contextlib, f"redirect_{kind}")(file))
        run_main("worker", lambda _: work(folder, commands))


# The tests ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worked(tmp_path_factory) -> Path:
    """The folder in which two processes have done everything: their start takes longest."""
    folder = tmp_path_factory.mktemp("worked")
    (folder / "taken").touch()  # a file, below which no run's folder can be made
    commands = [run_flags(folder / name, **TOY | rest) for name, rest in RUNS.items()]
    commands += text_run(folder)
    start = "spawn" if torch.cuda.is_available() else "fork"
    for name in IMPORTED:  # once, and not in both
        importlib.import_module(name)
    config = launcher.LaunchConfig(
        1, 1, 2, DefaultLogsSpecs(str(folder / "logs")), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, start_method=start)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with pytest.raises(ChildFailedError) as failed:
        launcher.elastic_launch(config, worker)(folder, commands)
    for number, handler in handlers.items():  # the launcher leaves its own
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    rank, failure = failed.value.get_first_failure()
    (folder / "failure.json").write_text(json.dumps([rank, failure.exitcode]))
    return folder


def run_flags(folder: Path, **rest) -> dict:
    small = {"steps": 2, "eval_every": 3, "threads": 1,
             "batch_size": 8, "group_size": 4, "max_new_tokens": 8, "eval_problems": 2,
             "device": "cpu", "cache_dir": folder.parent / "base", "out_dir": folder}
    return {k: v if isinstance(v, (int, float)) or v is None else str(v)
            for k, v in (small | rest).items()}


def text_run(folder: Path) -> list[dict]:
    """The run of a tiny checkpoint with random weights; none without transformers."""
    if importlib.util.find_spec("transformers") is None:
        return []
    from test_real_checkpoints import make_checkpoint

    init, data = make_checkpoint(folder / "start")
    return [run_flags(folder / "text", method="sdpo_grpo", init=init, data=data, shard=None,
                      dtype="bfloat16", activation_checkpointing=None, learning_rate=1e-2,
                      micro_batch=3)]


def union(name: str, rows: list[list[minisd.Row]], state: storage.State) -> Batch:
    """What one process would have drawn: the rows of both."""
    settings, rows, task = case(name), [row for part in rows for row in part], CoinTask()
    sizes = dataclasses.replace(settings.sizes, groups=2 * settings.sizes.groups)
    batch = Batch(
        rows, {kind: prompts_of(task, rows, kind, CPU) for kind in settings.method.contexts},
        Completions.of([r.ids for r in rows], task.pad_id, CPU, [r.log_probs for r in rows]),
        torch.tensor([r.reward for r in rows]), sizes)
    minisd.weigh(settings.method, state.student, state.teacher, batch)
    return batch


@pytest.mark.parametrize("name, shard", SHARDS)
def test_a_step_of_two_processes_is_that_of_one_with_the_batches_of_both(name, shard, worked):
    """Catches means of means, a rank that is left out, and teachers that stay behind."""
    found = torch.load(worked / "steps.pt", weights_only=False)[name, shard]
    rows, state, _ = found.pop("rows"), new_state(name, shard=False), found.pop("evaluated", None)
    assert len(rows) == 2 and rows[0] != rows[1], "each process draws its own problems"
    expected = one_step(name, state, union(name, rows, state))
    assert expected["grad_norm"] > 1e-3 and expected.pop("rows")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        error = (found[key] - value).norm() / value.norm()
        assert error < 1e-6 or value.norm() < 1e-12, (key, error)  # weights of means: float32


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "divided"])
@pytest.mark.parametrize("name", EVALUATED)
def test_an_evaluation_does_not_depend_on_the_number_of_processes(name, shard, worked):
    """Catches completions that are lost, doubled or in another order, or of other uniforms."""
    found = torch.load(worked / "steps.pt", weights_only=False)[name, shard]
    state = new_state(name, shard=False)
    one_step(name, state, union(name, found["rows"], state))
    assert found["evaluated"] == [evaluations(name, state)] * 2


@pytest.mark.parametrize("name", [name for name in RUNS if "stopped" not in name])
def test_a_run_of_two_processes_goes_on_bit_for_bit(name, worked):
    """Catches processes that stop at different steps, and a state that is divided wrongly."""
    said = json.loads((worked / f"{name} stopped.json").read_text())
    assert said[0] == said[1] and "stopped by SIGTERM after step 2, which" in said[0]
    assert "torchrun --nproc_per_node 2 train_gpt.py --resume" in said[0]
    expected, found = outcome(worked / name), outcome(worked / f"{name} stopped")
    assert "checkpoints/step-00000002.pt" in found.pop("files") and expected.pop("files")
    assert found == expected


def test_each_process_draws_with_generators_of_its_own(worked):
    """Catches processes that all draw the same problems: as many steps, and less to learn from."""
    path = worked / "whole stopped copy" / "checkpoints" / "step-00000002.pt"
    training = torch.load(path, weights_only=True)["training"]
    for name in ("rngs", "generators"):
        first, second = map(list, training[name])
        assert first != second, name


def outcome(folder: Path) -> dict:
    """All that a run leaves, seconds aside: weights, metrics, summary, names of the files."""
    seconds = {"tokens_per_s", "step_ms", *storage.SPENT}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows.append(json.loads((folder / "summary.json").read_text()))
    weights = torch.load(folder / "student.pt", weights_only=True)["weights"]
    return {
        "weights": {name: tensor.tolist() for name, tensor in weights.items()},
        "rows": [{k: v for k, v in row.items() if k not in seconds} for row in rows],
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
    }


def test_a_run_goes_on_with_as_many_processes_alone(worked, monkeypatch):
    """Catches a run that goes on with the generators of some of its processes."""
    monkeypatch.chdir(worked)
    monkeypatch.setitem(base.SIZES, "base", SHAPE)
    before = sorted(Path("whole stopped copy").rglob("*"))
    with pytest.raises(ValueError, match=r"--resume: .* 2 processes") as error:
        train_gpt.main(["--resume", "whole stopped copy"])
    assert "\n" not in str(error.value)
    assert sorted(Path("whole stopped copy").rglob("*")) == before


def test_a_checkpoint_is_trained_in_parts(worked):
    """Catches weights that are saved in parts, in another dtype, or as they were."""
    transformers = pytest.importorskip("transformers")
    folders = worked / "start" / "model", worked / "text" / "checkpoint"
    start, model = map(transformers.AutoModelForCausalLM.from_pretrained, folders)
    assert model.dtype == torch.bfloat16
    pairs = zip(start.parameters(), model.parameters(), strict=True)
    moved = [(a - b.float()).abs().max() for a, b in pairs]
    assert min(moved) > 0.005 and max(moved) < 0.5
    rows = map(json.loads, (worked / "text" / "metrics.jsonl").read_text().splitlines())
    assert [row["kind"] for row in rows] == ["evaluation", "step", "step", "evaluation"]


def test_an_error_ends_all_processes_and_is_said_once(worked):
    """Catches one that waits for ever for one that has failed, or speaks of it as well."""
    assert json.loads((worked / "failure.json").read_text()) == [0, 2]  # rank, exit code
    said, out = ("".join((worked / f"{kind}-{rank}").read_text() for rank in (0, 1))
                 for kind in ("stderr", "stdout"))
    assert said.count("worker: error: --out_dir: ") == 1
    assert '/test_distributed.py", line' not in said
    assert out.count("written: ") == len(RUNS) + (worked / "text").exists()


@pytest.mark.parametrize(
    "processes, flags, words",
    [
        (1, ["--shard"], "--shard: True; allowed: only with several processes (torchrun)"),
        (3, [], "--batch_size: 16 problems; allowed: a multiple of 3, the number of processes"),
        (2, ["--batch_size", "16", "--student_frac", "0.5"], "--student_frac: "),
        (2, ["--device", "cpu:0"], "--device: 'cpu:0'; allowed: auto, cpu or cuda"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused_in_one_line(
    processes, flags, words, tmp_path, monkeypatch
):
    """Catches a hang or a traceback where a setting does not fit the processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ValueError) as error:
        train_gpt.main(flags)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


def test_in_one_process_nothing_is_shared():
    """Catches a single run that starts a process group, or changes its totals."""
    assert distributed.processes() == 1 and distributed.rank() == 0
    assert distributed.gather("a") == ["a"] and distributed.mean({"a": 2.0}) == {"a": 2.0}
    assert distributed.on_first(lambda: math.pi) == math.pi
