"""Real checkpoints: minisd against transformers, family by family; and what must be refused."""

import copy
import dataclasses
import json
import math
import random
import resource
from pathlib import Path

import pytest
import torch

import minisd
from lab import hf
from lab.flags import comments_of

transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

WORDS = ["<pad>", "<end>", "<unk>", *(f"w{i}" for i in range(60))]  # 63 of 67 embedding rows
SMALL = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 24,
}
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 24,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}
VARIATIONS = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN, "sliding_window": 64}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-biases": ("Qwen3", {"head_dim": 6, "attention_bias": True, "num_key_value_heads": 1}),
    "qwen3-yarn": ("Qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
}


def make_tokenizer(words: list[str] = WORDS):
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    table = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )


def make_model(variation: str, dtype: torch.dtype = torch.float32):
    """A random transformers model in which no parameter has the value of its initialisation."""
    family, changes = VARIATIONS[variation]
    config = getattr(transformers, f"{family}Config")(**SMALL | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise + (1.0 if parameter.dim() == 1 else 0.0))
    return model


@pytest.fixture(scope="module", params=VARIATIONS)
def checkpoint(request, tmp_path_factory) -> tuple[Path, object]:
    """Folder of a saved transformers model, and the model."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(request.param)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder, model


@pytest.fixture
def folder(tmp_path) -> Path:
    """A fresh Qwen3 checkpoint that a test may break."""
    make_model("qwen3").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same_tables(config: minisd.GPTConfig, rotary: torch.nn.Module, dtype=torch.float32) -> bool:
    """Whether the rotary tables are those of a module of transformers, to the last bit."""
    like = torch.zeros(1, dtype=dtype)
    cos, sin = minisd.rope_table(config, 100, like.device, dtype)
    left, right = sin.chunk(2, dim=-1)
    ours = cos, torch.cat((-left, right), dim=-1)  # the core keeps the first half negated
    theirs = rotary(like, torch.arange(100)[None])
    return all(torch.equal(a, b[0]) for a, b in zip(ours, theirs))


def random_ids(rows: int = 3, length: int = 41) -> torch.Tensor:
    return torch.randint(2, 63, (rows, length), generator=torch.Generator().manual_seed(5))


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, **changes) -> None:
    """Replaces tensors (dots of a name written as __), removes those that are None."""
    path = folder / "model.safetensors"
    tensors = safetensors_torch.load_file(path)
    for name, tensor in changes.items():
        tensors[name.replace("__", ".")] = tensor
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    safetensors_torch.save_file(tensors, path, metadata={"format": "pt"})


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# The same numbers ---------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_logits_equal_those_of_transformers(checkpoint, dtype, limit):
    """Catches a dropped bias or norm, swapped heads, a wrong rope scaling, an untied head."""
    folder, _ = checkpoint
    model, _ = hf.load(folder, dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = random_ids()
    error = relative_error(model(ids), theirs(ids).logits)
    assert error < limit, error


@torch.no_grad()
def test_greedy_completions_of_left_padded_prompts_equal_those_of_transformers(checkpoint):
    """Catches attention to padding, and queries that meet the wrong key head."""
    folder, theirs = checkpoint
    model, tokenizer = hf.load(folder)
    prompts = minisd.Prompts.of([random_ids(1, n)[0].tolist() for n in (3, 11, 7)], pad_id=0)
    ends = (tokenizer.eos_token_id,)
    ours = minisd.sample(
        [(1.0, model, prompts)], max_new_tokens=20, end_ids=ends, pad_id=0, temperature=0)
    P = prompts.ids.shape[1]
    mask = (torch.arange(P) >= prompts.pad_count[:, None]).long()
    expected = theirs.generate(prompts.ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    assert ours.ids.tolist() == expected[:, P : P + ours.ids.shape[1]].tolist()


@torch.no_grad()
def test_saved_checkpoint_gives_the_same_logits_in_transformers(checkpoint, tmp_path):
    """Catches parts split at wrong rows, a lost tensor or config field, a renamed one."""
    folder, theirs = checkpoint
    model, tokenizer = hf.load(folder)
    hf.save(model, tokenizer, tmp_path / "saved")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report.values()), report
    ids = random_ids()
    assert torch.equal(again(ids).logits, theirs(ids).logits)
    before, after = (
        json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "saved")
    )
    assert {k: v for k, v in before.items() if k != "dtype"}.items() <= after.items()
    stored, written = (
        safetensors_torch.load_file(f / "model.safetensors") for f in (folder, tmp_path / "saved")
    )
    assert stored.keys() == written.keys()
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved").encode("w3 w59")
    assert encoded == tokenizer.encode("w3 w59")


@pytest.mark.parametrize("variation", VARIATIONS)
def test_rotary_tables_equal_those_of_transformers_to_the_last_bit(variation, tmp_path):
    """Catches tables computed in bfloat16 or with operations in another order."""
    theirs = make_model(variation)
    theirs.config.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", architectures=[type(theirs).__name__])
    config = hf.read_config(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        assert same_tables(config, theirs.model.rotary_emb, dtype)


@pytest.mark.parametrize(
    "changes",
    [
        {"truncate": False},
        {"beta_fast": 8.0, "beta_slow": 2.0},
        {"mscale": 1.2, "mscale_all_dim": 0.7},
        {"factor": 0.5},
        {"factor": None},
    ],
    ids=str,
)
def test_every_yarn_field_counts_as_in_transformers(changes, tmp_path):
    """Catches a yarn field that is read by transformers and ignored here."""
    # Heads wide enough for pairs on both sides of the ramp, which must not begin at a whole number.
    config = transformers.Qwen3Config(**SMALL, head_dim=64, architectures=["Qwen3ForCausalLM"])
    config.save_pretrained(tmp_path)
    long = {**YARN, "original_max_position_embeddings": 4096}
    edit_json(tmp_path / "config.json", rope_parameters={**long, **changes})
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    rotary = transformers.models.qwen3.modeling_qwen3.Qwen3RotaryEmbedding(config)
    assert same_tables(hf.read_config(tmp_path), rotary)


def test_old_form_of_rope_fields_means_the_same(folder):
    """Catches checkpoints of 2023-2025 read with the default theta and no scaling."""
    path = folder / "config.json"
    edit_json(path, rope_parameters=YARN)
    new = hf.read_config(folder)
    fields = json.loads(path.read_text())
    del fields["rope_parameters"]
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
    path.write_text(json.dumps(fields | {"rope_theta": 1e6, "rope_scaling": scaling}))
    assert hf.read_config(folder) == new
    assert new.rope_frequencies[-1] < 1e6 ** (-7 / 8) < new.rope_frequencies[0] == 1.0


def test_norm_rounds_as_transformers_does():
    """Catches a norm that multiplies before it rounds to bfloat16, or is not in float32 inside."""
    x = 30 * torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    theirs = transformers.models.llama.modeling_llama.LlamaRMSNorm(32, eps=1e-6).bfloat16()
    ours = minisd.RMSNorm(32, eps=1e-6).bfloat16()
    for norm in (ours, theirs):
        norm.weight.data.copy_(torch.linspace(0.3, 1.7, 32))
    assert torch.equal(ours(x), theirs(x))


# Loading ------------------------------------------------------------------------------------------


def test_shards_equal_one_file(folder, tmp_path):
    """Catches a sharded checkpoint of which only one file is read."""
    make_model("qwen3").save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    make_tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    ours, expected = (hf.load(f)[0].state_dict() for f in (tmp_path / "shards", folder))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    next((tmp_path / "shards").glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"index.json: .*model-00002-of") as error:
        hf.load(tmp_path / "shards")
    one_line(error)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    for name in {f for tensor, f in index["weight_map"].items() if ".layers.1." in tensor}:
        (tmp_path / "shards" / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"index.json: ") as error:  # not: too many layers
        hf.load(tmp_path / "shards")
    one_line(error)


def test_tied_head_is_one_tensor(folder):
    """Catches a head that stops following the embedding once it is trained."""
    model, _ = hf.load(folder)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())


def test_tied_head_may_be_stored_if_it_is_the_embedding(folder):
    """Catches a refusal of harmless doubles, and silence about a head that is another tensor."""
    embedding = safetensors_torch.load_file(folder / "model.safetensors")
    embedding = embedding["model.embed_tokens.weight"]
    edit_weights(folder, lm_head__weight=embedding.clone())
    hf.load(folder)
    edit_weights(folder, lm_head__weight=embedding + 1)
    with pytest.raises(ValueError, match=r"lm_head.weight is not the embedding") as error:
        hf.load(folder)
    one_line(error)


REFUSED = {
    "architecture": ({"architectures": ["Gemma2ForCausalLM"]}, "architectures"),
    "other head": ({"architectures": ["Qwen3ForSequenceClassification"]}, "architectures"),
    "no architecture": ({"architectures": None}, "architectures"),
    "model type": ({"model_type": "qwen3_moe"}, "model_type"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "window": (
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "sliding",
    ),
    "layer types": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    "dynamic rope": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "rope_type 'dynamic'; allowed: 'default' or 'linear'",
    ),
    "unknown rope": (
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
        "rope_type 'spiral'",
    ),
    "rope lacks a factor": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
        "factor",
    ),
    "part of a head turns": (
        {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    "old part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "odd head": ({"head_dim": 3}, "head_dim: 3; allowed: .* an even"),
    "groups": ({"num_key_value_heads": 3}, "num_key_value_heads: 3"),
    "wrong type": ({"hidden_size": "big"}, "hidden_size"),
    "negative width": ({"intermediate_size": -1}, "intermediate_size: -1; allowed"),
    "endless layers": ({"num_hidden_layers": 10**30}, "num_hidden_layers"),
    "rope without end": (
        {"rope_scaling": {"rope_type": "linear", "factor": 0.0}},
        "rope parameters .*not finite",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_config_that_would_change_the_numbers_is_refused(folder, case):
    """Catches a checkpoint that loads without complaint and computes something else."""
    changes, field = REFUSED[case]
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=field) as error:
        hf.load(folder)
    assert str(folder / "config.json") in one_line(error)


ANYTHING = [
    None, True, False, 0, 1, 2, 3, 7, -1, 10**30, 0.5, -0.0, 1e300, 1e-300, math.nan, math.inf,
    "", "a", "8", "linear", "yarn", "\0", [], ["a"], [[[]]], {}, {"a": 1}, LINEAR, YARN, LLAMA3,
]


def test_broken_configs_get_one_line(folder):
    """Catches a traceback out of transformers or torch, and a model with nan in its positions."""
    rng, accepted, path = random.Random(0), 0, folder / "config.json"
    good = json.loads(path.read_text())
    for _ in range(150):
        config = dict(good, rope_parameters=dict(rng.choice([LINEAR, YARN, LLAMA3])))
        for _ in range(rng.choice((1, 1, 2))):
            inside = isinstance(config.get("rope_parameters"), dict) and rng.random() < 0.3
            target = config["rope_parameters"] if inside else config
            name = rng.choice([*target, *(() if inside else hf.FIELDS.values())])
            target[name] = rng.choice(ANYTHING)
        path.write_text(json.dumps(config))
        try:
            read = hf.read_config(folder)
        except ValueError as error:
            message = str(error)
            assert str(path) in message and len(message.splitlines()) == 1, (config, message)
            assert len(message) < 600, message
        else:
            accepted += 1
            with torch.device("meta"):
                minisd.GPT(read)
            tables = minisd.rope_table(read, 3, torch.device("cpu"), torch.float32)
            assert all(table.isfinite().all() for table in tables)
    assert 15 < accepted < 100


def test_sliding_window_in_use_is_refused_for_mistral(tmp_path):
    """Catches Mistral 7B v0.1 taken for a model that sees everything."""
    config = transformers.MistralConfig(**SMALL, architectures=["MistralForCausalLM"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sliding_window 4096; allowed: None"):
        hf.load(tmp_path)


PUBLISHED = {  # the fields of well-known checkpoints that say something besides sizes
    "Llama-2-7b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "pretraining_tp": 1,
        "rope_scaling": None, "rms_norm_eps": 1e-5, "torch_dtype": "float16",
    },
    "Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False,
        "attention_bias": False, "head_dim": 8, "rope_theta": 5e5, "tie_word_embeddings": True,
        "eos_token_id": [3, 5], "torch_dtype": "bfloat16", "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64, "rope_type": "llama3",
        },
    },
    "SmolLM2-135M": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "is_llama_config": True,
        "rope_interleaved": False, "rope_theta": 1e5, "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "Mistral-7B-v0.3": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral",
        "sliding_window": None, "rope_theta": 1e6, "head_dim": 8,
    },
    "Qwen2.5-7B": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_mrope": False,
        "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28,
    },
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16,
        "sliding_window": None, "use_sliding_window": False, "max_window_layers": 28,
        "rope_scaling": None, "rope_theta": 1e6, "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_as_published_are_accepted(tmp_path, name):
    """Catches a refusal of fields that are present but change nothing, and a theta that is lost."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL | PUBLISHED[name]))
    config = hf.read_config(tmp_path)
    assert config.rope_theta == PUBLISHED[name].get("rope_theta", 1e4)
    assert (config.rope_frequencies is not None) == bool(PUBLISHED[name].get("rope_scaling"))
    assert config.tied_embeddings == PUBLISHED[name].get("tie_word_embeddings", False)


NORM = "model__layers__1__self_attn__q_norm__weight"
MISFITS = {
    "missing": ({NORM: None}, "layers.1.self_attn.q_norm.weight is missing"),
    "surplus": ({"model__layers__2__up": torch.ones(2)}, "model.layers.2.up is surplus"),
    "shape": ({NORM: torch.ones(5)}, r"q_norm.weight is \(5,\), not \(16,\)"),
    "dtype": ({NORM: torch.ones(16, dtype=torch.int8)}, "q_norm.weight is I8; allowed: F32, BF16"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_do_not_fit_are_named(folder, case):
    """Catches weights left at random, or layers of the file left out."""
    changes, message = MISFITS[case]
    edit_weights(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        hf.load(folder)
    one_line(error)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_named_with_their_file(folder, tmp_path, value):
    """Catches a run that ends with the advice to lower the learning rate."""
    edit_weights(folder, **{NORM: torch.tensor([1.0] * 15 + [value])})
    with pytest.raises(ValueError) as error:
        hf.load(folder)
    assert one_line(error) == (
        f"{folder / 'model.safetensors'}: {NORM.replace('__', '.')} has values that are NaN or "
        "infinite; allowed: finite numbers")


def test_numbers_that_are_none_are_found_in_any_shard_and_type(tmp_path):
    """Catches a look at the first file alone, and float16 that is not looked at."""
    model = make_model("llama2", torch.float16)
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = math.inf
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    make_tokenizer().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(ValueError, match=f"{index[name]}: {name} has values") as error:
        hf.load(tmp_path)
    one_line(error)


OVERSIZED = {  # what config.json says, against what the files have
    "width": ({"hidden_size": 10**9}, "hidden_size: 1000000000; allowed: 32, as model.embed"),
    "vocabulary": ({"vocab_size": 10**11}, "vocab_size: 100000000000; allowed: 67, as"),
    "mlp": ({"intermediate_size": 10**9}, "intermediate_size: 1000000000; allowed: 48, as"),
    "head": ({"head_dim": 10**9}, "num_attention_heads x head_dim 1000000000: 4000000000; allowed"),
    "heads": ({"num_attention_heads": 10**9}, "num_attention_heads x head_dim 16: 16000000000"),
    "key heads": ({"num_key_value_heads": 4}, "num_key_value_heads x head_dim 16: 64; allowed: 32"),
    "layers": (
        {"num_hidden_layers": 900, "layer_types": ["full_attention"] * 900},
        "num_hidden_layers: 900; allowed: 2, as the weights",
    ),
    "yarn": ({"head_dim": 10**9, "rope_parameters": YARN}, "head_dim 1000000000: 4000000000"),
    "norm": ({"rms_norm_eps": 1e300}, "rms_norm_eps: 1e\\+300; allowed: a number, 0 to"),
}


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("case", OVERSIZED)
def test_sizes_that_the_files_do_not_have_are_refused_before_they_are_allocated(
    case, shards, folder, monkeypatch
):
    """Catches a machine that swaps to death over a wrong number in config.json."""
    changes, said = OVERSIZED[case]
    if shards:
        (folder / "model.safetensors").unlink()
        make_model("qwen3").save_pretrained(folder, max_shard_size="10KB")
    edit_json(folder / "config.json", **changes)
    for name in ("GPT", "read_tokenizer", "read_weights", "rope_table"):
        monkeypatch.setattr(hf, name, lambda *_: pytest.fail("it goes on"))
    with pytest.raises(ValueError, match=said) as error:
        hf.load(folder)
    assert one_line(error).startswith(f"{folder / 'config.json'}: refused (")


def test_a_file_is_no_checkpoint(folder):
    """Catches a file's path that is looked up on the hub."""
    for path in (folder / "config.json", folder / "model.safetensors"):
        with pytest.raises(ValueError, match="a file; allowed: a checkpoint's folder") as error:
            hf.load(path)
        one_line(error)
        with pytest.raises(ValueError, match=r"--init: .*; allowed: a checkpoint's"):
            hf.Checkpoint(init=str(path), data=__file__)


def test_early_llama_buffers_are_no_surplus(folder):
    """Catches a refusal of Llama 2 conversions that stored their rotary frequencies."""
    edit_weights(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    model, _ = hf.load(folder)
    assert not any("inv_freq" in name for name in model.state_dict())


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_damaged_weights_are_named(folder, damage):
    """Catches a download that broke off half-way."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    keep = {"truncated": content[:-100], "header": b"\xff" * 64 + content[64:], "empty": b""}
    path.write_bytes(keep[damage])
    with pytest.raises(ValueError, match="not a complete safetensors file") as error:
        hf.load(folder)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[]", "{}"])
def test_damaged_json_is_named(folder, name, content):
    """Catches a traceback out of the json module that names no file."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / name).write_text(content)
    with pytest.raises(ValueError) as error:
        hf.load(folder)
    assert str(folder / name) in one_line(error)


def test_pickles_are_not_opened(folder):
    """Catches code of a stranger run by torch.load."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickles.*save_pretrained") as error:
        hf.load(folder)
    one_line(error)


def test_tokenizer_larger_than_the_embedding_is_refused(folder):
    """Catches an index error, or worse none, in the middle of a run."""
    make_tokenizer([*WORDS, *"abcde"]).save_pretrained(folder)
    with pytest.raises(ValueError, match="tokenizer id 67; allowed: below vocab_size 67") as error:
        hf.load(folder)
    one_line(error)


def test_folder_without_tokenizer_is_refused(folder):
    """Catches the empty tokenizer that transformers hands out for a folder without one."""
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="no usable tokenizer") as error:
        hf.load(folder)
    one_line(error)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer; allowed: a folder with"):
        hf.load(folder)


def test_names_are_downloaded_without_pickles(folder, monkeypatch):
    """Catches gigabytes of .bin or .pth files fetched, and a page of error for a mistyped name."""
    from fnmatch import fnmatch

    wanted = []

    def download(name, allow_patterns):
        if name == "no/such":
            raise OSError("404\nnot found")
        wanted.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert hf.load("some/name")[0].config.n_layers == 2
    with pytest.raises(ValueError, match=r"no/such: no such folder.*404 not found") as error:
        hf.load("no/such")
    one_line(error)
    fetched = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "merges.txt"]
    left = ["pytorch_model.bin", "consolidated.00.pth", "consolidated.safetensors", "modeling.py"]
    assert all(any(fnmatch(name, p) for p in wanted) for name in fetched)
    assert not any(any(fnmatch(name, p) for p in wanted) for name in left)


# Saving -------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_saving_over_an_older_checkpoint_replaces_it_and_leaves_nothing_else(folder):
    """Catches files of two checkpoints mixed in one folder, and forgotten scratch folders."""
    model, tokenizer = hf.load(folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"old")
    with torch.no_grad():
        model.norm.weight.mul_(2)
    hf.save(model, tokenizer, folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert not list(folder.glob("*-of-*"))
    assert torch.equal(hf.load(folder)[0].norm.weight, model.norm.weight)


def test_generation_config_survives(folder, tmp_path):
    """Catches several end tokens of a chat model reduced to one."""
    edit_json(folder / "generation_config.json", eos_token_id=[1, 7], temperature=0.6)
    before = json.loads((folder / "generation_config.json").read_text())
    hf.save(*hf.load(folder), tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text()) == before
    (folder / "generation_config.json").unlink()
    hf.save(*hf.load(folder), tmp_path / "saved")
    after = transformers.GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (after.eos_token_id, after.pad_token_id) == (1, 0)


def test_a_copy_keeps_what_the_checkpoint_said(folder, tmp_path):
    """Catches a teacher that is saved as a toy, without its template of positions."""
    edit_json(folder / "config.json", rope_parameters=YARN, some_field="kept")
    model, tokenizer = hf.load(folder)
    hf.save(copy.deepcopy(model), tokenizer, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["some_field"] == "kept" and saved["rope_parameters"] == YARN
    assert hf.load(tmp_path / "saved")[0].config == model.config


def test_scaled_positions_without_a_checkpoint_are_not_saved(tmp_path):
    """Catches a checkpoint whose positions are those of another model."""
    model = minisd.GPT(minisd.GPTConfig(vocab_size=9, rope_frequencies=(0.1,) * 8))
    with pytest.raises(ValueError, match="rope_frequencies: set; allowed: None") as error:
        hf.save(model, None, tmp_path / "toy")
    one_line(error)
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize(
    "generation, expected", [([3, 1, 7], (1, 3, 7)), (7, (1, 7)), ("no file", (1, 9))], ids=str
)
def test_end_tokens_are_those_of_tokenizer_and_checkpoint(generation, expected, folder):
    """Catches chat models that write on behind the end of their turn."""
    edit_json(folder / "config.json", eos_token_id=9)
    if generation == "no file":
        (folder / "generation_config.json").unlink()
    else:
        edit_json(folder / "generation_config.json", eos_token_id=generation)
    model, tokenizer = hf.load(folder)
    assert hf.end_ids(model, tokenizer) == expected


def test_saved_dtype_is_that_of_the_weights(folder, tmp_path):
    """Catches bfloat16 weights that are announced, and then loaded, as float32."""
    hf.save(*hf.load(folder, dtype=torch.bfloat16), tmp_path / "saved")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert written["torch_dtype"] == "bfloat16" and "dtype" not in written


def test_full_disk_leaves_the_old_checkpoint(folder):
    """Catches a save that destroys the last good weights when it cannot write the new ones."""
    model, tokenizer = hf.load(folder)
    before = contents(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # bytes; the weights are larger
    try:
        with pytest.raises(OSError, match="not saved"):
            hf.save(model, tokenizer, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("error", [OSError("busy"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("point", ["weights", "tokenizer", "rename"])
def test_save_that_is_cut_off_leaves_the_old_checkpoint(folder, monkeypatch, error, point):
    """Catches an old folder that is moved away and not moved back."""
    model, tokenizer = hf.load(folder)
    before, rename = contents(folder), Path.rename

    def fail(path, *_):
        if path.name == "new" or point == "tokenizer":
            raise error
        return rename(path, *_)

    def fail_halfway(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise error

    if point == "weights":
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail_halfway)
    elif point == "tokenizer":
        tokenizer.save_pretrained = fail
    else:
        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(type(error)):
        hf.save(model, tokenizer, folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_folder_that_is_no_checkpoint_is_not_replaced(folder, tmp_path):
    """Catches a home directory deleted by a mistyped output folder."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("dear diary")
    model, tokenizer = hf.load(folder)
    for path in (tmp_path / "notes", tmp_path / "notes" / "a.txt"):
        with pytest.raises(ValueError, match="allowed: a new folder") as error:
            hf.save(model, tokenizer, path)
        one_line(error)
    assert (tmp_path / "notes" / "a.txt").read_text() == "dear diary"


@torch.no_grad()
@pytest.mark.parametrize(
    "changes, family",
    [
        ({}, "llama"),
        ({"qkv_bias": True, "out_bias": True, "mlp_bias": True}, "llama"),
        ({"qkv_bias": True, "rope_theta": 1e6}, "qwen2"),
        ({"qk_norm": True, "tied_embeddings": True}, "qwen3"),
        ({"qk_norm": True, "qkv_bias": True, "out_bias": True}, "qwen3"),
    ],
)
def test_toy_model_is_saved_as_the_family_that_has_its_block(tmp_path, changes, family):
    """Catches a toy checkpoint that only minisd can read."""
    config = minisd.GPTConfig(vocab_size=67, n_kv_heads=2, width=32, head_dim=8, init_std=0.2)
    config = dataclasses.replace(config, **changes)
    model = minisd.GPT(config, torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    hf.save(model, make_tokenizer(), tmp_path / "toy")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "toy").eval()
    assert theirs.config.model_type == family and theirs.config.eos_token_id == 1
    assert relative_error(model(random_ids()), theirs(random_ids()).logits) < 1e-5
    again, _ = hf.load(tmp_path / "toy")
    assert torch.equal(again(random_ids()), model(random_ids()))


@pytest.mark.parametrize(
    "changes",
    [{"out_bias": True}, {"qkv_bias": True, "mlp_bias": True}, {"qk_norm": True, "qkv_bias": True}],
    ids=str,
)
def test_block_of_no_family_is_not_saved(tmp_path, changes):
    """Catches biases that are written and that no loader reads."""
    model = minisd.GPT(minisd.GPTConfig(vocab_size=9, **changes))
    with pytest.raises(ValueError, match="no family has this mix"):
        hf.save(model, None, tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


def test_model_without_tokenizer_is_saved(tmp_path):
    """Catches a toy model that cannot be saved because it has no tokenizer."""
    hf.save(minisd.GPT(minisd.GPTConfig(vocab_size=9)), None, tmp_path / "a" / "toy")
    assert {"config.json", "generation_config.json", "model.safetensors"} == {
        path.name for path in (tmp_path / "a" / "toy").iterdir()
    }


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"init": "a"}, "--init: 'a'; allowed: only with --data"),
        ({"data": "a"}, "--data: 'a'; allowed: only with --init"),
        ({"init": "a", "data": "no/such"}, "--data: 'no/such'; allowed: a JSONL file"),
        ({"reward": "guess"}, "--reward: 'guess'; allowed: last_number, boxed, exact"),
        ({"dtype": "float16"}, "--dtype: 'float16'; allowed: float32, bfloat16"),
        ({"micro_batch": -1}, "--micro_batch: -1; allowed: 0 to"),
        ({"chunk_tokens": 2**31}, "--chunk_tokens: 2147483648; allowed: 0 to"),
    ],
)
def test_settings_of_no_checkpoint_are_refused(flags, message):
    """Catches a data file that is not read, and a misspelt reward."""
    with pytest.raises(ValueError) as error:
        hf.Checkpoint(**flags)
    assert one_line(error).startswith(message)


def test_every_setting_has_a_help():
    """Catches a flag that --help does not explain because its comment stands on another line."""
    assert all(comments_of(hf.Checkpoint).get(f.name) for f in dataclasses.fields(hf.Checkpoint))
    hf.Checkpoint(init="a", data=__file__)
