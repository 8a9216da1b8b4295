"""Hugging Face checkpoints in and out, by transformers' own loading, saving and rotary code.

Module names of minisd.GPT are those of transformers without the leading "model."; what a checkpoint
holds besides sizes and weights, its JSON files, travels with a loaded model as `model.source`.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lab.prefixes import share_prefixes
from lab.templates import DATE, Chat, is_date, read_arguments
from lab.text_tasks import TEXT_REWARDS
from lab.weights import NOT_FINITE, not_finite
from minisd import GPT, GPTConfig, rope_table

if TYPE_CHECKING:  # importing transformers takes seconds, and the toy does without it
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FAMILIES = {  # architecture: model_type. SmolLM2 is a Llama, the R1 distillations Llama or Qwen2
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3",
}
FIELDS = {  # of GPTConfig: of config.json
    "vocab_size": "vocab_size", "n_layers": "num_hidden_layers", "width": "hidden_size",
    "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size", "tied_embeddings": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps", "init_std": "initializer_range",
    "context_window": "max_position_embeddings",
}
ROPES = ("default", "linear", "llama3", "yarn")  # the others depend on the length of the text
NEEDED = ("transformers", "tokenizers", "safetensors.torch", "huggingface_hub")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
# No pickles, no code, no second copy of the weights in another layout.
DOWNLOADS = ["*.json", "model*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*.jinja"]


def fast_dtype() -> str:
    """bfloat16 where the GPU or the processor multiplies in it; elsewhere it would be slower."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    can = torch.cpu.get_capabilities()
    return "bfloat16" if any(can.get(name) for name in ("avx512_bf16", "amx_bf16")) else "float32"


# Defaults of all settings where --init is given; the row of a method goes before.
CHECKPOINT_DEFAULTS = {
    "train_problems": 0, "batch_size": 32, "max_new_tokens": 512, "learning_rate": 1e-5,
    "micro_batch": 4, "chunk_tokens": 1024, "eval_problems": 64, "page_problems": 4, "threads": 0,
    # At temperature 1 a small model that knows an answer often says another.
    "eval_temperature": 0.0, "dtype": fast_dtype(),
}


@dataclass(frozen=True)
class Checkpoint:
    """A real checkpoint instead of the toy, and what makes it fit into memory."""

    init: str = ""  # checkpoint, a folder or a name on the hub; empty: the toy's base model
    data: str = ""  # problems for --init, a JSONL file; see lab/text_tasks.py
    reward: str = "last_number"  # of --data: last_number, boxed or exact
    template: str = ""  # arguments of the chat template, JSON such as {"enable_thinking": false}
    teacher_template: str = ""  # the same for prompts with a context; empty: as --template
    template_date: str = DATE  # the day that a template is told which asks for today's
    dtype: str = "float32"  # float32, bfloat16: computation, saved checkpoint; trained in float32
    micro_batch: int = 0  # completions per pass; 0: a quarter, at least 16; same gradient
    chunk_tokens: int = 0  # tokens whose logits exist at a time; 0: all, same gradient
    activation_checkpointing: bool = False  # less memory, every block computed twice
    shard: bool = False  # divide weights and optimiser among the processes of torchrun
    compile: bool = False  # sample by a compiled step, on a GPU one CUDA graph; same distribution

    def __post_init__(self):
        pairs = [("init", "data"), ("data", "init")]
        for name, other in (*pairs, ("template", "init"), ("teacher_template", "init")):
            alone = getattr(self, name) and not getattr(self, other)
            self.require(not alone, name, f"only with --{other}")
        self.require(not self.data or os.path.isfile(self.data), "data", "a JSONL file")
        words = "a checkpoint's folder, or a name on the hub; this is a file"
        self.require(not self.init or not os.path.isfile(self.init), "init", words)
        self.require(self.reward in TEXT_REWARDS, "reward", ", ".join(TEXT_REWARDS))
        for name in ("template", "teacher_template"):
            read_arguments(name, getattr(self, name))
        self.require(is_date(self.template_date), "template_date", "a day such as 2025-01-31")
        self.require(self.dtype in ("float32", "bfloat16"), "dtype", "float32, bfloat16")
        self.require(not (self.compile and self.shard), "compile", "without --shard")
        for name in ("micro_batch", "chunk_tokens"):
            self.require(0 <= getattr(self, name) < 2**31, name, "0 to 2^31 - 1")

    def require(self, condition: bool, name: str, allowed: str) -> None:
        if not condition:
            raise ValueError(f"--{name}: {getattr(self, name)!r}; allowed: {allowed}")

    def chat(self, tokenizer: "PreTrainedTokenizerBase") -> Chat:
        """The prompts of a tokenizer with these settings."""
        return Chat(tokenizer, self.template, self.teacher_template, self.template_date)


# Loading ------------------------------------------------------------------------------------------


def load(
    folder_or_name: str | Path, *,
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
) -> tuple[GPT, "PreTrainedTokenizerBase"]:
    """Model and tokenizer of a checkpoint: a local folder, or a name to download from the hub.

    Runs no code and opens no pickle of the checkpoint. Weights are converted to dtype; those that
    have it already stay mapped to their file, which nobody may overwrite in place (`save` renames).
    Raises ValueError, one line: whatever is missing, surplus, broken, or would change the numbers.
    """
    folder = local_folder(folder_or_name)
    config = read_config(folder)
    files = [folder / "config.json", folder / "generation_config.json"]
    source = {path.name: read_json(path) for path in files if path.exists()}
    for name, fields in source.items():
        check_end_ids(folder / name, fields, config.vocab_size)
    tokenizer = read_tokenizer(folder, config.vocab_size)
    with torch.device("meta"):  # no time and memory for initial weights
        model = GPT(config)
    model.load_state_dict(read_weights(folder, config, dtype), assign=True)
    if config.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight  # assigning has made two of the one
    model.source = source
    return share_prefixes(model.to(device)), tokenizer


def local_folder(folder_or_name: str | Path) -> Path:
    """The folder of a checkpoint, which is downloaded if it is a name. Raises ValueError."""
    folder = Path(folder_or_name)
    if os.path.isfile(folder):
        raise ValueError(f"{folder}: a file; allowed: a checkpoint's folder, or a name on the hub")
    if not os.path.isdir(folder):
        from huggingface_hub import snapshot_download

        with named_errors(f"{folder_or_name}: no such folder, and no download of that name"):
            folder = Path(snapshot_download(str(folder_or_name), allow_patterns=DOWNLOADS))
    return folder


@contextlib.contextmanager
def named_errors(what: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """Any error inside becomes one of a given kind, in one line that begins with `what`.

    For calls into libraries that meet broken input with a dozen classes of page-long errors. What
    transformers would write to the terminal besides, bars and tables, is kept back.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        raise kind(f"{what} ({' '.join(str(error).split())[:300]})") from error
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming the file."""
    with named_errors(f"{path}: not readable as JSON"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {type(value).__name__}; allowed: a JSON object")
    return value


def read_config(folder: Path) -> GPTConfig:
    """The configuration of a checkpoint; transformers fills in what its config.json leaves out.

    Raises ValueError naming file, field, value and what is allowed, for every field that would
    change the numbers in a way that GPT does not know.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    raw = read_json(path)

    def require(field: str, value: Any, allowed: tuple) -> None:
        if value not in allowed:
            words = " or ".join(map(repr, allowed))
            raise ValueError(f"{path}: {field} {value!r}; allowed: {words}")

    require("architectures", raw.get("architectures"), tuple([name] for name in FAMILIES))
    require("model_type", raw.get("model_type"), (FAMILIES[raw["architectures"][0]],))
    require("quantization_config", raw.get("quantization_config"), (None,))
    layers = raw.get("num_hidden_layers")
    if isinstance(layers, int) and layers > 1000:  # transformers makes a list of that length
        raise ValueError(f"{path}: num_hidden_layers {layers}; allowed: up to 1000")
    with named_errors(f"{path}: refused by transformers"):
        c = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    require("hidden_act", c.hidden_act, ("silu", "swish"))
    require("sliding_window", getattr(c, "sliding_window", None), (None,))
    for layer_type in getattr(c, "layer_types", None) or ():
        require("layer_types", layer_type, ("full_attention",))
    rope = c.rope_parameters
    require("rope_type", rope.get("rope_type"), ROPES)
    require("partial_rotary_factor", rope.get("partial_rotary_factor"), (None, 1.0))
    stored = stored_tensors(folder)
    with named_errors(f"{path}: refused"):
        config = gpt_config(c, stored)
        tables = rope_table(config, 2, torch.device("cpu"), torch.float32)
        if not all(table.isfinite().all() for table in tables):
            raise ValueError(f"rope parameters {rope} are not finite")
    return config


def gpt_config(c: "PreTrainedConfig", stored: dict[str, "Stored"]) -> GPTConfig:
    """Our names for the fields of transformers.

    Raises ValueError for senseless numbers, and for sizes that the weights do not have: before
    anything of such a size is made.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    bias = c.model_type in ("llama", "qwen3") and c.attention_bias
    values = {ours: getattr(c, theirs) for ours, theirs in FIELDS.items()} | {
        "head_dim": getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        "qkv_bias": bias or c.model_type == "qwen2", "out_bias": bias,
        "mlp_bias": c.model_type == "llama" and c.mlp_bias, "qk_norm": c.model_type == "qwen3",
        "rope_theta": c.rope_parameters["rope_theta"],
    }
    for name, value in values.items():  # transformers looks at most of the types, but at no range
        least, limit = 0 if isinstance(value, bool | float) else 1, 2**40
        if not (isinstance(value, int | float) and least <= value < limit):
            where = FIELDS.get(name, name)
            raise ValueError(f"{where}: {value!r}; allowed: a number, {least} to {limit}")
    H, Hkv, D = (values[name] for name in ("n_heads", "n_kv_heads", "head_dim"))
    if H % Hkv or D % 2:
        raise ValueError(f"num_key_value_heads: {Hkv}, head_dim: {D}; allowed: a divisor of "
                         f"num_attention_heads {H}, an even number (rotary pairs)")
    check_sizes(values, stored)
    if (kind := c.rope_parameters["rope_type"]) != "default":
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](c, torch.device("cpu"))
        values |= {"rope_frequencies": tuple(frequencies.tolist()), "rope_factor": float(factor)}
    return GPTConfig(**values)


@dataclass(frozen=True)
class Stored:
    """What the header of a weight file says of a tensor."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: str  # such as BF16


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors in the weight files of a folder under our names, read from the headers alone.

    Raises ValueError naming a file that is incomplete.
    """
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        broken = named_errors(f"{path}: not a complete safetensors file")
        with broken, safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                found[name.removeprefix("model.")] = Stored(
                    path, name, tuple(tensor.get_shape()), tensor.get_dtype())
    return found


def check_sizes(values: dict[str, Any], stored: dict[str, Stored]) -> None:
    """Raises ValueError naming a size in config.json that is not that of the stored tensors.

    values: fields of GPTConfig. A tensor that is not there is not compared: see `read_weights`.
    """
    heads = {name: values[name] * values["head_dim"] for name in ("n_heads", "n_kv_heads")}
    rows = {"n_heads": "q_proj", "n_kv_heads": "k_proj"}
    places = {"vocab_size": ("embed_tokens", 0), "width": ("embed_tokens", 1),
              "mlp_width": ("layers.0.mlp.gate_proj", 0)}
    places |= {name: (f"layers.0.self_attn.{part}", 0) for name, part in rows.items()}
    for name, (tensor, axis) in places.items():
        if (there := stored.get(f"{tensor}.weight")) and len(there.shape) == 2:
            asked, words = values[name], FIELDS[name]
            if name in heads:
                asked, words = heads[name], f"{words} x head_dim {values['head_dim']}"
            if asked != there.shape[axis]:
                raise ValueError(f"{words}: {asked}; allowed: {there.shape[axis]}, as "
                                 f"{there.name} has in {there.path.name}")
    files = {there.path.name for there in stored.values()}
    parts = [match[1] for name in files if (match := re.search(r"-of-(\d+)\.", name))]
    layers = {int(name.split(".")[1]) for name in stored if re.match(r"layers\.\d+\.", name)}
    # Of an incomplete download the file that is missing is told later.
    if layers and values["n_layers"] > max(layers) + 1 and all(int(n) == len(files) for n in parts):
        raise ValueError(f"num_hidden_layers: {values['n_layers']}; allowed: {max(layers) + 1}, as "
                         "the weights have")


def read_tokenizer(folder: Path, vocab_size: int) -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder. Raises ValueError if an id of it has no row in the embedding."""
    from transformers import AutoTokenizer

    # Without these files transformers hands out an empty tokenizer of the family.
    if not any((folder / name).exists() for name in TOKENIZERS):
        words = " or ".join(TOKENIZERS)
        raise ValueError(f"{folder}: no tokenizer; allowed: a folder with {words}")
    with named_errors(f"{folder}: no usable tokenizer"):
        options = {"trust_remote_code": False, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"{folder}: tokenizer id {largest}; allowed: below vocab_size {vocab_size}")
    return tokenizer


def read_weights(folder: Path, config: GPTConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a checkpoint under our names, a part of those of transformers.

    Raises ValueError naming the file that is broken, or the tensors that are missing, surplus, of
    another shape, not finite, or of a type that is not a plain floating-point number.
    """
    from transformers import AutoModelForCausalLM

    stored = checked_tensors(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    with named_errors(f"{single if single.exists() else index}: refused by transformers"):
        theirs, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False,
            local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True)
    wrong = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    wrong += [f"{name} is surplus" for name in sorted(found["unexpected_keys"])]
    wrong += [f"{name} is {tuple(stored)}, not {tuple(expected)}"
              for name, stored, expected in sorted(found["mismatched_keys"])]
    # transformers leaves a stored head that is not the embedding untied, whatever the config says.
    tied = theirs.lm_head.weight is theirs.model.embed_tokens.weight
    if config.tied_embeddings and not tied and not wrong:
        wrong = ["lm_head.weight is not the embedding, but tie_word_embeddings is true"]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{folder}: tensors do not fit: {'; '.join(wrong[:8])}{more}")
    weights = {name.removeprefix("model."): x for name, x in theirs.state_dict().items()}
    if name := not_finite(weights):
        raise ValueError(f"{stored[name].path}: {stored[name].name} {NOT_FINITE}")
    return weights


def checked_tensors(folder: Path) -> dict[str, Stored]:
    """`stored_tensors`. Raises ValueError if there are none, or for one of another type."""
    if not (stored := stored_tensors(folder)):
        raise ValueError(
            f"{folder}: no model.safetensors; .bin files are pickles, which can run code, and are "
            "not opened: convert what you trust with save_pretrained of transformers")
    for tensor in stored.values():
        if tensor.kind not in ("F32", "BF16", "F16"):
            raise ValueError(
                f"{tensor.path}: {tensor.name} is {tensor.kind}; allowed: F32, BF16 or F16")
    return stored


def check_end_ids(path: Path, fields: dict[str, Any], vocab_size: int) -> None:
    """Raises ValueError naming file and value if one that ends a completion is no token."""
    value = fields.get("eos_token_id")
    for i in value if isinstance(value, list) else [] if value is None else [value]:
        if type(i) is not int or not 0 <= i < vocab_size:  # true is an int, too
            allowed = f"a whole number, 0 to {vocab_size - 1}, or a list of them"
            raise ValueError(f"{path}: eos_token_id {value!r}; allowed: {allowed}")


def end_ids(model: GPT, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's own first, then those of the checkpoint.

    Chat models often have several, in generation_config.json or else config.json, and write any.
    What ends a turn of the chat template goes before them: see `Chat.turn_end`.
    """
    files = source_of(model)
    ids = (files.get("generation_config.json") or files.get("config.json", {})).get("eos_token_id")
    listed = [tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])]
    return tuple(dict.fromkeys(i for i in listed if i is not None))


def source_of(model: GPT) -> dict[str, dict[str, Any]]:
    """The JSON files of the checkpoint that the model comes from, by name; empty for a toy."""
    return getattr(model, "source", None) or {}


# Saving -------------------------------------------------------------------------------------------


def save(model: GPT, tokenizer: "PreTrainedTokenizerBase | None", folder: str | Path) -> None:
    """Writes a checkpoint that transformers, vLLM and lm-eval load, in place of one in `folder`.

    All is written to a scratch folder beside it and renamed at the end: a save that fails leaves
    what was there; one that is killed between two renames leaves it as `old` in the scratch folder.
    Raises ValueError if `folder` holds something that is no checkpoint, OSError if writing fails.
    """
    folder = Path(folder).resolve()
    if folder.is_file() or (any(folder.glob("*")) and not any(folder.glob("model*.safetensors"))):
        raise ValueError(f"{folder}: allowed: a new folder, an empty one, or an older checkpoint")
    theirs, files = as_transformers(model, tokenizer), dict(source_of(model))
    if files:  # as they were; the older name of the dtype is read by old and new releases
        fields = {k: v for k, v in files["config.json"].items() if k != "dtype"}
        dtype = str(model.norm.weight.dtype).removeprefix("torch.")
        files["config.json"] = fields | {"torch_dtype": dtype}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True
    ) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        with named_errors(f"{folder}: not saved, nothing there was changed", OSError):
            theirs.save_pretrained(new)
            if tokenizer is not None:
                tokenizer.save_pretrained(new)
            for name, fields in files.items():  # over those that transformers writes
                (new / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:  # an interrupt as well
            if old.exists():
                old.rename(folder)
            raise


def as_transformers(
    model: GPT, tokenizer: "PreTrainedTokenizerBase | None"
) -> "PreTrainedModel":
    """The same weights, not copied, as a model of transformers: of the family that has this block.

    Raises ValueError if none has, or if positions are scaled in a way that only a source tells.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = model.config
    if config.rope_frequencies is not None and not source_of(model):
        raise ValueError("rope_frequencies: set; allowed: None, but for a loaded checkpoint")
    plain = config.qkv_bias == config.out_bias
    family = "qwen3" if config.qk_norm else "llama" if plain else "qwen2"
    if config.out_bias > config.qkv_bias or (
        family != "llama" and (config.mlp_bias or (family == "qwen3" and not plain))
    ):
        raise ValueError("biases: no family has this mix; allowed: that of Llama, Qwen2 or Qwen3")
    ids = {k: getattr(tokenizer, k, None) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids = {k: source_of(model).get("config.json", ids).get(k) for k in ids}
    c = AutoConfig.for_model(
        family, head_dim=config.head_dim, attention_bias=config.out_bias, mlp_bias=config.mlp_bias,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, **ids,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    )
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(c, dtype=model.norm.weight.dtype)
    weights = model.state_dict().items()
    theirs.load_state_dict(
        {name if name == "lm_head.weight" else f"model.{name}": w for name, w in weights},
        assign=True)
    return theirs
