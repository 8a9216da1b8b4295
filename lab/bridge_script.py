"""The text of the script that `python -m lab.bridge` writes, in pieces; trainers fill them in."""

from dataclasses import dataclass, field
from typing import Any

VERSION = "1.16.0"  # of TRL: the one whose source was read


class Code(str):
    """A value in the script that is no text but an expression."""

    __slots__ = ()
    __repr__ = str.__str__


@dataclass
class Plan:
    """What a row needs of TRL."""

    trainer: str  # such as SDPO, of SDPOTrainer and SDPOConfig
    module: str  # where it lives
    settings: dict[str, Any]  # of its configuration
    columns: tuple[str, ...]  # of the data set
    keywords: dict[str, str] = field(default_factory=dict)  # further arguments of the trainer
    subclass: str = ""  # what settings alone do not make of it
    data: str = 'load_dataset("json", data_files=str(HERE / "train.jsonl"), split="train")'
    after: str = ""  # lines behind its construction
    imports: tuple[str, ...] = ()
    constants: dict[str, Any] = field(default_factory=dict)
    pieces: tuple[str, ...] = ()  # further functions
    notes: tuple[str, ...] = ()  # where the run is another than minisd's nevertheless


SCRIPT = '''"""The row {method} of minisd, run by {trainer}Trainer of TRL {version}.

    pip install -r requirements.txt
    accelerate launch train.py

Written by: {command}
"""

{imports}

HERE = Path(__file__).resolve().parent
PROCESSES = int(os.environ.get("WORLD_SIZE", 1))
{constants}
SETTINGS = {{
{settings}}}
tokenizer = AutoTokenizer.from_pretrained(INIT)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


def load(name):
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    # Else the embedding of the padding token gets no gradient; often it ends the turns as well.
    model.get_input_embeddings().padding_idx = None
    return model
{pieces}

def make_trainer(**changes):
    model = load(INIT)
    model.generation_config.eos_token_id = END_IDS
    config = {trainer}Config(**SETTINGS | changes)
    trainer = {kind}(
        model=model, args=config, processing_class=tokenizer,
        train_dataset={data},{keywords}
    ){after}
    return trainer


if __name__ == "__main__":
    trainer = make_trainer()
    trainer.train()
    trainer.save_model(str(HERE / "checkpoint"))
'''

IMPORTS = (
    "import os", "from pathlib import Path", "import torch",
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
)

# Means of the distillation ------------------------------------------------------------------------

SHARES = {  # by reduction, of how much each token counts (B, T): its share in the mean
    "token_mean": "counts / total(counts.sum())",
    "sequence_mean": "counts / counts.sum(1, keepdim=True).clamp(min=1)"
                     " / total((counts.sum(1) > 0).sum())",
    "constant": "counts / (total(mask.new_tensor(len(mask))) * self.max_completion_length)",
}

MEANS = '''

class Trainer({trainer}Trainer):
    """The mean over {words}; TRL takes that of each completion, then that of all."""

    def _prepare_training_batch(self, inputs):
        def total(number):
            return self.accelerator.gather(number).sum().clamp(min=1)

        batch = super()._prepare_training_batch(inputs)
        mask = batch["completion_mask"]
        counts = mask{seen}{tokens}
        batch["share"] = {share}
        return batch

    def _scaled(self, loss):
        # TRL divides by the parts of a batch, and the mean over processes follows.
        return loss * self.current_gradient_accumulation_steps * self.accelerator.num_processes

    def _compute_self_distillation_loss(self, model, inputs, logits):
        # Weights of a row that sum to less than 1 are not divided by their sum, but by 1.
        logits.loss_mask = inputs["share"]
        loss = super()._compute_self_distillation_loss(model, inputs, logits)
        return self._scaled(loss * len(inputs["share"]))
{policy}'''

WORDS = {"token_mean": "all tokens of a batch", "constant": "as many tokens as there could be",
         "sequence_mean": "the completions that have a context"}

SEEN = ' * batch["self_distillation_mask"][:, None]'
TOKENS = '\n        batch["tokens"] = total(mask.sum())'

POLICY = '''
    def _compute_policy_loss(self, inputs, logits):
        # TRL divides by the tokens of a part; with loss_type dr_grpo by what is multiplied here.
        sizes = len(inputs["share"]) * self.max_completion_length
        loss = super()._compute_policy_loss(inputs, logits) * sizes
        return self._scaled(loss / inputs["tokens"])
'''

# Prompts of the teacher ---------------------------------------------------------------------------

INSIDE = '''

class Inside(SuccessfulRolloutTeacherContextBuilder):
    """The context stands inside the prompt, before its last paragraph."""

    def _build_reprompt_text(self, prompt_text, solution_text, feedback_text):
        return prompt_text.removesuffix(LAST) + solution_text + LAST
'''

WHOLE = '''

class Whole(DemonstrationTeacherContextBuilder):
    """The column holds the teacher's whole prompt: the context stands inside it."""

    def _compose_teacher_prompt(self, prompt, privileged_context):
        return privileged_context
'''

# Rewards ------------------------------------------------------------------------------------------

REWARD = '''

def reward(completion_ids, answer, **_):
    """1 for a right completion; 0 for a wrong one, one that is cut, or one that ends in a thought.

    The graders are those of minisd: a copy of them lies beside this file.
    """
    texts = [read_completion(tokenizer, ids, END_IDS, THOUGHT_END) for ids in completion_ids]
    return [TEXT_REWARDS[REWARD](text, right) for text, right in zip(texts, answer)]
'''

# GKD ----------------------------------------------------------------------------------------------

COUNTED = '''

class Trainer(GKDTrainer):
    """The student writes an exact share of the parts of a batch, and what it wrote is counted.

    TRL tosses a coin for every part, and divides by the tokens of the references, whoever wrote.
    """

    def get_batch_samples(self, *arguments):
        parts, _ = super().get_batch_samples(*arguments)
        count, self.lmbda, self.seq_kd = round(self.args.lmbda * len(parts)), -1.0, False  # no coin
        for i, part in enumerate(parts):
            author = self.model if i < count else self.teacher_model if self.args.seq_kd else None
            if author is not None:
                how = {"generation_kwargs": self.generation_kwargs}
                with unwrap_model_for_generation(author, self.accelerator, **how) as model:
                    ids, mask, labels = self.generate_on_policy_outputs(
                        model, part, self.generation_config)
                part.update(input_ids=ids, attention_mask=mask, labels=labels)
        tokens = self._get_num_items_in_batch(parts, self.args.device)
        return parts, tokens / self.accelerator.num_processes
'''

# Imitation ----------------------------------------------------------------------------------------

CHOSEN = '''

def chosen(config):
    """The problems of all steps, GROUP completions of each."""
    rows = [json.loads(line) for line in open(HERE / "train.jsonl", encoding="utf-8")]
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * PROCESSES
    rng = random.Random(config.seed)
    groups = [rng.choice(rows) for _ in range(config.max_steps * batch // GROUP)]
    return [row for row in groups for _ in range(GROUP)]


def labelled(row, completion_ids, counts=True):
    ids = row["prompt_ids"] + completion_ids
    return {"input_ids": ids, "labels": [-100] * len(row["prompt_ids"]) + (
        completion_ids if counts else [-100] * len(completion_ids))}
'''

REFERENCES = '''

def examples(model, config):
    """The references, which are imitated."""
    return Dataset.from_list([labelled(row, row["completion_ids"]) for row in chosen(config)])
'''

WRITTEN = '''

def examples(model, config):
    """What the teacher writes, drawn before training: its weights never change.

    Kept in a file: delete it after a change of the settings.
    """
    with PartialState().main_process_first():
        if not WRITTEN.exists():
            lines = [json.dumps(row) + "\\n" for row in written(model, config)]
            WRITTEN.write_text("".join(lines))
    return Dataset.from_list([json.loads(line) for line in open(WRITTEN)])


@torch.no_grad()
def written(model, config):
    set_seed(config.seed)
    rows, pad = chosen(config), tokenizer.pad_token_id
    model = model.to(config.device).eval()
    how = GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=LIMIT,
        eos_token_id=END_IDS, pad_token_id=pad)
    for start in range(0, len(rows), PART):
        part = rows[start : start + PART]
        width = max(len(row["teacher_ids"]) for row in part)
        padding = [width - len(row["teacher_ids"]) for row in part]
        ids = torch.tensor([[pad] * n + row["teacher_ids"] for n, row in zip(padding, part)])
        mask = torch.arange(width) >= torch.tensor(padding)[:, None]
        made = model.generate(
            input_ids=ids.to(config.device), attention_mask=mask.long().to(config.device),
            generation_config=how)
        for row, ids in zip(part, made[:, width:].tolist()):
            end = next((i for i, token in enumerate(ids) if token in END_IDS), len(ids) - 1)
            ids = ids[: end + 1]
            yield labelled(row, ids, {counts})
'''


def text_of(plan: Plan, **words: str) -> str:
    """The script of a plan; words: method and command."""
    mine = plan.subclass or any("class Trainer(" in piece for piece in plan.pieces)
    names = [f"{plan.trainer}Config", f"{plan.trainer}Trainer"]
    imports = [*IMPORTS, f"from {plan.module} import {', '.join(names)}", *plan.imports]
    if plan.data.startswith("load_dataset"):
        imports.append("from datasets import load_dataset")
    lines = [f"{name} = {shown(value)}" for name, value in plan.constants.items()]
    settings = "".join(f'    "{name}": {shown(value)},\n' for name, value in plan.settings.items())
    keywords = "".join(f"\n        {name}={value}," for name, value in plan.keywords.items())
    return SCRIPT.format(
        version=VERSION, settings=settings,
        imports="\n".join(ordered(imports)), constants="\n".join(lines),
        pieces="".join((*plan.pieces, plan.subclass)), trainer=plan.trainer, data=plan.data,
        kind="Trainer" if mine else f"{plan.trainer}Trainer", keywords=keywords,
        after=plan.after, **words)


def shown(value: Any) -> str:
    """A value as Python text, in the quotes of this house."""
    plain = type(value) is str and "'" not in repr(value)[1:-1] and '"' not in value
    return f'"{repr(value)[1:-1]}"' if plain else repr(value)


def ordered(imports: list[str]) -> list[str]:
    """Standard library, other packages, our graders; in the order of names."""
    def place(line: str) -> tuple[int, bool, str]:
        name = line.split()[1].partition(".")[0]
        kind = 0 if name in ("json", "os", "pathlib", "random") else 2 if name == "lab" else 1
        return kind, line.startswith("from"), line

    lines = sorted(dict.fromkeys(imports), key=place)
    for i in reversed(range(1, len(lines))):
        if place(lines[i])[0] != place(lines[i - 1])[0]:
            lines.insert(i, "")
    return lines
