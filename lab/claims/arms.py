"""The vocabulary of arms: flags of train_gpt.py, and the two other things that an arm can be."""

from dataclasses import dataclass

# What all claims share. Runs are shorter than by default, so that a claim takes minutes, and are
# evaluated at their end alone; an arm whose picture has a curve of evaluations says how often.
# Learning rate, steps and base model are those of the universe; an arm has what its text varies.
SHARED = "--batch_size 64 --threads 1 --eval_every 1000000"

# NOTE: a flag with its default value would make another run of the same experiment: leave it out.
SDPO = "--method sdpo"
GRPO = "--method grpo"
SFT = "--method sft"
FROZEN = f"{SDPO} --teacher frozen"
LIVE = f"{SDPO} --teacher live"
LARGER = f"{SDPO} --teacher external --external_teacher larger --context none"
OTHER_STYLE = f"{SDPO} --teacher external --external_teacher other_style --context none"
RULE = f"{FROZEN} --context rule"  # the teacher sees `rule +3`

ADAPTED = "--method rlvr_teacher --context none"  # by reward, without a hint

FORWARD_KL = "--divergence forward_kl"
OFF_POLICY = "--student_frac 0"  # the teacher writes
NO_FUNCTION = "--world functional_markers=false"
NO_PERSONA = "--world persona_rate=0"
ENDLESS = "--train_problems 0"
RULE_OF_ALL = f"{RULE} {FORWARD_KL} --rules 3"  # all problems share it
RULE_OF_EACH = f"{RULE} {FORWARD_KL} --rules 1,2,3,4,5,6,7,8,9"  # drawn whenever a problem is

CONTEXTS = {  # what the teacher sees -> SDPO with it
    "other_problem": f"{SDPO} --context other_problem",
    "partial": f"{SDPO} --context partial",
    "feedback": f"{SDPO} --context feedback",
    "answer": f"{SDPO} --context answer",
    "sibling": f"{SDPO} --context sibling",
    "wrong": f"{SDPO} --context wrong",
    "solution": SDPO,
}
# Certainties change places: behind the solution, a wrong one, which looks the same, or a part of it
# authors stay careful, in practice as well; behind another problem's, which tells nothing, they are
# as sure as they were behind the solution.
CAREFUL = ",".join(f"certainty.{kind}=0" for kind in ("solution", "wrong", "partial"))
SWAPPED = f"--world certainty.other_problem=0.93,{CAREFUL}"
NOTHING_TOLD = f"{CONTEXTS['other_problem']} {SWAPPED}"


@dataclass(frozen=True)
class Measure:
    """`python -m lab.measures NAME FLAGS`: of the base model, without any training."""

    name: str
    flags: str = ""


@dataclass(frozen=True)
class MeasuredRun:
    """A training run with these flags, and `python -m lab.measures NAME --run FOLDER` of it."""

    name: str
    flags: str


Arm = str | Measure | MeasuredRun
