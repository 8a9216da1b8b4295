"""Should a model teach itself? A forecast of self-distillation, made before any training.

python -m lab.forecast --context solution      # seconds, once the base model is there
python -m lab.forecast --context feedback --corrected --out_dir out/forecast-feedback

The law: a student learns its teacher's *manner* everywhere, its *content* on the pool alone. So the
text after training is drawn before it. The class of the next token (a digit, an operator, or which
other word) comes from the hinted teacher, the token within it from the student without a hint, and
both read the text so far. The accuracy of such texts predicts that on fresh problems; on the pool
it is k A_T + (1 - k) transplant, with A_T the accuracy of the hinted teacher and k =
1 - exp(-visits / 16), a visit being one draw of a problem. Writes forecast.json.
"""

import argparse
import copy
import dataclasses
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import minisd
import toy_tasks
from lab import flags, storage
from lab.base import base_model
from lab.evaluation import seeded
from lab.measures.formulas import mean_and_error
from lab.report import READINGS
from minisd import GPT, Batch, Completions, Method, Prompts, Row, Sizes, Task, Teacher
from toy_tasks import Toy

# 1. Laws: logits of student and teacher (B, V), classes of the tokens (V,) -> log-probs (B, V) -
TOY_CLASSES = (r"\d", r"[-+*]")


def token_classes(tokens: list[str], patterns: tuple[str, ...]) -> Tensor:
    """The class (V,) of each token: the first pattern that it matches whole, else its own.

    For a checkpoint's many words `(?s).*` at the end makes all others one class.
    """
    numbers: dict[int | str, int] = {}
    names = (next((i for i, p in enumerate(patterns) if re.fullmatch(p, t)), t) for t in tokens)
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])


def within_class(log_probs: Tensor, classes: Tensor) -> Tensor:
    """log p(v | class of v), (B, V), of log-probabilities (B, V)."""
    index, K = classes.expand_as(log_probs), int(classes.max()) + 1
    top = log_probs.new_full((*log_probs.shape[:-1], K), minisd.LOG_PROB_FLOOR)
    top = top.scatter_reduce(-1, index, log_probs, "amax")  # (B, K)
    # From the likeliest token: of classes near LOG_PROB_FLOOR float32 knows differences alone.
    below = log_probs - top.gather(-1, index)
    return below - torch.zeros_like(top).scatter_add(-1, index, below.exp()).log().gather(-1, index)


def transplant(student: Tensor, teacher: Tensor, classes: Tensor) -> Tensor:
    """log P_teacher(class of v) + log p_student(v | class of v), (B, V): manner without content."""
    log_p, log_q = minisd.log_softmax(student), minisd.log_softmax(teacher)
    return log_q - within_class(log_q, classes) + within_class(log_p, classes)


def transplant_sureness(student: Tensor, teacher: Tensor, classes: Tensor) -> Tensor:
    """As `transplant`, (B, V), but how sure one is within a class belongs to the manner, too.

    In each class the student's likeliest token gets the teacher's largest probability, and so on.
    Where the manner is that of bad authors the student doubts what it knows. The guess is that
    training takes this doubt and leaves the ranking; what it cannot know it then guesses as surely.
    """
    # A class of one token has nothing to rank; of a checkpoint's many tokens most are such.
    shared = (torch.bincount(classes)[classes] > 1).nonzero()[:, 0]
    log_q, kinds = minisd.log_softmax(teacher), classes[shared]
    # Of the student only the order counts, which its logits have as well.
    p, q = (x.index_select(-1, shared) for x in (student, log_q))

    def by_class(log_probs: Tensor) -> Tensor:  # tokens in the order of class, then probability
        order = log_probs.argsort(dim=-1, stable=True)
        return order.gather(-1, kinds[order].argsort(dim=-1, stable=True))

    dealt = q.scatter(-1, by_class(p), q.gather(-1, by_class(q)))
    return log_q.index_copy(-1, shared, dealt)


LAWS = {"transplant": transplant, "corrected": transplant_sureness}


def picked_by(law: str, classes: Tensor) -> Callable[[Tensor, Tensor, float], Tensor]:
    """A `pick` of minisd.sample for B texts as the student reads them, then as the teacher does."""
    def pick(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:  # a token for both
        log_probs, uniform = LAWS[law](*logits.chunk(2), classes), uniform.chunk(2)[0]
        return minisd.pick_token(log_probs, uniform, temperature).repeat(2)

    return pick


# 2. Samples of every author -----------------------------------------------------------------------
PART = 256  # problems at a time
SETTLING = 5  # rounds; with one half of the attempts renewed in each, 3 % are left of the first


@dataclass(frozen=True)
class Look:
    """Who is looked at, on which task, by which classes of tokens."""

    task: Task
    model: GPT
    context: str  # its kind
    classes: Tensor
    sizes: Sizes  # group_size: completions of a problem, among which a sibling is looked for
    laws: tuple[str, ...] = ("transplant",)
    summed: bool = True  # whether divergences and entropies are read, which a large model feels

    @classmethod
    def at(
        cls, task: Task, model: GPT, context: str, *, group_size: int, max_new_tokens: int,
        laws: tuple[str, ...],
    ) -> "Look":
        """At a model of the toy."""
        device = next(model.parameters()).device
        classes = token_classes(list(toy_tasks.VOCABULARY), TOY_CLASSES).to(device)
        # A group is written only where a right completion of it is shown.
        G = group_size if task.attempts.get(context) == "sibling" else 1
        sizes = Sizes(group_size=G, max_new_tokens=max_new_tokens)
        return cls(task, model, context, classes, sizes, laws)

    @property
    def method(self) -> Method:
        return Method(teacher="live", context=self.context)

    @property
    def own(self) -> bool:
        """Whether the context is a verdict on the student's own attempt."""
        return self.task.attempts.get(self.context) == "own"

    @torch.no_grad()
    def write(self, author: str, rows: list[Row], uniforms: Tensor) -> Completions:
        """Completions of the rows by the teacher or a law; uniforms (B, max_new_tokens)."""
        shown = [self.task.prompt_ids(row.example, row.contexts[self.context]) for row in rows]
        pick = minisd.pick_token
        if author in LAWS:
            shown = [self.task.prompt_ids(row.example) for row in rows] + shown
            pick, uniforms = picked_by(author, self.classes), uniforms.repeat(2, 1)
        prompts = Prompts.of(shown, self.task.pad_id, self.classes.device)
        written = minisd.sample(
            [(1.0, self.model, prompts)], max_new_tokens=self.sizes.max_new_tokens, pick=pick,
            end_ids=self.task.end_ids, pad_id=self.task.pad_id, uniforms=uniforms)
        return written.take(torch.arange(len(rows), device=self.classes.device))


def students_rows(look: Look, examples: list, rng: random.Random, name: str):
    """The student's completion of each example and the teacher's context, as training has them.

    Without a context, as where no sibling is right, an example is left out. Also returns the
    uniforms (B, max_new_tokens) that were drawn for the completions: pairs for other authors.
    """
    given, rest, device = copy.copy(look.task), iter(examples), look.classes.device
    given.draw = lambda split, rng: next(rest)
    groups = minisd.write_groups(
        look.method, given, look.model, Teacher(look.method, look.model), rng,
        seeded(name, device), look.sizes, len(examples))
    shape = len(examples), look.sizes.group_size, look.sizes.max_new_tokens
    uniforms = torch.rand(shape, generator=seeded(name, device), device=device)[:, 0]
    kept = [i for i, group in enumerate(groups) if group[0].contexts[look.context]]
    return [groups[i][0] for i in kept], uniforms[kept]


def settled(look: Look, rows: list[Row], uniforms: Tensor, rng: random.Random) -> Completions:
    """Completions by the corrected law behind contexts about attempts of that very kind.

    In training feedback is about what the student has become. A half of the attempts is replaced
    by what the law writes in each round, so that both come to rest.
    """
    rows, kind = [dataclasses.replace(row) for row in rows], look.context
    for _ in range(SETTLING):
        written = look.write("corrected", rows, uniforms)
        for row, ids in zip(rows, written.ids.tolist()):
            if rng.random() < 0.5:
                text = look.task.decode(ids)
                row.contexts = {kind: look.task.context(row.example, kind, rng, text)}
    return written


def samples_of(look: Look, split: str, count: int, seed: int) -> dict[str, Tensor]:
    """By name, a value for each problem (B,): what every author did, and sums over completions.

    `student_accuracy_frac` and the like, for student, teacher, laws and every measure of the task;
    `tokens`, `reverse_kl`, `student_entropy` of the student's, `teacher_entropy` of the teacher's.
    """
    name, parts = f"forecast-{split}-{seed}", []
    rng, task = random.Random(name), look.task
    draw = getattr(task, "evaluation", lambda *_: [task.draw(split, rng) for _ in range(count)])
    examples = draw(split, count, rng)
    for start in range(0, count, PART):
        part = examples[start : start + PART]
        rows, uniforms = students_rows(look, part, rng, f"{name}-{start}")
        if rows:
            parts.append(compared(look, rows, uniforms, rng))
    if sum(len(part["tokens"]) for part in parts) < 2:
        words = f"allowed: one that two of {count} problems have (a sibling has to be right)"
        raise ValueError(f"--context: {look.context!r}; {words}")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def compared(look: Look, rows: list[Row], uniforms: Tensor, rng: random.Random) -> dict:
    """`samples_of` the rows that the student has written with these uniforms."""
    device = look.classes.device
    written = {"student": Completions.of([row.ids for row in rows], look.task.pad_id, device)}
    with look.sizes.autocast(device):
        for who in ("teacher", *look.laws):
            settles = look.own and who == "corrected"
            written[who] = (
                settled(look, rows, uniforms, rng) if settles else look.write(who, rows, uniforms))
        readers = ("student", "teacher") if look.summed else ()
        sums = {who: sums_of(look, rows, written[who]) for who in readers}
    values = {"reverse_kl": sums["student"]["divergence"]} if look.summed else {}
    values |= {f"{who}_entropy": x[f"{who}_entropy"] for who, x in sums.items()}
    values["tokens"] = written["student"].mask.sum(1).float()
    for who, completions in written.items():
        texts = [look.task.decode(ids) for ids in completions.ids.tolist()]
        did = [look.task.measures(text, row.example) for row, text in zip(rows, texts)]
        values |= {f"{who}_{name}": torch.tensor([d[name] for d in did]) for name in did[0]}
    return {name: value.cpu() for name, value in values.items()}


def sums_of(look: Look, rows: list[Row], completions: Completions) -> dict[str, Tensor]:
    """Sums (B,) over the tokens of each completion: KL(student || teacher) and both entropies."""
    readings = {name: READINGS[name] for name in ("student_entropy", "teacher_entropy")}
    device, kinds = look.classes.device, look.method.contexts
    empty = torch.zeros(len(rows), device=device)
    sums = {name: empty.clone() for name in ("divergence", *readings)}
    shown = {kind: minisd.prompts_of(look.task, rows, kind, device) for kind in kinds}
    for index, part in Batch(rows, shown, completions, empty, look.sizes).parts():
        terms = [(1.0, look.model, part.shown[look.context])]
        x = minisd.score(look.method, look.model, terms, part, readings)
        for name, total in sums.items():
            total[index] = x[name].sum(1)
    return sums


@torch.no_grad()
def traced(look: Look, law: str, rows: list[Row], uniforms: Tensor) -> list[dict]:
    """Completions of the rows by a law, and who chose what of each of their tokens.

    `content`: whether the class left a choice. `probs`: of the token's class for the teacher and
    for the student, and of the token within its class for the student and for the teacher.
    """
    device, kind, classes = look.classes.device, look.context, look.classes
    written = look.write(law, rows, uniforms)
    shown = {k: minisd.prompts_of(look.task, rows, k, device) for k in ("none", kind)}
    batch = Batch(rows, shown, written, torch.zeros(len(rows), device=device), look.sizes)
    tokens = written.ids[written.mask][:, None]  # (N, 1)

    def within(logits: Tensor) -> Tensor:  # (1, N)
        return within_class(minisd.log_softmax(logits[0]), classes).gather(1, tokens).T

    p, q = "student", "teacher"
    x = minisd.score(look.method, look.model, [(1.0, look.model, shown[kind])], batch, {
        p: lambda s, t: within(s), q: lambda s, t: within(t)})
    of_class = [x[f"{who}_log_probs"] - x[who] for who in (q, p)]
    probs = torch.stack([*of_class, x[p], x[q]], -1).exp().tolist()  # (B, T, 4)
    several, found = torch.bincount(classes)[classes] > 1, []
    for row, ids, mask, numbers in zip(rows, written.ids, written.mask, probs):
        ids = ids[mask]
        text = look.task.decode(ids.tolist())
        found.append({
            "tokens": [toy_tasks.VOCABULARY[i] for i in ids.tolist()], "text": text,
            "right": look.task.reward(text, row.example) == 1, "content": several[ids].tolist(),
            "probs": numbers[: len(ids)]})
    return found


# 3. The forecast ----------------------------------------------------------------------------------
VISITS = 16  # to a problem, of a group of completions each: 1 - 1/e of its content is learnt
NOW, HINTED = "student_accuracy_frac", "teacher_accuracy_frac"


def pool_share(law: str, visits: float, own: bool) -> float:
    """k, the share (0-1) of the pool's content that so many visits leave in the student."""
    # A verdict on the student's own attempt is nothing to learn by heart.
    return 0.0 if own and law == "corrected" else 1 - math.exp(-visits / VISITS)


def predictions(fresh: dict[str, Tensor], pool: dict[str, Tensor], law: str, k: float) -> dict:
    """What a law says of both splits, from `samples_of` them: means, standard errors, verdict."""
    name, found = f"{law}_accuracy_frac", {"k": k}
    for what, values in (
        ("fresh_accuracy", fresh[name]), ("fresh_change", fresh[name] - fresh[NOW]),  # paired
        ("pool_accuracy", k * pool[HINTED] + (1 - k) * pool[name]),
    ):
        mean, error = mean_and_error(values)
        found |= {f"predicted_{what}_frac": mean, f"predicted_{what}_se_frac": error}
    change, error = (found[f"predicted_fresh_change{unit}"] for unit in ("_frac", "_se_frac"))
    large = "self-distil" if change > 0 else "do not"
    return found | {"verdict": large if abs(change) > 2 * error else "no difference"}


def table_of(values: dict[str, Tensor]) -> dict[str, float]:
    """Means of `samples_of` a split, standard errors of accuracies, and the rival forecasts."""
    def more(name: str) -> float:  # of the teacher's than of the student's
        return table[f"teacher_{name}"] - table[f"student_{name}"]

    table = {"problems": len(values["tokens"])}
    for name, value in values.items():
        table[name] = value.mean().item()
        if name.endswith("_accuracy_frac"):
            table[name.replace("_frac", "_se_frac")] = mean_and_error(value)[1]
    if "teacher_markers_per_completion" in table:
        table["marker_change_per_completion"] = more("markers_per_completion")
    return table | {
        "reverse_kl_per_token": table.pop("reverse_kl") / table["tokens"],
        "initial_gap_frac": more("accuracy_frac"), "entropy_drop_per_completion": -more("entropy")}


def forecast(look: Look, *, count: int, seed: int, visits: float) -> dict:
    """What forecast.json holds: the numbers of the last law, of all, and what they are made of."""
    fresh, pool = (samples_of(look, split, count, seed) for split in ("fresh", "train"))
    laws = {
        law: predictions(fresh, pool, law, pool_share(law, visits, look.own)) for law in look.laws}
    result = {"context": look.context, "visits": visits, "law": look.laws[-1]}
    result |= laws[look.laws[-1]]
    return result | {"laws": laws, "fresh": table_of(fresh), "pool": table_of(pool)}


def in_words(x: dict, problems: int) -> str:
    """The forecast in five lines, for a reader who knows nothing of it."""
    def number(name: str, sign: str = "") -> str:
        return f"{x[f'predicted_{name}_frac']:{sign}.2f} +- {x[f'predicted_{name}_se_frac']:.2f}"

    fresh, marks = x["fresh"], ""
    if "student_markers_per_completion" in fresh:
        now, then = (fresh[f"{who}_markers_per_completion"] for who in ("student", x["law"]))
        marks = f"; markers per completion: {now:.2f}, after it {then:.2f}"
    pool = f"the {problems or 'endless'} training problems"
    return "\n".join([
        f"now       right on {fresh[NOW]:.2f} of fresh problems, on {fresh[HINTED]:.2f} with "
        f"{x['context']!r} in view{marks}",
        "predicted, after self-distillation:",
        f"fresh     {number('fresh_accuracy')} of unseen problems, {number('fresh_change', '+')}",
        f"pool      {number('pool_accuracy')} of {pool}, {x['visits']:.0f} visits to each",
        f"verdict   {x['verdict']}, as far as fresh problems go (the bound: two standard errors)"])


# 4. Command line ----------------------------------------------------------------------------------
LEAST = {"eval_problems": 2, "seed": 0, "train_problems": 0, "steps": 0, "threads": 0}


@dataclass(frozen=True)
class Forecast:
    """What is forecast, and from how many samples."""

    context: str = "solution"  # what the teacher is to see
    corrected: bool = False  # predict by the corrected law; forecast.json has both
    seed: int = 0  # of the base model, the pool and the samples
    train_problems: int = 64  # problems in the training pool; 0: endless
    steps: int = 150  # of the training that is forecast
    batch_size: int = 128  # completions per step of that training
    group_size: int = 8  # of them of one problem; a sibling is looked for among so many
    eval_problems: int = 512  # problems of each split that are sampled
    max_new_tokens: int = 96  # length limit of a completion, tokens
    device: str = "auto"  # auto, cpu, cuda or mps
    threads: int = 1  # CPU threads; 0: as PyTorch decides
    out_dir: str = "out/forecast"  # where forecast.json goes
    cache_dir: str = "out/base"  # where base models are kept

    def __post_init__(self):
        flags.check_numbers(self, LEAST)
        flags.out_folder(self.out_dir)


def main(arguments: list[str]) -> None:
    parser = flags.OneLineParser(
        prog="python -m lab.forecast", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_group(parser, Forecast, "forecast")
    flags.add_group(parser, Toy, "toy")
    given = vars(parser.parse_args(arguments))
    asked, toy = flags.settings_of(Forecast, given), flags.settings_of(Toy, given)
    flags.check_context(toy, {asked.context}, distils=True)
    task = toy.make_task(asked.train_problems, asked.seed)
    flags.check_contexts(Method(teacher="live", context=asked.context), task)
    device = storage.prepare_device(asked.device, asked.threads)
    path = Path(asked.out_dir) / "forecast.json"
    path.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    model, _ = base_model(
        toy_tasks.parse_world(toy.world), asked.seed, steps=toy.pretrain_steps,
        device=device.type, cache_dir=asked.cache_dir)
    look = Look.at(
        task, model, asked.context, group_size=asked.group_size,
        max_new_tokens=asked.max_new_tokens,
        laws=tuple(LAWS) if asked.corrected else ("transplant",))
    visits = asked.steps * asked.batch_size / asked.group_size / (asked.train_problems or math.inf)
    found = forecast(look, count=asked.eval_problems, seed=asked.seed, visits=visits)
    settings = dataclasses.asdict(asked) | dataclasses.asdict(toy)
    storage.write_json(path, found | {"settings": settings})
    print(f"{in_words(found, asked.train_problems)}\nwritten: {path}")


if __name__ == "__main__":
    flags.run_main("python -m lab.forecast", main)
