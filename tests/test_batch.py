"""Laws of one batch and one step: who writes, who sees what, what counts, and what is trained."""

import dataclasses
import itertools
import math
import random

import pytest
import torch
from tiny import move, weights_of

import minisd
import toy_tasks
from minisd import (
    GPT,
    METHODS,
    REDUCTIONS,
    Completions,
    GPTConfig,
    Method,
    Sizes,
    Teacher,
    entropy,
    forward_kl,
    group_advantages,
    loss_of,
    rollout,
    score,
    step,
    token_log_probs,
    weighted_sum,
)
from toy_tasks import ToyTask, World

SIZES = Sizes(groups=3, group_size=4, max_new_tokens=12)
CONTEXTS = [kind for kind in toy_tasks.CONTEXTS if kind != "none"]


class ShortTask(ToyTask):
    """Several end tokens, so that completions of an untrained model differ in length."""

    end_ids = (toy_tasks.END_ID, *toy_tasks.encode("7; wait "))


class CoinTask(ShortTask):
    """Rewards that differ within groups: no untrained model ever answers."""

    def reward(self, text, example):
        return float(sum(map(ord, text)) % 2)


class DealtTask(ShortTask):
    """Rewards as dealt, completion by completion, from the start again when they run out."""

    def deal(self, *rewards):
        self.rewards = itertools.cycle(map(float, rewards))
        return self

    def reward(self, text, example):
        return next(self.rewards)


def make_task(kind=CoinTask, **options) -> ToyTask:
    return kind(World(max_operations=3), pool_size=8, **options)


def make_student(vocab_size: int = len(toy_tasks.VOCABULARY)) -> GPT:
    """Of the toy's vocabulary; float64 for exact sums, and far from uniform."""
    shape = GPTConfig(vocab_size, width=16, n_heads=2, n_kv_heads=2, head_dim=8, mlp_width=20,
                      head_std=0.5)
    return GPT(shape, torch.Generator().manual_seed(0)).double()


def make_teacher(method: Method, student: GPT) -> Teacher:
    """Copies that have other weights than the student, who has gone on since."""
    needs = any(weights == "external" for _, weights, _ in method.terms)
    other = make_student(student.config.vocab_size) if needs else None
    teacher = Teacher(method, student, external=other)
    move(student, 1, size=0.05)
    return teacher


def draw(method: Method, task: ToyTask | None = None, sizes: Sizes = SIZES, seed=0):
    """A student, its teacher and a batch."""
    student = make_student()
    teacher = make_teacher(method, student)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    batch = rollout(method, task or make_task(), student, teacher, rng, generator, sizes)
    lengths = batch.completions.mask.sum(1)
    assert lengths.min() < lengths.max()  # else all reductions are the same
    return student, teacher, batch


def settings_of(name: str, **changes) -> Method:
    return dataclasses.replace(METHODS[name], **changes)


class Recorder(torch.optim.SGD):
    """Keeps the gradient with which it is asked to step, and does not move the weights."""

    def __init__(self, model: GPT):
        super().__init__(model.parameters(), lr=0.0)

    def step(self):
        parameters = self.param_groups[0]["params"]
        self.gradient = torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def gradient_of_step(method, student, teacher, batch, **sizes):
    """The gradient with which `step` steps, unclipped, with the loss as its last entry."""
    smaller = dataclasses.replace(batch, sizes=dataclasses.replace(batch.sizes, **sizes))
    optimizer, reference = Recorder(student), make_student()
    numbers = step(method, student, teacher, optimizer, smaller, reference=reference,
                   grad_clip=math.inf)
    assert all(p.grad is None for p in student.parameters())
    loss = optimizer.gradient.new_tensor([numbers["loss"]])
    assert numbers["grad_norm"] == pytest.approx(optimizer.gradient.norm().item())
    return torch.cat((optimizer.gradient, loss))


# Who writes, and who sees what --------------------------------------------------------------------


@pytest.mark.parametrize("context", CONTEXTS)
def test_no_privileged_token_is_ever_in_a_student_prompt(context):
    """The leak of a hint to the student, under which every method looks wonderful."""
    task = make_task(rules=(3,) if context == "rule" else ())
    _, _, batch = draw(Method(context=context), task)
    assert len(batch.rows) == 12 and list(batch.shown) == ["none", context]
    shown = zip(batch.shown["none"].ids.tolist(), batch.shown[context].ids.tolist(), batch.rows)
    for ids, hinted, row in shown:
        assert task.decode(ids) == row.example.prompt
        assert task.decode(hinted) == row.contexts[context] + row.example.prompt
        assert row.contexts[context] or context == "sibling"  # of a group without another success
    assert any(row.contexts[context] for row in batch.rows)


def test_rows_prompts_completions_and_rewards_belong_together():
    """Rows out of order: a completion that is scored behind the prompt of another problem."""
    task = make_task()
    student, _, batch = draw(Method(), task, seed=1)
    for i, row in enumerate(batch.rows):
        mask = batch.completions.mask[i]
        assert batch.completions.ids[i][mask].tolist() == row.ids
        assert batch.completions.token_log_probs[i][mask].tolist() == pytest.approx(row.log_probs)
        assert task.decode(row.ids) == row.text and task.reward(row.text, row.example) == row.reward
        assert batch.rewards[i] == row.reward
        assert row.example == batch.rows[i - i % 4].example  # groups of 4 share their problem
    assert len({row.text for row in batch.rows}) > 9
    # The log-probabilities are those of the student behind the prompt without context.
    with torch.no_grad():
        x = score(Method(), student, [], batch)
    # 1e-4: the cached and the whole forward add in another order, sampling in float32.
    torch.testing.assert_close(
        x["student_log_probs"].float(), batch.completions.token_log_probs, atol=1e-4, rtol=0)


def test_a_sibling_is_another_right_completion_of_the_group():
    """A completion that is shown to itself, a wrong one, or one from another problem's group."""
    task = make_task(DealtTask)
    for seed in range(20):
        task.deal(1, 0, 1, 0, 1, 0, 0, 0)
        sizes = dataclasses.replace(SIZES, groups=2)
        _, _, batch = draw(Method(context="sibling"), task, sizes, seed)
        texts = [row.text for row in batch.rows]
        shown = [row.contexts["sibling"] for row in batch.rows]
        peer = [f"peer {text} | " for text in texts]
        assert shown[0] == peer[2] and shown[2] == peer[0]
        assert {shown[1], shown[3]} <= {peer[0], peer[2]}
        assert shown[4:] == ["", peer[4], peer[4], peer[4]]


def test_feedback_is_about_the_completion_itself():
    """A verdict on the completion of another row, or on one that was written behind a hint."""
    task = make_task(ShortTask)
    _, _, batch = draw(Method(context="feedback"), task)
    for row in batch.rows:
        expected = task.context(row.example, "feedback", random.Random(0), row.text)
        assert row.contexts["feedback"] == expected


def test_completions_without_their_context_are_left_out_of_the_loss():
    """Distillation from a teacher that sees nothing when a group has no success."""
    task, method = make_task(DealtTask).deal(1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0), METHODS["sdft"]
    _, _, batch = draw(method, task)
    mask = batch.completions.mask
    seen = torch.tensor([True] * 4 + [False, True, True, True] + [False] * 4)
    assert torch.equal(batch.weights["distillation"] > 0, mask & seen[:, None])
    assert batch.totals["distillation"] == mask[seen].sum()
    student, teacher, batch = draw(method, task.deal(0))
    gradient = gradient_of_step(method, student, teacher, batch)
    assert (gradient == 0).all()


def test_a_teacher_of_several_terms_needs_all_of_their_contexts():
    """A target whose second term sees nothing, for a completion that has the first context."""
    target = ((0.5, "frozen", "solution"), (0.5, "frozen", "sibling"))
    _, _, batch = draw(Method(target=target), make_task(DealtTask).deal(1, 0, 0, 0))
    seen = torch.tensor([False, True, True, True] * 3)
    assert torch.equal((batch.weights["distillation"] > 0).any(1), seen)
    anchored = Method(target=((0.5, "frozen", "solution"), (0.5, "frozen", "none")))
    _, _, batch = draw(anchored)
    assert (batch.weights["distillation"] > 0).any(1).all()


def test_resampling_replaces_groups_with_equal_rewards_and_counts_them():
    """Groups with a signal thrown away, or the share counted after they were replaced."""
    task = make_task(DealtTask)
    method = settings_of("dapo", resample=1)
    flat, mixed = (1, 1, 1, 1), (0, 1, 0, 0)
    _, _, batch = draw(method, task.deal(*flat, *mixed, *flat, *mixed, *mixed))
    assert batch.rewards.tolist() == [*mixed] * 3
    assert batch.equal_groups_frac == pytest.approx(2 / 3)
    first = draw(method, task.deal(*flat, *mixed, *flat, *flat, *flat))[2]
    assert first.rewards.tolist() == [*mixed, *flat, *flat]
    # The group that stays is the very one that was drawn: the same text as without resampling.
    kept = draw(METHODS["dr_grpo"], task.deal(*flat, *mixed, *flat))[2]
    assert [r.text for r in first.rows[:4]] == [r.text for r in kept.rows[4:8]]
    assert len(batch.rows) == len(batch.completions.ids) == len(batch.shown["none"].ids) == 12
    for row, ids, prompt in zip(batch.rows, batch.completions.ids, batch.shown["none"].ids):
        assert task.decode(ids.tolist()) == row.text
        assert task.decode(prompt.tolist()) == row.example.prompt


def test_mixed_sampling_takes_the_stated_share_from_the_data():
    """A fraction that counts completions of the wrong author, or references without their end."""
    task = make_task(ShortTask)
    sizes = dataclasses.replace(SIZES, groups=4, max_new_tokens=40)
    _, _, batch = draw(settings_of("gkd", student_frac=0.25), task, sizes)
    assert (batch.rewards[4:] == 1).all() and len(batch.rewards) == 16  # references are right
    assert all(row.ids[-1] == task.end_ids[0] for row in batch.rows[4:])
    assert (batch.completions.token_log_probs[4:] == 0).all()


def test_off_policy_completions_are_those_of_the_teacher_with_its_context():
    """Imitation of samples that the student wrote, or a teacher that saw no hint."""
    method = METHODS["seq_kd"]
    student, teacher, batch = draw(method)
    ((_, model, shown),) = teacher.terms(batch.shown)
    ids, mask = batch.completions.ids, batch.completions.mask
    with torch.no_grad():
        logits = model.lm_head(minisd.completion_hidden(model, shown, ids))
        hinted = token_log_probs(logits, ids).masked_fill(~mask, 0.0)
        unhinted = score(method, student, [], batch)["student_log_probs"]
    # 1e-4: the cached and the whole forward add in another order, sampling in float32.
    torch.testing.assert_close(
        hinted.float(), batch.completions.token_log_probs, atol=1e-4, rtol=0)
    assert (unhinted - hinted).abs().max() > 0.1


def test_an_adapted_teacher_writes_with_the_context_in_its_own_prompt():
    """A teacher that is adapted by reward on prompts that it will never be shown."""
    method = Method(reward_weight=1.0, student_context="solution", context="none")
    student, _, batch = draw(method)
    assert batch.shown.keys() == {"solution", "none"}
    with torch.no_grad():
        x = score(method, student, [], batch)
    torch.testing.assert_close(
        x["student_log_probs"].float(), batch.completions.token_log_probs, atol=1e-4, rtol=0)


def test_the_same_generators_give_the_same_batch():
    """Completions that are the same for every seed, or drawn from the global generators."""
    texts = [[row.text for row in draw(Method(), seed=seed)[2].rows] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] and texts[0] != texts[2]


class Reversal:
    """A task that is nothing but the protocol: write the letters backwards."""

    pad_id, end_ids, splits, attempts = 0, (1,), ("train",), {"peer": "sibling"}

    def draw(self, split, rng):
        return "".join(rng.choices("abc", k=3))

    def context(self, example, kind, rng, attempt=""):
        return f"{attempt or example[::-1]}|"

    def prompt_ids(self, example, context=""):
        return self.encode(f"{context}{example}>")

    def reference(self, example, rng):
        return example[::-1]

    def reward(self, text, example):
        return float(text[:1] == example[-1])

    def measures(self, text, example):
        return {"accuracy_frac": self.reward(text, example)}

    def encode(self, text):
        return [2 + "abc|>".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("abc|>"[i - 2] for i in ids if i > 1)


@pytest.mark.parametrize("name", ["sdpo", "sdft", "grpo", "sft", "gkd"])
def test_any_object_with_the_protocol_is_a_task(name):
    """A loop that knows the toy: grades, examples with a prompt, contexts by name."""
    changes = {"context": "peer"} if name == "sdft" else {}
    method, student = settings_of(name, **changes), make_student(7)
    teacher, sizes = make_teacher(method, student), Sizes(8, 4, max_new_tokens=6)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    batch = rollout(method, Reversal(), student, teacher, rng, generator, sizes)
    before = weights_of(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    numbers = step(method, student, teacher, optimizer, batch, reference=make_student(7))
    assert numbers["grad_norm"] > 0 and not torch.equal(weights_of(student), before)


# How much each token counts -----------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_are_those_of_the_reduction(reduction):
    """Padding that counts, or a constant that is not the length limit."""
    _, _, batch = draw(Method(reduction=reduction))
    lengths = batch.completions.mask.sum(1)
    total = {"token_mean": lengths.sum(), "sequence_mean": 12, "constant": 12 * 12}[reduction]
    weight = 1 / lengths[:, None] if reduction == "sequence_mean" else 1.0
    for name in ("distillation", "policy"):
        assert batch.totals[name] == total
        torch.testing.assert_close(batch.weights[name], batch.completions.mask * weight)


def test_only_correct_completions_are_imitated_and_all_of_the_policy_counts():
    """Wrong completions that are learnt, or that a policy gradient does not see."""
    method = settings_of("sft")
    _, _, batch = draw(method)
    right = batch.rewards == 1
    assert 0 < right.sum() < 12
    expected = batch.completions.mask & right[:, None]
    assert torch.equal(batch.weights["distillation"], expected.float())
    assert torch.equal(batch.weights["policy"], batch.completions.mask.float())


def test_advantages_are_those_of_the_groups():
    """Rewards cut into the wrong groups, or the batch's mean as the baseline."""
    for name, normalise in (("grpo", "std"), ("dr_grpo", "mean")):
        _, _, batch = draw(METHODS[name])
        expected = group_advantages(batch.rewards.view(3, 4), normalise=normalise).view(12, 1)
        mask = batch.completions.mask
        assert torch.equal(batch.weights["advantages"], expected.expand(mask.shape))


@pytest.mark.parametrize("micro_batch", [0, 5])
@pytest.mark.parametrize("reward_weight", [0.5, 1.0])
def test_rows_of_the_tables_see_scores_in_the_order_of_the_batch(
    monkeypatch, micro_batch, reward_weight
):
    """Values of slices that were sorted by length, given back in the order of the slices."""
    seen = []

    def probe(batch, scores, method):
        seen.append(scores({"entropy": lambda s, t: entropy(s), "forward_kl": forward_kl}))
        return seen[-1]["divergence"]

    monkeypatch.setitem(minisd.TOKEN_WEIGHTS, "probe", probe)
    monkeypatch.setitem(minisd.ADVANTAGES, "probe", probe)
    method = Method(token_weights="probe", advantage="probe", reward_weight=reward_weight)
    sizes = dataclasses.replace(SIZES, micro_batch=micro_batch, groups=5)
    student, teacher, batch = draw(method, sizes=sizes)
    order = torch.cat([rows for rows, _ in batch.parts()])
    assert order.tolist() != sorted(order.tolist())
    with torch.no_grad():
        readings = {"entropy": lambda s, t: entropy(s), "forward_kl": forward_kl}
        whole = score(method, student, teacher.terms(batch.shown), batch, readings)
    assert len(seen) == 2
    for x in seen:
        assert x.keys() == whole.keys()
        for name, values in x.items():
            assert not values.requires_grad
            torch.testing.assert_close(values, whole[name], atol=1e-10, rtol=0)
    divergence = whole["divergence"].float()
    torch.testing.assert_close(batch.weights["distillation"], divergence)
    torch.testing.assert_close(batch.weights["advantages"].float(), divergence)
    # A slice has the weights of its own rows.
    for rows, part in batch.parts():
        T = part.completions.ids.shape[1]
        for name, weights in part.weights.items():
            assert torch.equal(weights, batch.weights[name][rows, :T])


def test_scores_cost_nothing_unless_a_row_asks_for_them(monkeypatch):
    """A forward of student and teacher at every step, for rows that look at the mask alone."""
    calls = []
    monkeypatch.setattr(minisd, "score", lambda *a, **kw: calls.append(a))
    draw(settings_of("sdpo_grpo"))
    assert not calls


# The parts of a batch -----------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [0, 1, 5, 100])
def test_parts_hold_every_row_once_with_everything_that_belongs_to_it(micro_batch):
    """A row that is left out or counted twice, or cut off by the width of its slice."""
    sizes = dataclasses.replace(SIZES, micro_batch=micro_batch, groups=20)
    _, _, batch = draw(settings_of("sdpo_grpo"), sizes=sizes)
    parts = list(batch.parts())
    assert len(parts) == {0: 4, 1: 80, 5: 16, 100: 1}[micro_batch]
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == list(range(80))
    used = [len(row.ids) + len(batch.shown["none"].ids[0]) - batch.shown["none"].pad_count[i]
            for i, row in enumerate(batch.rows)]
    lengths = [used[i] for rows, _ in parts for i in rows.tolist()]
    assert lengths == sorted(lengths)
    for rows, part in parts:
        assert part.totals is batch.totals and torch.equal(part.rewards, batch.rewards[rows])
        for i, row in enumerate(batch.rows[j] for j in rows.tolist()):
            assert part.completions.ids[i][part.completions.mask[i]].tolist() == row.ids
            for kind, prompts in part.shown.items():
                whole = batch.shown[kind]
                expected = whole.ids[rows[i], whole.pad_count[rows[i]] :]
                assert torch.equal(prompts.ids[i, prompts.pad_count[i] :], expected)
            assert part.weights["distillation"][i].sum() == len(row.ids)


METHOD_CASES = {
    "sdpo": {}, "opsd": {}, "sft": {}, "opd": {}, "sequence_kl": {"importance_cap": 2.0},
    "grpo": {}, "sdpo_grpo": {}, "dapo": {"resample": 0},
}


# Every method, and every reduction of one with both parts of the loss.
WITH_REDUCTION = {*zip(METHOD_CASES, itertools.cycle(REDUCTIONS))}
WITH_REDUCTION |= {("sdpo_grpo", reduction) for reduction in REDUCTIONS}


@pytest.mark.parametrize("name, reduction", sorted(WITH_REDUCTION))
def test_micro_batches_give_the_gradient_of_the_whole_batch(name, reduction):
    """Means over the micro-batch, and advantages of a group that is cut in two."""
    method = settings_of(name, **METHOD_CASES[name], reduction=reduction)
    student, teacher, batch = draw(method)
    whole = gradient_of_step(method, student, teacher, batch, micro_batch=12)
    assert whole[:-1].abs().max() > 1e-4
    # What autograd says of the loss of the whole batch, which is in no order and no parts.
    x = score(method, student, teacher.terms(batch.shown), batch)
    with torch.no_grad():
        x["reference_log_probs"] = score(method, make_student(), [], batch)["student_log_probs"]
    loss = loss_of(method, x, batch)
    plain = torch.autograd.grad(loss, list(student.parameters()))
    plain = torch.cat([*(g.flatten() for g in plain), loss.detach()[None]])
    torch.testing.assert_close(whole, plain, rtol=1e-9, atol=1e-12)
    for sizes in ({"micro_batch": 1}, {"micro_batch": 5}, {"micro_batch": 5, "chunk_tokens": 7},
                  {"chunk_tokens": 7}):  # 5 cuts groups and leaves a rest
        parts = gradient_of_step(method, student, teacher, batch, **sizes)
        # Divergences are float64; weights of a mean are float32, so sums differ by their rounding.
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-8)


def test_readings_are_means_over_the_tokens_of_the_whole_batch():
    """A reading that is the mean of means, or of the last micro-batch alone."""
    method = METHODS["sdpo"]
    readings = {"forward_kl": forward_kl, "one": lambda s, t: s[..., 0] * 0 + 1}
    student, teacher, batch = draw(method)
    with torch.no_grad():
        x = score(method, student, teacher.terms(batch.shown), batch, readings)
    expected = x["forward_kl"][batch.completions.mask].mean().item()
    for micro_batch in (0, 5):
        sizes = dataclasses.replace(batch.sizes, micro_batch=micro_batch)
        numbers = step(method, student, teacher, Recorder(student),
                       dataclasses.replace(batch, sizes=sizes), readings=readings)
        assert numbers["forward_kl"] == pytest.approx(expected, rel=1e-9)
        assert numbers["one"] == pytest.approx(1.0)
        assert numbers.keys() == {"loss", "grad_norm", "forward_kl", "one"}


@pytest.mark.parametrize("name", ["sdpo", "grpo", "sdpo_grpo"])
def test_a_step_that_is_not_logged_learns_the_same(name):
    """A loss that loses a term with the readings, or a teacher run for nothing."""
    method = METHODS[name]
    student, teacher, batch = draw(method)
    scored, results = [], []
    for model in teacher.copies.values():
        model.norm.register_forward_hook(lambda *_: scored.append(1))
    for readings in ({"forward_kl": forward_kl}, None):
        optimizer = Recorder(student)
        numbers = step(method, student, teacher, optimizer, batch, reference=make_student(),
                       readings=readings)
        results.append((numbers["loss"], optimizer.gradient))
    assert len(scored) == (1 if name == "grpo" else 2)
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])


# The loss and the step ----------------------------------------------------------------------------

EVERY_LOSS = [
    {"divergence": "forward_kl"}, {"divergence": "reverse_kl"}, {"divergence": "jensen_shannon"},
    {"divergence": "top_k_reverse_kl"},
    {"credit": "sequence"}, {"credit": "sampled"}, {"credit": "imitation", "student_frac": 0.0},
    {"reward_weight": 1.0}, {"reward_weight": 0.5}, {"importance_cap": 2.0}, {"kl_coef": 0.1},
    {"target": ((1.0, "ema", "solution"), (-0.5, "frozen", "none"))},
    {"teacher": "trust_region", "teacher_update_rate": 0.3}, {"teacher": "live"},
    {"student_frac": 0.5}, {"student_frac": 0.5, "off_policy": "data"},
]


@pytest.mark.parametrize("settings", EVERY_LOSS, ids=str)
def test_every_loss_gives_the_student_a_gradient_and_the_teacher_none(settings):
    """A setting that is not wired, and a teacher that is trained with the student."""
    method = Method(**settings)
    student, teacher, batch = draw(method)
    reference = make_student()
    copies = {name: weights_of(model) for name, model in teacher.copies.items()}
    before, initial = weights_of(student), weights_of(reference)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    numbers = step(method, student, teacher, optimizer, batch, reference=reference)
    assert numbers["grad_norm"] > 0 and not torch.equal(weights_of(student), before)
    assert torch.equal(weights_of(reference), initial)
    assert all(p.grad is None for p in reference.parameters())
    for name, model in teacher.copies.items():
        assert torch.equal(weights_of(model), copies[name])
        assert all(p.grad is None for p in model.parameters())


CHANGES = [
    ({"divergence": "jensen_shannon"}, {"teacher_weight": 0.2}),
    ({"divergence": "top_k_reverse_kl"}, {"top_k": 2}),
    ({"divergence": "top_k_reverse_kl", "top_k": 2}, {"top_k_support": "teacher"}),
    ({"credit": "sequence"}, {"discount": 0.0}),
    ({}, {"reduction": "sequence_mean"}), ({}, {"reduction": "constant"}),
    ({}, {"reward_weight": 0.5}), ({}, {"importance_cap": 0.5}), ({}, {"kl_coef": 5.0}),
    ({}, {"token_weights": "correct_only"}), ({}, {"credit": "sampled"}),
    ({"reward_weight": 1.0}, {"advantage": "group_without_std"}),
    ({"reward_weight": 1.0}, {"clip_low": 0.01, "clip_high": 0.01}),
    ({"teacher": "trust_region"}, {"teacher_update_rate": 0.5}),
    ({}, {"context": "partial"}), ({}, {"student_context": "answer"}),
    ({"student_frac": 0.5}, {"off_policy": "data"}),
    ({}, {"target": ((1.0, "frozen", "solution"), (0.5, "live", "none"))}),
]


@pytest.mark.parametrize("settings, change", CHANGES, ids=str)
def test_every_setting_of_a_method_changes_the_gradient(settings, change):
    """A setting that is declared and never used, a mistake found in published code."""
    gradients = []
    for chosen in (settings, settings | change):
        method = Method(**chosen)
        student, teacher, batch = draw(method)
        move(student, 2, size=0.03)  # gone on since it wrote: ratios are not 1
        gradients.append(gradient_of_step(method, student, teacher, batch))
    assert not torch.equal(*gradients)


def test_the_loss_is_the_weighted_sum_of_its_three_parts():
    """A part that is counted twice, with the weight of another, or over the wrong tokens."""
    method = Method(reward_weight=0.3, kl_coef=0.7, token_weights="correct_only",
                    importance_cap=1.5, clip_low=0.1, clip_high=0.3)
    student, teacher, batch = draw(method)
    move(student, 2, size=0.03)
    x = score(method, student, teacher.terms(batch.shown), batch)
    x["reference_log_probs"] = score(method, make_student(), [], batch)["student_log_probs"]
    mask, right = batch.completions.mask, batch.rewards == 1
    p, old = x["student_log_probs"], batch.completions.token_log_probs
    ratio = (p - old).exp()
    kept = mask & right[:, None]
    distillation = (x["divergence"] * ratio.clamp(max=1.5))[kept].mean()
    A = group_advantages(batch.rewards.view(3, 4)).view(12, 1)
    policy = -torch.minimum(ratio * A, ratio.clamp(0.9, 1.3) * A)[mask].mean()
    gap = (x["reference_log_probs"] - p)[mask]
    penalty = (gap.exp() - gap - 1).mean()
    expected = 0.7 * distillation + 0.3 * policy + 0.7 * penalty
    # Weights and sampled log-probabilities are float32.
    torch.testing.assert_close(loss_of(method, x, batch), expected, rtol=1e-6, atol=1e-8)


def test_a_first_policy_step_has_ratio_one():
    """A ratio to other weights than those that sampled: the clip acts at the first step."""
    method = settings_of("grpo", kl_coef=0.0)
    student, teacher, batch = draw(method)
    x = score(method, student, [], batch)
    policy = weighted_sum(-batch.weights["advantages"] * x["student_log_probs"],
                          batch.weights["policy"]) / batch.totals["policy"]
    plain = torch.autograd.grad(policy, list(student.parameters()))
    plain = torch.cat([g.flatten() for g in plain])
    found = gradient_of_step(method, student, teacher, batch)[:-1]
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-6)  # the ratio is float32


def test_gradients_are_clipped_to_the_given_norm_and_the_norm_before_is_told():
    """A clip of each micro-batch, after the step, or a norm that is always the limit."""
    method = METHODS["sdpo"]
    student, teacher, batch = draw(method)
    whole = gradient_of_step(method, student, teacher, batch)[:-1]
    optimizer = Recorder(student)
    numbers = step(method, student, teacher, optimizer, batch, grad_clip=whole.norm().item() / 3)
    assert numbers["grad_norm"] == pytest.approx(whole.norm().item())
    torch.testing.assert_close(optimizer.gradient, whole / 3, rtol=1e-5, atol=1e-9)


def test_a_loss_that_is_not_finite_is_refused_and_leaves_the_weights_alone():
    """nan that reaches the weights, from where no later step can remove it."""
    method = METHODS["grpo"]
    student, teacher, batch = draw(method)
    before, optimizer = weights_of(student), torch.optim.SGD(student.parameters(), lr=0.1)
    batch.weights["advantages"] = batch.weights["advantages"] * torch.inf
    with pytest.raises(FloatingPointError, match="loss"):
        step(method, student, teacher, optimizer, batch, reference=make_student())
    assert torch.equal(weights_of(student), before)  # the next step clears the gradient
    with torch.no_grad():
        student.lm_head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match="logits: nan"):
        step(method, student, teacher, optimizer, batch, reference=make_student())


def test_activation_checkpointing_does_not_change_the_step():
    """Blocks that are computed again with other inputs, or with the teacher's."""
    method, results = Method(teacher="live"), []
    student, teacher, batch = draw(method)
    for student.activation_checkpointing in (False, True):
        results.append(gradient_of_step(method, student, teacher, batch))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_step_in_bfloat16_is_close_to_the_step_in_float32():
    """Autocast that does not reach the step, or rounded weights that outlive it."""
    method = METHODS["sdpo"]
    student, teacher, batch = draw(method)
    for model in (student, *teacher.copies.values()):
        model.float()
    exact = gradient_of_step(method, student, teacher, batch)
    rounded = gradient_of_step(method, student, teacher, batch, dtype="bfloat16")
    # 0.1: bfloat16 has 8 bits, and errors of single weights add up at random.
    assert 0 < (rounded - exact).norm() < 0.1 * exact.norm()
    assert torch.equal(gradient_of_step(method, student, teacher, batch), exact)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_step_and_its_teacher_moves_as_its_weights_say(name):
    """A row of the table that cannot be run, or a teacher that lags where it must not."""
    method = METHODS[name]
    student, teacher, batch = draw(method)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    numbers = step(method, student, teacher, optimizer, batch, reference=make_student())
    assert math.isfinite(numbers["loss"]) and numbers["grad_norm"] > 0
    before = {n: weights_of(model) for n, model in teacher.copies.items()}
    teacher.update(1)
    for n, model in teacher.copies.items():
        assert torch.equal(weights_of(model), before[n]) == (n != "ema")


def test_distillation_reduces_the_divergence():
    """A step up the gradient, or towards something else than the teacher."""
    method = Method(divergence="forward_kl")
    student, teacher, batch = draw(method)
    optimizer, losses = torch.optim.SGD(student.parameters(), lr=0.02), []
    for _ in range(5):
        losses.append(step(method, student, teacher, optimizer, batch)["loss"])
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.95 * losses[0]


def test_a_batch_of_measures_has_no_rows():
    """Scores of given texts that need a task, a rollout and weights."""
    student = make_student()
    _, _, batch = draw(Method())
    alone = minisd.Batch([], batch.shown, Completions.of([row.ids for row in batch.rows], 0),
                         batch.rewards, Sizes())
    terms = [(1.0, student, batch.shown["solution"])]
    with torch.no_grad():
        x, y = (score(Method(), student, terms, b) for b in (batch, alone))
    for name in x:
        assert torch.equal(x[name], y[name])
