"""How far two precisions are apart: nothing from itself, something in bfloat16."""

import pytest
import torch
from test_text_data import examples, text_tokenizer

from lab import hf, precision
from lab.text_tasks import TextTask
from minisd import GPT, GPTConfig, Sizes

SIZES = Sizes(4, 1, 6, chunk_tokens=16)


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask(examples(solution="It is that."), text_tokenizer())


@pytest.fixture(scope="module")
def model(task) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=len(task.tokenizer), n_layers=1, width=16, n_heads=2,
                         n_kv_heads=1, head_dim=8, mlp_width=24))


def test_nothing_is_between_a_precision_and_itself(task, model):
    """Catches batches, weights or a teacher that differ between the two sides."""
    before = [p.clone() for p in model.parameters()]
    x = precision.compared(task, model, SIZES, "float32", 1e-3)
    assert x["logits_kl"] < 1e-6 and x["gradient_error"] < 1e-6
    assert x["kl_error_frac"] == x["gradient_norm_error_frac"] == x["loss_error_frac"] == 0
    assert all(map(torch.equal, before, model.parameters()))  # both began from these


def test_rounding_is_seen_and_two_batches_differ_by_more(task, model, capsys):
    """Catches a comparison that computes both sides in float32, or a batch with itself."""
    x = precision.compared(task, model, SIZES, "bfloat16", 1e-3)
    assert 0 < x["kl_error_frac"] < x["kl_other_batch_frac"]
    assert 1e-7 < x["gradient_error"] < x["gradient_other_batch"]
    assert 0 < x["loss_error_frac"] < 1
    assert len(x["losses"]["bfloat16"]) == precision.STEPS
    table = precision.table(x, "bfloat16")
    assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize("flag, value", [
    ("rows", "0"), ("max_new_tokens", "-1"), ("learning_rate", "nan"), ("threads", "-1"),
])
def test_a_number_that_cannot_be_is_refused(flag, value, tmp_path):
    words = ["--init", "x", "--data", "y", f"--{flag}", value, "--out_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=f"--{flag}: {value}; allowed: "):
        precision.main(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("supported, dtype", [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_decides_where_there_is_one(supported, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert hf.fast_dtype() == dtype


@pytest.mark.parametrize("can, dtype", [
    ({}, "float32"), ({"avx512_bf16": False}, "float32"), ({"avx512_bf16": True}, "bfloat16"),
    ({"amx_bf16": True}, "bfloat16"),
])
def test_bfloat16_is_the_default_where_the_processor_has_it(can, dtype, monkeypatch):
    """Catches a default that is several times slower than the other."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hf.fast_dtype() == dtype
