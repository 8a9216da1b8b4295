"""Laws of the benchmark: every table at its smallest size, limits and slopes by hand."""

import collections
import dataclasses
import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import minisd
import toy_tasks
import train_gpt
from lab import base, benchmark, limits, timing
from lab.benchmark import SECTIONS, Amount, Shape, Stopwatch
from lab.flags import run_main
from lab.peers import StepSizes
from minisd import GPT, Batch, Completions, GPTConfig, KVCache, Prompts, Sizes

SMALL = GPTConfig(11, n_layers=3, width=12, n_heads=4, n_kv_heads=2, head_dim=6, mlp_width=10)
LEAST = Amount(
    repetitions=1, step_repetitions=1, sizes=Sizes(groups=2, group_size=2, max_new_tokens=3),
    toy_batches=(2,), shapes={"small": Shape(SMALL, (3,), 2, dtypes=("float32", "bfloat16"))},
    pretrain_steps=1, seeds=2,
    memory={"toy": (2, 3, 30)}, chunked=(16, 40, 5), growth={"batch": (2, 4), "width": (16, 32)})


@pytest.fixture
def untrained(monkeypatch):
    """A base model and documents that cost nothing."""
    model = GPT(base.shape_of("base"), torch.Generator().manual_seed(0))
    monkeypatch.setattr(base, "base_model", lambda *_, **how: (model, 0.0))
    batch = torch.randint(2, len(toy_tasks.VOCABULARY), (4, 6))
    monkeypatch.setattr(base, "pretrain_batches", lambda *_: itertools.repeat(batch))


def rows_of(text: str) -> list[list[str]]:
    """The cells of the tables in a text, without their headings."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [line for i, line in enumerate(lines) if "---" not in line[-1] and "---" not in
            (lines[i + 1][-1] if i + 1 < len(lines) else "")]


class Theirs:
    """Stands for a model of transformers, which takes seconds to import; writes the token 5."""

    def generate(self, ids, attention_mask, max_new_tokens, **options):
        assert attention_mask.shape == ids.shape and attention_mask[:, -1].all()
        assert options["eos_token_id"] in (None, toy_tasks.END_ID) and options["do_sample"]
        return torch.cat((ids, torch.full((len(ids), max_new_tokens), 5)), dim=1)


def test_sampling_compares_with_transformers_on_the_same_work(untrained, monkeypatch, tmp_path):
    """Catches a table without a row, and a ratio of other speeds than the two beside it."""
    dtypes = []

    def in_transformers(model, dtype):
        dtypes.append(dtype)
        return Theirs()

    monkeypatch.setattr(benchmark, "in_transformers", in_transformers)
    rows = rows_of(benchmark.sampling(LEAST, tmp_path))
    plain, half = "float32", "bfloat16"
    stops = [("toy", plain, "2", "after 3"), ("toy", plain, "2", "at the end token"),
             ("small", plain, "3", "after 2"), ("small", half, "3", "after 2")]
    assert [tuple(row[:4]) for row in rows] == stops
    assert dtypes == [torch.float32] * 3 + [torch.bfloat16]
    assert [row[-1] for row in rows] == ["3.5", "3.5", "1.5", "1.5"]
    for row in rows:
        ours, theirs, ratio = (float(x.replace(",", "")) for x in row[4:7])
        assert (row[7] == "-") == (row[3] == "at the end token") and row[7] != "0.00"
        assert ratio == pytest.approx(ours / theirs, rel=0.01, abs=0.01)


def test_prompts_come_in_groups():
    """Catches a batch of all different prompts, which no run with the default settings has."""
    numbers = iter(range(1, 99))
    shown = benchmark.in_groups(11, lambda: [next(numbers)])
    assert shown.ids[:, 0].tolist() == [1] * 8 + [2] * 3


def test_the_parts_of_a_step_add_up_to_the_whole(untrained, monkeypatch, tmp_path):
    """Catches a part that counts twice, and one that is not seen because its name has changed."""
    monkeypatch.setattr(benchmark, "beside_trl", lambda amount: "beside TRL")
    text = benchmark.step(LEAST, tmp_path)
    assert text.endswith("\n\nbeside TRL")
    sdpo, grpo = text.split("`grpo`")
    assert "4 completions" in sdpo and "4 completions" in grpo
    for text in (sdpo, grpo):
        ms = {row[0]: float(row[1]) for row in rows_of(text)}
        words = ("tokens", benchmark.PADDED)
        limits = [ms.pop(f"matrix products alone, {what}") for what in words]
        whole = ms.pop("whole step")
        assert ms.keys() == benchmark.PARTS.keys()
        assert sum(ms.values()) == pytest.approx(whole, abs=0.05 * len(ms) + 0.1)
        assert min(ms["sample"], ms["score"], ms["backward"], *limits) > 0
    assert torch.Tensor.backward.__name__ == "backward"  # nothing stays replaced


def test_a_step_stands_beside_that_of_trl(monkeypatch):
    """Catches another batch than the one that is named, and a ratio that is turned round."""
    asked = []

    def seconds(init, data, sizes, repetitions):
        asked.append((init.exists(), data.exists(), sizes, repetitions))
        return {"minisd": 0.05, benchmark.TRL: 0.6}

    monkeypatch.setattr(benchmark, "step_seconds", seconds)
    text = benchmark.beside_trl(dataclasses.replace(LEAST, beside_trl=StepSizes(4, 2, 3)))
    assert rows_of(text)[:2] == [["minisd", "50", "1.0"],
                                 ["TRL 1.16.0 SDPOTrainer, same batch", "600", "12.0"]]
    assert [row[0] for row in rows_of(text)[2:]] == [
        f"matrix products alone, {words}" for words in ("tokens", benchmark.PADDED)]
    assert asked == [(True, True, StepSizes(4, 2, 3), 1)]
    assert "4 completions of 3 tokens" in text


def test_pretraining_has_its_limit(untrained, tmp_path):
    """Catches a ratio that is not the one of the two speeds."""
    text = benchmark.pretraining(LEAST, tmp_path)
    (name, speed, _), (limit, most, _) = rows_of(text)
    assert (name, limit) == ("pretraining", "matrix products alone")
    ratio = float(most.replace(",", "")) / float(speed.replace(",", ""))
    said = float(text.split("limit = ")[1].split(", from 1 steps.")[0])
    assert said == pytest.approx(ratio, rel=0.01, abs=0.06)


def test_seeds_are_runs_of_the_training_command(monkeypatch, tmp_path):
    """Catches a flag that train_gpt.py does not know, and seeds that share a folder."""
    begun = []
    monkeypatch.setattr(
        benchmark, "in_parallel", lambda jobs, workers: [job(begun.append) for job in jobs])
    text = benchmark.seeds(LEAST, tmp_path)
    assert len(begun) == 4 and "2 seeds" in text
    runs = [train_gpt.parse(words[1:])[0].run for words in begun]
    assert [run.seed for run in runs] == [0, 0, 1, 0]
    assert len({run.folder for run in runs}) == 4
    assert {(run.method, run.steps, run.threads) for run in runs} == {("grpo", 20, 1)}


def test_memory_is_that_of_a_child_and_chunks_keep_the_gradient(monkeypatch, capsys, tmp_path):
    """Catches a peak without the step in it, and a gradient that is not the step's."""
    asked = []

    def here(code: str, *words: str) -> str:
        asked.append(words)
        if words:
            return "447"
        exec(code)
        return capsys.readouterr().out.splitlines()[-1]

    ticks = iter(range(100))
    monkeypatch.setattr(benchmark, "child", here)
    monkeypatch.setattr(benchmark, "peak_mib", lambda: next(ticks) ** 2)
    text = benchmark.memory(LEAST, tmp_path)
    assert rows_of(text) == [["toy", "2", "3", "30", "1", "1"]]  # 0 MiB before, 1 at the peak
    assert "peaks at 447 MiB" in text
    assert "plain 5 MiB, in chunks of 5 tokens 9 MiB, 1/0.6" in text  # 9 - 4, 25 - 16
    assert float(text.split("differ by ")[1].rstrip(".")) < 1e-5  # float32, other sums
    (words,) = filter(None, asked)
    run = train_gpt.parse(list(words[1:]))[0].run
    assert (words[0], run.method, run.steps) == ("train_gpt.py", "sdpo", 5)


def test_a_child_finds_the_package_and_says_what_went_wrong(monkeypatch, tmp_path):
    """Catches a child that depends on the folder in which the command was given."""
    monkeypatch.chdir(tmp_path)
    found = benchmark.child(
        "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]).origin)",
        "lab.benchmark")
    assert found == benchmark.__file__
    with pytest.raises(ValueError, match="a process failed: ZeroDivisionError"):
        benchmark.child("1 / 0")


def test_memory_is_in_mebibytes():
    """Catches kilobytes: with PyTorch a process holds more than 100 MiB, in a test less than 8 GiB.
    """
    assert 100 < benchmark.peak_mib() < 8192


def test_growth_draws_and_finds_its_exponents(monkeypatch, tmp_path):
    """Catches a slope of the first stretch, or one that is turned round."""
    times = {2: 1.0, 4: 4.0, 16: 1.0, 32: 2.0}
    monkeypatch.setattr(
        benchmark, "alternate", lambda steps, _: {size: times[size] for size in steps})
    rows = rows_of(benchmark.growth(LEAST, tmp_path))
    assert rows == [["batch", "1000 ms at 2", "4000 ms at 4", "2.00", "1"],
                    ["width", "1000 ms at 16", "2000 ms at 32", "1.00", "2"]]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_slope_is_an_exponent():
    """Catches the ratio of the times in place of the exponent: 8 times for twice the size is 3."""
    assert benchmark.slope(2, 1.0, 4, 8.0) == pytest.approx(3)
    assert benchmark.slope(10, 5.0, 1000, 5.0) == 0
    assert benchmark.slope(3, 1.0, 12, 2.0) == pytest.approx(0.5)


def test_products_are_those_of_the_model():
    """Catches a limit that leaves out a projection, grouped heads, or the backward pass."""
    shapes = limits.product_shapes(SMALL)
    block = [(12, 24), (12, 12), (12, 12), (24, 12), (12, 10), (12, 10), (10, 12)]
    assert shapes == block * 3 + [(12, 11)]
    model = GPT(SMALL)
    weights = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    assert sorted(shapes) == sorted((p.shape[1], p.shape[0]) for p in weights)
    macs = sum(i * o for i, o in shapes)
    for backward, times in ((False, 2), (True, 6)):  # two operations a product; three products
        with FlopCounterMode(display=False) as counter:
            limits.products(SMALL, 5, backward)()
        assert counter.get_total_flops() == times * 5 * macs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_of_decoding_multiplies_attends_and_draws(dtype, monkeypatch):
    """Catches a limit without attention, with that to one position, or with ungrouped heads."""
    attend, shapes = torch.nn.functional.scaled_dot_product_attention, []

    def seen(q, k, v, bias):
        shapes.append((*q.shape, *k.shape, *v.shape, q.dtype))
        return attend(q, k, v, bias)

    monkeypatch.setattr(limits.F, "scaled_dot_product_attention", seen)
    with FlopCounterMode(display=False) as counter:  # it does not know attention on a CPU
        limits.decoding(SMALL, 5, 9, dtype)()
    assert counter.get_total_flops() == 2 * 5 * sum(i * o for i, o in limits.product_shapes(SMALL))
    assert shapes == [(5, 2, 2, 6, 5, 2, 9, 6, 5, 2, 9, 6, dtype)] * SMALL.n_layers


class Counted(TorchDispatchMode):
    """How often each operation was called."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_the_rest_of_decoding_is_what_a_token_calls_and_no_more():
    """Catches a limit that asks for less than the model, or for operations that it does without."""
    model, pad = GPT(SMALL), torch.zeros(5, dtype=torch.long)
    cache = KVCache(model, pad, 9)
    model(torch.ones(5, 8, dtype=torch.long), cache)
    with Counted() as whole:
        logits = model(pad[:, None], cache)[:, -1]
        minisd.pick_token(logits, torch.full((5,), 0.5), 1.0)
        torch.log_softmax(logits, -1).gather(1, pad[:, None])
    with Counted() as rest:
        limits.decoding(SMALL, 5, 9, torch.float32)()
        limits.rest_of_decoding(SMALL, 5, torch.float32)()
    for name in ("embedding", "cat", "silu", "copy_", "_log_softmax", "mm", "addmm"):
        assert rest.calls[name] == whole.calls[name], name
    assert 0.6 < rest.calls.total() / whole.calls.total() < 1


def test_tokens_and_padding_are_counted_by_hand():
    """Catches padding that counts as work, and tokens of a completion counted for one model."""
    prompts, hinted = Prompts.of([[1], [1, 2]], 0), Prompts.of([[1, 2, 3], [1, 2, 3, 4, 5]], 0)
    written = Completions.of([[1, 2, 3], [1]], 0)
    batch = Batch([], {"none": prompts, "solution": hinted}, written, torch.zeros(2), Sizes())
    counts = benchmark.token_counts(batch)  # one part: completions of 3, prompts of 2 and 5
    assert counts == {("none", "tokens"): 7, ("none", benchmark.PADDED): 10,
                      ("solution", "tokens"): 12, ("solution", benchmark.PADDED): 16}


def test_a_stopwatch_counts_inner_work_once(monkeypatch):
    """Catches seconds of a part that count for the whole around it as well."""
    clock = iter([0.0, 10.0, 13.0, 20.0, 21.0, 30.0])
    monkeypatch.setattr(timing.time, "process_time", lambda: next(clock))
    watch = Stopwatch()
    inner = watch.timed("inner", lambda x: x + 1)
    assert watch.timed("outer", lambda x: inner(inner(x)))(5) == 7
    assert watch.seconds == {"inner": 4.0, "outer": 26.0}


def test_sections_replace_their_older_versions(monkeypatch, tmp_path, capsys):
    """Catches a command that forgets the other sections, or their order."""
    for name, text in (("growth", "first"), ("step", "second"), ("growth", "third\n\nfourth")):
        title = SECTIONS[name][0]
        monkeypatch.setitem(SECTIONS, name, (title, lambda amount, folder, text=text: text))
        benchmark.main([name, "--quick", "--out_dir", str(tmp_path)])
    text = (tmp_path / "benchmark.md").read_text()
    assert "first" not in text and "third\n\nfourth\n\n(" in text
    assert text.index("## A post-training step\n\nsecond") < text.index("## Growth\n\nthird")
    assert "2 cores" in text or "cores" in capsys.readouterr().out


def test_an_unknown_section_is_one_line(monkeypatch, capsys):
    """Catches a traceback for a slip of the keyboard."""
    monkeypatch.setattr("sys.argv", ["benchmark", "speed"])
    with pytest.raises(SystemExit) as stopped:
        run_main("python -m lab.benchmark", benchmark.main)
    assert stopped.value.code == 2
    assert "section: 'speed'; allowed: sampling, step" in capsys.readouterr().err


def test_the_median_is_taken_and_the_first_call_is_not_timed(monkeypatch):
    """Catches a mean, or a first call that pays for what is only made once."""
    clock = iter([0, 1, 0, 9, 0, 2])
    monkeypatch.setattr(timing.time, "process_time", lambda: next(clock))
    calls = []
    assert benchmark.alternate({"a": lambda: calls.append(1)}, 3) == {"a": 2}
    assert len(calls) == 4 and math.prod(calls) == 1


def test_the_toy_of_the_memory_table_is_the_toy():
    """Catches a table that is called toy and has another vocabulary."""
    assert benchmark.MEMORY["toy"][2] == len(toy_tasks.VOCABULARY)
