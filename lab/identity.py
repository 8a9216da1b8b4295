"""What a run is made from: checksums of the files that its flags name, and whose tokens they are.

A path says where a file is, not what is in it. `Made` is what storage compares and config.json
holds: settings with whole paths, and checksums by flag.
"""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from lab import hf, storage
from lab.base import EXTERNAL_BASES
from lab.text_tasks import TextTask
from lab.weights import with_rows
from minisd import GPT, Task

PARTS = {  # of a checkpoint: the files that determine it; others, such as a README, do not count
    "weights": ("model*.safetensors", "model.safetensors.index.json"),
    "tokenizer": (
        "tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json",
        "*.jinja", "chat_template.json",
    ),
    "configuration": ("config.json", "generation_config.json"),
}
PROBES = 20  # problems that two tokenizers must divide into the same tokens


@functools.cache  # a run asks at its start and when it writes config.json
def checksum_of_state(path: str, *state: int) -> str:
    """SHA-256 of the content of a file; state: what the system changes with any change of it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 of a file, computed once in a process for as long as nobody writes to it."""
    s = path.stat()
    return checksum_of_state(str(path), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


def checksums_of_checkpoint(folder: Path) -> dict[str, str]:
    """A checksum of the names and contents of each kind of file in PARTS."""
    found = {}
    for part, patterns in PARTS.items():
        paths = {p for pattern in patterns for p in folder.glob(pattern) if p.is_file()}
        lines = [f"{path.name} {checksum(path)}\n" for path in sorted(paths)]
        found[part] = hashlib.sha256(os.fsencode("".join(lines))).hexdigest()
    return found


def checksums_of_teacher(name: str, checkpoint: bool) -> dict[str, str]:
    """Of a checkpoint, or else of the student in a run's folder; empty for a model of our own."""
    if name in (*EXTERNAL_BASES, "adapted"):
        return {}
    if checkpoint:
        return checksums_of_checkpoint(hf.local_folder(name))
    path = Path(name) / "student.pt"
    if not path.is_file():
        known = ", ".join(EXTERNAL_BASES)
        raise ValueError(f"--external_teacher: {str(path)!r} is not there; allowed: {known}, "
                         "adapted, or the folder of a run in the toy")
    return {"weights": checksum(path)}


@dataclasses.dataclass(frozen=True)
class Made:
    """The settings of train_gpt.py as a run's folder keeps them."""

    given: Any

    @property
    def settings(self) -> dict[str, dict]:
        """By group; paths are whole, so that --resume finds the files from any folder."""
        groups = dataclasses.asdict(self.given)
        run, method, c = groups["run"], groups["method"], groups["checkpoint"]
        run["cache_dir"] = os.path.abspath(run["cache_dir"])
        if c["data"]:
            c["data"] = os.path.abspath(c["data"])
        teacher = self.given.has_external and method["external_teacher"] not in EXTERNAL_BASES
        for group, name in ((c, "init"), *([(method, "external_teacher")] if teacher else [])):
            if group[name] and Path(group[name]).is_dir():  # else a name on the hub, or a word
                group[name] = os.path.abspath(group[name])
        return groups

    def checksums(self) -> dict[str, dict[str, str]]:
        """By flag and kind of content, of what is named. Raises ValueError for what is not there.

        Reads the files, and downloads what is a name on the hub.
        """
        c, found = self.given.checkpoint, {}
        if c.init:
            found["data"] = {"data": checksum(Path(c.data))}
            found["init"] = checksums_of_checkpoint(hf.local_folder(c.init))
        if self.given.has_external:
            name = self.given.method.external_teacher
            found["external_teacher"] = checksums_of_teacher(name, bool(c.init))
        return {flag: parts for flag, parts in found.items() if parts}

    def require_same(self, then: dict[str, dict[str, str]], folder: Path) -> None:
        """Raises ValueError, naming the flag, if the checksums are not those of the run there."""
        given = vars(self.given.method) | vars(self.given.checkpoint)
        for flag, now in self.checksums().items():
            if changed := [part for part in now if then.get(flag, {}).get(part) != now[part]]:
                raise ValueError(
                    f"--{flag}: {given[flag]!r} has not the {' and '.join(changed)} that the run "
                    f"in {str(folder)!r} began with; allowed: the same content, or another "
                    "--out_dir")


# Teachers from elsewhere --------------------------------------------------------------------------


def named_teacher(name: str, task: Task, student: GPT) -> GPT:
    """The model that --external_teacher names, with a logit for every token of the student.

    Raises ValueError if a token has another number there: it would teach something else.
    """
    rows = student.config.vocab_size
    if isinstance(task, TextTask):
        model, tokenizer = hf.load(name)
        if other := tokens_differ(task, tokenizer):
            raise ValueError(f"--external_teacher: {name!r}, {other}; allowed: one of the "
                             "student's tokenizer")
        return with_rows(model, rows)
    model = storage.load_student(Path(name) / "student.pt", "--external_teacher")
    if model.config.vocab_size != rows:
        raise ValueError(f"--external_teacher: {name!r}; allowed: one of {rows} tokens")
    return model


def tokens_differ(task: TextTask, other: Any) -> str:
    """In words, how another tokenizer numbers or divides text otherwise; empty if it does not."""
    ours, theirs = task.tokenizer.get_vocab(), other.get_vocab()
    if ours != theirs:
        differing = (token for token in (*ours, *theirs) if ours.get(token) != theirs.get(token))
        token = min(differing, key=lambda t: (  # the first one, and of two the student's
            min(ours.get(t, 2**62), theirs.get(t, 2**62)), ours.get(t, 2**62)))
        here, there = (table.get(token, "no token") for table in (ours, theirs))
        return f"where {token!r} is {there} instead of {here}"
    for example in [e for pool in task.pools.values() for e in pool][:PROBES]:
        for text in (example.prompt, task.reference(example)):
            if other.encode(text, add_special_tokens=False) != task.encode(text):
                return f"which divides {text[:40]!r} into other tokens"
    return ""
