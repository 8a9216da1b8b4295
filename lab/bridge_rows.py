"""What a row of minisd is in TRL: the trainer, its settings, and what these do not make of it.

    1 settings   2 which trainer   3 settings of all   4 one function a trainer

All was read in the source of TRL; `python -m lab.bridge trl --check` computes whether it is true.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import bridge_script as script
from lab import flags, hf
from lab.base import EXTERNAL_BASES
from lab.bridge_script import Code, Plan
from lab.text_tasks import CONTEXT_TEMPLATES
from minisd import Method

# 1. Settings --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """How much is trained: fields and defaults of train_gpt.py."""

    method: str = "sdpo"  # row of the method table; other flags override the row
    seed: int = 0  # seeds data and sampling
    steps: int = 150  # post-training steps
    train_problems: int = 64  # problems in the training pool; 0: all
    batch_size: int = 128  # completions per step
    group_size: int = 8  # completions per problem
    max_new_tokens: int = 96  # length limit of a completion, tokens
    temperature: float = 1.0  # of the sampling in training
    updates_per_batch: int = 1  # optimiser steps on the same completions
    grad_clip: float = 1.0  # maximal norm of the gradient
    save_every: int = 50  # steps between checkpoints; 0: only at the end
    out_dir: str = ""  # where script and data go; empty: out/trl-<method>

    def __post_init__(self):
        flags.check_numbers(self, {"train_problems": 0, "save_every": 0, "seed": 0})

    require = Method.require

    @property
    def folder(self) -> Path:
        return Path(self.out_dir or f"out/trl-{self.method}")


@dataclass(frozen=True)
class Settings:
    """What is to be run. Raises ValueError, as train_gpt.py does, for what cannot be together."""

    run: Scale
    method: Method
    checkpoint: hf.Checkpoint

    def __post_init__(self):
        run, m = self.run, self.method
        self.checkpoint.require(bool(self.checkpoint.init), "init", "a checkpoint, with --data")
        flags.check_loss(m, 10**6)
        flags.check_groups(run, m, rewarded=m.reward_weight > 0)
        if self.external:
            known = m.external_teacher not in (*EXTERNAL_BASES, "adapted")
            m.require(known, "external_teacher", "a checkpoint, with TRL")

    @property
    def external(self) -> bool:
        return self.method.reward_weight < 1 and self.method.teacher == "external"

    @property
    def micro_batch(self) -> int:  # parts of equal size
        size = self.checkpoint.micro_batch or self.run.batch_size
        return math.gcd(self.run.batch_size, size)


# 2. Which trainer -----------------------------------------------------


def plan_of(s: Settings) -> Plan:
    """What the row needs. Raises ValueError naming the setting that TRL does not have."""
    m = s.method
    only(m, "warm_start_steps", [0], "with TRL: start from a checkpoint that has had them")
    only(m, "student_context", ["none"], "with TRL")
    only(m, "resample", [0], "with TRL, which draws no group anew")
    if m.reward_weight == 1:
        return grpo(s)
    only(m, "teacher", [*TEACHERS, "external"], "with TRL")
    only(m, "kl_coef", [0], "with TRL's distillation: SDPOConfig has beta, and does not use it")
    only(m, "context", [*fixed_contexts(), "sibling"], "with TRL; others are drawn anew")
    if m.credit == "imitation":
        return sft(s)
    only(m, "token_weights", ["all"], "with TRL, but for --credit imitation")
    only(m, "credit", ["token", "sampled"], "with TRL")
    if m.student_frac < 1:
        return gkd(s) if s.external else sdft(s)
    return distillation(s) if s.external and is_plain(s) else sdpo(s)


def is_plain(s: Settings) -> bool:
    """Whether DistillationTrainer has all that is asked for."""
    m, run = s.method, s.run
    loss = m.context == "none" and m.credit == "token" and m.divergence in ALPHAS
    means = m.reduction == "token_mean" and not (m.reward_weight or m.importance_cap)
    return loss and means and run.group_size == run.updates_per_batch == 1


def only(given: Any, name: str, values: list, why: str) -> None:
    """Raises ValueError unless a setting has one of the values that TRL has for it."""
    shown = ", ".join(repr(value) if value == "" else str(value) for value in values)
    given.require(getattr(given, name) in values, name, f"{shown} {why}")


def fixed_contexts() -> list[str]:
    """Contexts that are the same at every draw of a problem: the data set can hold them."""
    return [kind for kind, row in CONTEXT_TEMPLATES.items() if not (row.attempt or row.of_other)]


def common(s: Settings) -> dict[str, Any]:
    """Settings of every trainer: the optimiser of train_gpt.py, and how much is done at a time."""
    run, c, sizes = s.run, s.checkpoint, f"({s.micro_batch} * PROCESSES)"
    save = {"save_strategy": "steps", "save_steps": run.save_every * run.updates_per_batch}
    return {
        "output_dir": Code('str(HERE / "run")'), "seed": run.seed,
        "max_steps": run.steps * run.updates_per_batch,
        "learning_rate": s.method.learning_rate, "lr_scheduler_type": "constant",
        "optim": "adamw_torch", "adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.0,
        "max_grad_norm": run.grad_clip, "per_device_train_batch_size": s.micro_batch,
        "gradient_accumulation_steps": Code(f"{run.batch_size} // {sizes}"),
        "bf16": c.dtype == "bfloat16", "activation_checkpointing": c.activation_checkpointing,
        "logging_steps": 1, "report_to": "none",
        **(save if run.save_every else {"save_strategy": "no"}),
    }


def sampling(s: Settings, *, groups: bool = True) -> dict[str, Any]:
    """Settings of trainers in which the student writes."""
    run, c, found = s.run, s.checkpoint, {}
    if run.temperature != 1:
        # NOTE: `temperature` divides the logits of the loss as well; this one only samples.
        found["generation_kwargs"] = {"temperature": run.temperature}
    if c.template:
        found["chat_template_kwargs"] = json.loads(c.template)
    if groups:
        found |= {"num_generations": run.group_size, "num_iterations": run.updates_per_batch}
    return found | {"max_completion_length": run.max_new_tokens, "disable_dropout": True}


LOSS_TYPES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}


def surrogate(s: Settings) -> dict[str, Any]:
    """Settings of the policy gradient in GRPOTrainer and SDPOTrainer."""
    m = s.method
    only(m, "advantage", ["group", "group_without_std"], "with TRL")
    scale = "group" if m.advantage == "group" else "none"
    return {"scale_rewards": scale, "loss_type": LOSS_TYPES[m.reduction],
            "epsilon": m.clip_low, "epsilon_high": m.clip_high}


# TRL adds 1e-4 to the standard deviation of the rewards: nothing beside that of large rewards.
LARGE = 1e4
REWARDED = {
    "keywords": {"reward_funcs": "reward"}, "pieces": (script.REWARD,),
    "imports": ("from lab.graders import TEXT_REWARDS, read_completion",),
}


def grpo(s: Settings) -> Plan:
    """GRPOTrainer: rewards alone."""
    m, scaled = s.method, {"reward_weights": [LARGE]} if s.method.advantage == "group" else {}
    # By default TRL multiplies the penalty by the policy ratio, which adds to its gradient.
    penalty = {"beta": m.kl_coef, "use_bias_correction_kl": False}
    settings = common(s) | sampling(s) | surrogate(s) | scaled | penalty
    return Plan("GRPO", "trl", settings, ("prompt", "answer"), **REWARDED)


ALPHAS: dict[str, Callable[[Method], float]] = {  # of the divergences that TRL has, the teacher's
    "forward_kl": lambda m: 0.0, "reverse_kl": lambda m: 1.0,  # weight in the Jensen-Shannon one
    "jensen_shannon": lambda m: m.teacher_weight,
}
TEACHERS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "frozen": lambda s: {"teacher_model_kind": "base"},
    "live": lambda s: {"teacher_model_kind": "live"},
    "ema": lambda s: {"teacher_model_kind": "ema", "teacher_sync_steps": s.run.updates_per_batch,
                      "teacher_update_rate": s.method.teacher_update_rate},
    "snapshot": lambda s: {
        "teacher_model_kind": "ema", "teacher_update_rate": 1.0,
        "teacher_sync_steps": s.method.teacher_every * s.run.updates_per_batch},
}


def divergence(m: Method) -> dict[str, Any]:
    """Settings of the loss per token in SDPOTrainer and SDFTTrainer."""
    if m.credit == "sampled":
        return {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}
    only(m, "divergence", [*ALPHAS, "top_k_reverse_kl"], "with TRL")
    if m.divergence in ALPHAS:
        alpha = ALPHAS[m.divergence](m)
        return {"distillation_mode": "full_logits", "distillation_alpha": alpha}
    only(m, "top_k_support", ["student"], "with TRL")
    only(m, "top_k_tail", ["bucket", "renormalised"], "with TRL")
    return {"distillation_mode": "topk_logits", "distillation_alpha": 1.0,
            "distillation_topk": m.top_k, "distillation_add_tail": m.top_k_tail == "bucket"}


def means(s: Settings, trainer: str) -> str:
    """The subclass of a trainer whose own means are others, or nothing."""
    m, sibling = s.method, s.method.context == "sibling"
    if m.reduction == "sequence_mean" and not sibling:
        return ""
    policy = script.POLICY if m.reward_weight and m.reduction == "token_mean" else ""
    return script.MEANS.format(
        trainer=trainer, words=script.WORDS[m.reduction], share=script.SHARES[m.reduction],
        seen=script.SEEN if trainer == "SDPO" else "", policy=policy,
        tokens=script.TOKENS if policy else "")


def sdpo(s: Settings) -> Plan:
    """SDPOTrainer: a teacher that sees more, or another checkpoint; with rewards, if wanted."""
    m, sibling = s.method, s.method.context == "sibling"
    teacher = TEACHERS["frozen" if s.external else m.teacher]  # another one takes its place
    settings = common(s) | sampling(s) | divergence(m) | teacher(s)
    settings |= {"distillation_is_clip": m.importance_cap or None, "max_prompt_length": None,
                 "max_reprompt_len": 2**20, "distillation_weight": 1 - m.reward_weight}
    if m.reward_weight:
        # TRL divides by 1 + 1e-4 also where it divides by no standard deviation.
        scale = LARGE if m.advantage == "group" else 1.0001
        settings |= surrogate(s) | {"reward_weights": [scale]}
        if m.reduction == "token_mean":
            settings["loss_type"] = "dr_grpo"  # see the subclass
    plan = Plan("SDPO", "trl.experimental.sdpo", settings, ("prompt", "answer"), **REWARDED)
    plan.subclass = means(s, "SDPO")
    if sibling:
        settings["solution_template"] = CONTEXT_TEMPLATES["sibling"].template.replace(
            "{attempt}", "{successful_previous_attempt}")
        plan.pieces += (script.INSIDE,)
        plan.imports += ("from trl.experimental.sdpo.sdpo_trainer import "
                         "SuccessfulRolloutTeacherContextBuilder",)
        plan.after = "\n    trainer.teacher_context_builder = Inside(trainer)"
        plan.notes += ("all completions of a group are shown its first right one; minisd draws one "
                       "for each",)
    else:  # the data set has what the teacher is told, whole
        settings |= {"use_successful_as_teacher": False, "include_environment_feedback": True,
                     "feedback_template": "{feedback_raw}", "reprompt_template": "{feedback}"}
        plan.columns += ("teacher_text",)
    if s.external:
        plan.after += (
            "\n    teacher = load(TEACHER).requires_grad_(False).eval()\n"
            "    trainer.teacher_model = trainer.accelerator.prepare_model(\n"
            "        teacher, evaluation_mode=True)")
    return plan


def sdft(s: Settings) -> Plan:
    """SDFTTrainer: the student itself, shown more, writes what it then learns without that."""
    m = s.method
    only(m, "student_frac", [0, 1], "with a teacher that is no other checkpoint, in TRL")
    only(m, "off_policy", ["teacher"], "with SDFTTrainer")
    only(m, "teacher", ["live"], "with --student_frac 0: in SDFTTrainer the student itself writes")
    only(m, "context", fixed_contexts(), "with SDFTTrainer")
    settings = common(s) | sampling(s) | divergence(m) | TEACHERS[m.teacher](s)
    settings |= {"distillation_is_clip": None, "max_prompt_length": None,
                 "generate_from_teacher": True}
    return Plan(
        "SDFT", "trl.experimental.sdft", settings, ("prompt", "teacher_prompt"),
        subclass=means(s, "SDFT"), pieces=(script.WHOLE,),
        imports=("from trl.experimental.sdft.sdft_trainer import "
                 "DemonstrationTeacherContextBuilder",),
        after="\n    trainer.teacher_context_builder = Whole(trainer)")


def same_prompt(s: Settings, trainer: str) -> None:
    """Raises ValueError for what trainers with another checkpoint as their teacher do not have."""
    m = s.method
    only(m, "context", ["none"], f"with {trainer}, whose teacher sees what the student sees")
    only(m, "divergence", [*ALPHAS], f"with {trainer}")
    only(m, "credit", ["token"], f"with {trainer}")
    only(m, "reduction", ["token_mean"], f"with {trainer}")
    for name in ("group_size", "updates_per_batch"):
        only(s.run, name, [1], f"with {trainer}")


def distillation(s: Settings) -> Plan:
    """DistillationTrainer: a larger teacher, on completions of the student."""
    same_prompt(s, "DistillationTrainer")
    beta = ALPHAS[s.method.divergence](s.method)
    settings = common(s) | sampling(s, groups=False) | {"beta": beta}
    return Plan("Distillation", "trl", settings, ("prompt",),
                keywords={"teacher_model": "load(TEACHER)"})


def gkd(s: Settings) -> Plan:
    """GKDTrainer: a larger teacher, on completions of the student and others."""
    m, parts = s.method, s.run.batch_size // s.micro_batch
    same_prompt(s, "GKDTrainer")
    words = f"a multiple of 1/{parts}, the share of a part (--micro_batch)"
    m.require(m.student_frac * parts % 1 == 0, "student_frac", words)
    settings = common(s) | {
        "lmbda": m.student_frac, "beta": ALPHAS[m.divergence](m),
        "seq_kd": m.off_policy == "teacher",
        "temperature": s.run.temperature, "max_new_tokens": s.run.max_new_tokens,
        "max_length": None, "disable_dropout": True}
    return Plan(
        "GKD", "trl.experimental.gkd", settings, ("text", "row_ids"), pieces=(script.COUNTED,),
        imports=("from trl.models.utils import unwrap_model_for_generation",),
        keywords={"teacher_model": "load(TEACHER)"})


def sft(s: Settings) -> Plan:
    """SFTTrainer: completions of a teacher that never changes, or references, are imitated."""
    m = s.method
    only(m, "context", fixed_contexts(), "with SFTTrainer")
    only(m, "reduction", ["token_mean"], "with SFTTrainer")
    only(m, "token_weights", ["all", "correct_only"], "with SFTTrainer")
    only(s.run, "updates_per_batch", [1], "with SFTTrainer")
    settings = common(s) | {"max_length": None, "train_sampling_strategy": "sequential"}
    data = "examples(model, config)"
    plan = Plan("SFT", "trl", settings, ("text", "prompt_ids"), data=data)
    plan.imports = ("import json", "import random", "from datasets import Dataset")
    plan.constants, plan.pieces = {"GROUP": s.run.group_size}, (script.CHOSEN,)
    if m.off_policy == "data":
        plan.columns += ("completion_ids",)
        plan.pieces += (script.REFERENCES,)
        return plan
    only(m, "teacher", ["frozen", "external"], "with SFTTrainer, which draws all before training")
    plan.columns += ("teacher_ids", "answer")
    right, counts = m.token_weights == "correct_only", "True"
    if right:  # all drawn completions are there, but the wrong ones count nothing
        plan.pieces += REWARDED["pieces"]
        plan.imports += REWARDED["imports"]
        counts = 'reward([ids], [row["answer"]]) == [1]'
    written = script.WRITTEN.replace("{counts}", counts)
    if s.external:
        written = written.replace("model = model.to", "model = load(TEACHER).to")
    plan.pieces += (written,)
    plan.imports += ("from accelerate import PartialState",
                     "from accelerate.utils import set_seed",
                     "from transformers.generation import GenerationConfig")
    plan.constants |= {
        "WRITTEN": Code('HERE / "written.jsonl"'), "TEMPERATURE": s.run.temperature,
        "LIMIT": s.run.max_new_tokens, "PART": s.micro_batch}
    return plan
