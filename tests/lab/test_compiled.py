"""Laws of --compile: the same texts, one compilation, and weights as they are now."""

import copy
import json

import pytest
import torch
from test_train_gpt import QUICK, words
from tiny import build_gpt, move, weights_of
from torch._inductor import config as inductor_config
from torch._inductor.cpp_builder import get_cpp_compiler

import minisd
import train_gpt
from lab import compiled, evaluation, flags, hf
from lab.compiled import CompiledGPT, compile_sampling, rounded_up
from lab.distributed import checkpoint_blocks
from lab.prefixes import share_prefixes
from minisd import GPT, Prompts

GROUPS = [[2, 3, 4, 5, 6]] * 4 + [[7, 8]] * 4 + [[9]] * 3  # equal prompts, left padding, B=11
SHORT = [[2, 3], [4], [5, 6, 7]]


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """Graphs are made and checked, and nothing is compiled: that takes longer than these tests."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    yield
    torch.compiler.reset()
    compiled.compiled_block.cache_clear()


def as_compiled(model: GPT) -> GPT:
    return compile_sampling(copy.deepcopy(model))


def written(terms: list, rows: list, seed: int = 0, **options) -> minisd.Completions:
    """Completions of (coefficient, model) terms; the second and later see a token more."""
    shown = [Prompts.of([[i + 1] * (i > 0) + row for row in rows], 0) for i in range(len(terms))]
    uniforms = torch.rand(len(rows), 24, generator=torch.Generator().manual_seed(seed))
    options = {"max_new_tokens": 24, "end_ids": (1,), "pad_id": 0, "uniforms": uniforms} | options
    return minisd.sample([(a, m, p) for (a, m), p in zip(terms, shown)], **options)


def assert_same(a: minisd.Completions, b: minisd.Completions, atol: float = 1e-6) -> None:
    assert torch.equal(a.ids, b.ids) and torch.equal(a.mask, b.mask)
    torch.testing.assert_close(a.token_log_probs, b.token_log_probs, atol=atol, rtol=0)


@pytest.mark.parametrize("backend_name", ["eager", "aot_eager"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("rows", [GROUPS, SHORT, [[3]]], ids=["groups", "short", "one"])
def test_a_compiled_step_writes_the_same(rows, temperature, backend_name, monkeypatch):
    """Positions, padding or empty keys that are seen or hidden wrongly; rows that are mixed up."""
    monkeypatch.setattr(compiled, "BACKEND", backend_name)
    model = build_gpt()  # grouped heads
    plain = written([(1.0, model)], rows, temperature=temperature)
    assert_same(plain, written([(1.0, as_compiled(model))], rows, temperature=temperature))
    if rows is GROUPS and temperature:
        lengths = plain.mask.sum(1)
        assert lengths.min() < 5 and lengths.max() > 12  # so that rows have been given up


@pytest.mark.parametrize("shape", [
    {"n_kv_heads": 4}, {"n_kv_heads": 1, "qk_norm": True}, {"qkv_bias": True, "mlp_bias": True},
    {"tied_embeddings": True, "n_layers": 3}, {"rope_factor": 0.8, "out_bias": True},
])
def test_every_form_of_a_model_is_the_same(shape):
    """Weights that the twin leaves out, or positions of another kind."""
    model = build_gpt(3, **shape)
    assert_same(written([(1.0, model)], GROUPS), written([(1.0, as_compiled(model))], GROUPS))


def test_a_loaded_checkpoint_is_compiled_and_goes_on_to_share_prefixes():
    """A class that takes the place of the other, so that --compile makes training slower."""
    model = share_prefixes(build_gpt())
    twin = as_compiled(model)
    assert_same(written([(1.0, model)], GROUPS), written([(1.0, twin)], GROUPS))
    seen = []
    twin.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    twin.hidden(torch.tensor([[2, 3, 4, 5], [2, 3, 4, 6]]))
    assert seen == [(1, 5, 12)]


def test_terms_of_two_models_are_the_same_and_may_be_mixed():
    """Caches that share their rows or positions: the second term has longer prompts."""
    a, b = build_gpt(1), build_gpt(2)
    plain = written([(0.7, a), (0.3, b)], GROUPS)
    a, b = as_compiled(a), as_compiled(b).requires_grad_(False)
    assert_same(plain, written([(0.7, a), (0.3, b)], GROUPS))
    assert_same(plain, written([(0.7, a), (0.3, build_gpt(2))], GROUPS))


def count_compilations(monkeypatch) -> list[int]:
    """Gets an entry for each graph that is compiled."""
    found = []

    def counting(graph, inputs):
        found.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", counting)
    compiled.check_compiler(counting, "cpu")
    found.clear()
    return found


def test_a_sampling_compiles_once_whatever_its_length_and_depth(monkeypatch):
    """A step that compiles anew for each position, row count, block, copy, or state of training."""
    found = count_compilations(monkeypatch)
    model = as_compiled(build_gpt(n_layers=4))
    written([(1.0, model)], GROUPS)
    assert len(found) == 1
    move(model, 0)
    model.eval()
    written([(1.0, model)], [*GROUPS, [5]], seed=1)  # 12 rows, as 11 are rounded to
    written([(1.0, copy.deepcopy(model).requires_grad_(False))], GROUPS, seed=2)
    written([(1.0, model)], [row[-1:] for row in GROUPS])  # 25 of 32 positions
    assert len(found) == 1
    written([(1.0, model)], SHORT)
    assert len(found) == 2


def test_weights_are_those_of_now():
    """A step that keeps the weights with which it was compiled, or rounds them once for all."""
    model = build_gpt(5, torch.float32)
    twin = as_compiled(model)
    for seed in range(3):
        for dtype in (None, torch.bfloat16):
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                atol = 0.1 if dtype else 1e-5
                plain, ours = (written([(1.0, m)], SHORT, seed, end_ids=(), temperature=0.0,
                                       max_new_tokens=3) for m in (model, twin))
            torch.testing.assert_close(
                plain.token_log_probs, ours.token_log_probs, atol=atol, rtol=0)
        for m in (model, twin):
            move(m, seed, 0.5)


def test_autocast_rounds_as_without_compile():
    """Weights in float32 at every token, or norms and embedding in bfloat16: other arithmetic."""
    model, seen = build_gpt(4, torch.float32), []
    ours = as_compiled(model)
    how = {"temperature": 0.0, "end_ids": (), "max_new_tokens": 6}
    real = CompiledGPT.hidden

    def spy(self, ids, cache=None):
        states = real(self, ids, cache)
        seen.append({name: w.dtype for name, w in cache.model.named_parameters()})
        assert cache.key_bias.dtype == torch.bfloat16
        return states

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(CompiledGPT, "hidden", spy)
        a, b = (written([(1.0, m)], GROUPS, **how) for m in (model, ours))
    assert_same(a, b, atol=0.02)
    for name, dtype in seen[-1].items():
        assert dtype == (torch.bfloat16 if "_proj" in name else torch.float32)
    assert {w.dtype for w in ours.parameters()} == {torch.float32}


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_modes_of_autograd_are_the_same(context):
    """A step that needs, or leaves behind, a graph of gradients."""
    model = build_gpt()
    with context():
        found = written([(1.0, as_compiled(model))], GROUPS)
    assert not found.token_log_probs.requires_grad
    assert_same(written([(1.0, model)], GROUPS), found)


def test_a_compiled_model_trains_and_is_saved_as_any_other():
    """A class that changes gradients, names of weights, or what a copy is."""
    model = build_gpt()
    ours = as_compiled(model)
    checkpoint_blocks(ours)
    written([(1.0, ours)], SHORT)
    ids = torch.tensor([[2, 3, 4], [5, 6, 7]])
    for m in (model, ours):
        m(ids).square().mean().backward()
    for (name, a), (other, b) in zip(model.named_parameters(), ours.named_parameters()):
        assert name == other and torch.equal(a.grad, b.grad)
    assert model.state_dict().keys() == ours.state_dict().keys()
    twin = copy.deepcopy(ours)
    assert type(twin) is CompiledGPT and vars(twin).keys() == vars(model).keys()
    assert_same(written([(1.0, model)], GROUPS), written([(1.0, twin)], GROUPS))


def test_evaluation_by_nucleus_is_the_same(monkeypatch):
    """A sampling that goes round the compiled step, or that it does not fit."""
    model = build_gpt()
    how = {"pick": evaluation.nucleus(0.8)}
    assert_same(written([(1.0, model)], GROUPS, **how),
                written([(1.0, as_compiled(model))], GROUPS, **how))


def test_sizes_are_rounded_to_few():
    """A size below what is asked for, or one that wastes more than a third."""
    assert [rounded_up(n) for n in range(1, 14)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    for n in range(1, 3000):
        assert n <= rounded_up(n) < 1.5 * n or n == 1
    assert len({rounded_up(n) for n in range(1, 4097)}) == 24


@pytest.mark.usefixtures("small_runs")
def test_a_run_is_the_same_with_compile(tmp_path, cache_dir):
    """A flag that does nothing, and a teacher, an evaluation or a step that it changes."""
    used, real = [], CompiledGPT.hidden

    def spy(self, ids, cache=None):
        used.append(cache is not None and cache.length > 0)
        return real(self, ids, cache)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledGPT, "hidden", spy)
        for flag in ("--no-compile", "--compile"):
            folder = tmp_path / flag
            train_gpt.main([*words(**QUICK | {"method": "gkd", "student_frac": 0.5,
                                              "off_policy": "teacher"},
                                   out_dir=folder, cache_dir=cache_dir), flag])
            rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            clocks = ("_s", "_ms", "_mib")
            found[flag] = [{k: v for k, v in row.items() if not k.endswith(clocks)}
                           for row in rows if row["kind"] in ("train", "evaluation")]
            assert (True in used) == (flag == "--compile")
    assert found["--compile"]
    assert str(found["--compile"]) == str(found["--no-compile"])


def test_compile_is_refused_in_one_line(monkeypatch, capsys):
    """A traceback of page length, or a flag that is silently without effect."""
    with pytest.raises(ValueError, match=r"^--compile: True; allowed: without --shard$"):
        hf.Checkpoint(compile=True, shard=True)
    monkeypatch.setattr(compiled.distributed, "processes", lambda: 2)
    with pytest.raises(ValueError, match=r"^--compile: 2 processes; allowed: one"):
        compile_sampling(build_gpt())
    monkeypatch.undo()
    with torch.device("meta"), pytest.raises(ValueError, match=r"^--compile: device meta"):
        compile_sampling(GPT(minisd.GPTConfig(5)))
    monkeypatch.setattr("sys.argv", ["train_gpt.py", "--compile", "--shard"])
    with pytest.raises(SystemExit) as stopped:
        flags.run_main("train_gpt.py", train_gpt.main)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and "--compile: True" in said


def test_a_machine_without_a_compiler_is_told_at_the_start(monkeypatch):
    """An error of a hundred lines, and only when the first token is sampled."""
    def broken(graph, inputs):
        raise RuntimeError("no g++\nhere")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with pytest.raises(ValueError, match=r"^--compile: nothing can be compiled .*no g.* here") as e:
        compile_sampling(build_gpt())
    assert "\n" not in str(e.value)


def has_compiler() -> bool:
    try:
        return bool(get_cpp_compiler())
    except Exception:
        return False


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of inductor, on its own code
def test_the_real_compiler_writes_the_same(monkeypatch):
    """Code that is generated wrongly, such as a cache that is copied and not written to."""
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setattr(inductor_config, "compile_threads", 1)  # no processes that stay
    model = build_gpt(width=8, mlp_width=8)
    assert_same(written([(1.0, model)], GROUPS), written([(1.0, as_compiled(model))], GROUPS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cuda_graph_writes_the_same():
    """A graph that reads memory which has moved, or repeats the first token."""
    model, rows = build_gpt().cuda(), Prompts.of(GROUPS, 0, "cuda")
    uniforms = torch.rand(len(GROUPS), 24, device="cuda")
    how = {"max_new_tokens": 24, "end_ids": (1,), "pad_id": 0, "uniforms": uniforms}
    ours = as_compiled(model)
    for _ in range(2):
        assert_same(*(minisd.sample([(1.0, m, rows)], **how) for m in (model, ours)))
        for m in (model, ours):
            move(m.cpu(), 1)
            m.cuda()
    assert torch.equal(weights_of(model), weights_of(ours))
