"""Laws of the check of a GPU: every part runs, a difference is seen, and a CPU is no GPU."""

import json

import pytest
import torch
from test_benchmark import Theirs

from lab import base, compiled, gpu_check, peers
from lab.flags import run_main
from lab.peers import StepSizes
from minisd import GPT, Sizes
from toy_tasks import ToyTask, World

pytest.importorskip("transformers")
CPU = torch.device("cpu")
LEAST = gpu_check.Amount(Sizes(2, 2, 3), Sizes(1, 2, 3, micro_batch=2, chunk_tokens=9),
                         StepSizes(4, 2, 2), 1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """An untrained base model, stand-ins for what takes seconds to import or to compile."""
    model = GPT(base.shape_of("base"), torch.Generator().manual_seed(0))
    monkeypatch.setattr(base, "base_model", lambda *_, **how: (model, 0.0))
    monkeypatch.setattr(gpu_check, "SMALL", LEAST)
    monkeypatch.setattr(gpu_check.peers, "in_transformers", lambda model, dtype: Theirs())
    monkeypatch.setattr(peers, "has_trl", lambda: False)
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    yield
    torch.compiler.reset()
    compiled.compiled_block.cache_clear()


def toy() -> gpu_check.Subject:
    student = GPT(base.shape_of("base"), torch.Generator().manual_seed(0))
    return gpu_check.Subject("toy", student, ToyTask(World(), pool_size=8), LEAST.toy, 3e-4)


def test_every_part_runs_and_the_page_says_that_it_was_a_cpu(tmp_path, capsys):
    """Catches a part that fails, or is left out, and figures of a CPU that look like a GPU's."""
    peers.small_checkpoint(tmp_path / "model")
    words = ["--device", "cpu", "--init", str(tmp_path / "model"), "--data", str(peers.DATA)]
    gpu_check.main([*words, "--out_dir", str(tmp_path / "out")])
    page = (tmp_path / "out/gpu.md").read_text()
    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert gpu_check.ON_CPU in page and "GPU" not in found["machine"]
    for name in ("toy", "model"):
        assert f"## {name}\n" in page
        x = found[name]
        assert list(x["equality"]) == list(gpu_check.LIMITS)
        assert all(value <= 1e-5 for value in x["equality"].values())
        assert x["bfloat16"]["gradient_error"] > 0 and x["peak_mib"] > 0
        assert list(x["sampling"]["tokens_per_s"]) == [
            "minisd", "minisd --compile", "generate, dynamic cache", "generate, static cache"]
    assert set(found["step"]) == {"minisd", "minisd --compile"}
    assert "TOO MUCH" not in page.partition("bfloat16 against")[0]
    assert f"| {peers.TRL} | not installed |" in page
    assert page in capsys.readouterr().out


def test_a_device_that_computes_otherwise_is_seen(monkeypatch):
    """Catches a comparison of the CPU with itself."""
    subject, deepcopy = toy(), gpu_check.copy.deepcopy

    def wrong(model):
        twin = deepcopy(model)
        if model is subject.student:
            with torch.no_grad():
                twin.layers[0].mlp.down_proj.weight.add_(0.3)
        return twin

    monkeypatch.setattr(gpu_check.copy, "deepcopy", wrong)
    found = gpu_check.equality(subject, CPU)
    assert list(found) == list(gpu_check.LIMITS)
    assert all(value > gpu_check.LIMITS[name] for name, value in found.items())
    assert gpu_check.equality_table(found).count("TOO MUCH") == len(found)


def test_without_a_compiler_the_rest_is_measured(monkeypatch, tmp_path):
    """Catches a check that ends because of one missing program, and rows of what did not run."""
    def broken(graph, inputs):
        raise RuntimeError("no Triton")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    gpu_check.main(["--device", "cpu", "--out_dir", str(tmp_path)])
    page = (tmp_path / "gpu.md").read_text()
    assert "Without `--compile`: --compile: nothing can be compiled" in page and "no Triton" in page
    assert "| minisd --compile |" not in page and "the same with --compile" not in page


@pytest.mark.parametrize("words, said", [
    ([], "--device: 'cuda', and there is no GPU; allowed: cpu"),
    (["--device", "tpu"], "--device: 'tpu'; allowed: cuda, cpu"),
    (["--device", "cpu", "--init", "x"], "--init: 'x'; allowed: only with --data"),
])
def test_what_cannot_be_is_one_line(words, said, monkeypatch, capsys, tmp_path):
    """Catches figures of a CPU that nobody asked for, and a traceback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_check", *words, "--out_dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        run_main("python -m lab.gpu_check", gpu_check.main)
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1 and said in line
    assert not (tmp_path / "out").exists()
