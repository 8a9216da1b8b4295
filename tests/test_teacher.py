"""Laws of the teacher: whose weights, when they move, what it is shown, and what is refused."""

import copy

import pytest
import torch
from tiny import move, weights_of

import minisd
from minisd import METHODS, TARGETS, TEACHERS, Method, Prompts, Teacher, log_linear

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])  # B=2, T=5
SHOWN = {kind: Prompts.of([[i, 2], [i, 5]], 0) for i, kind in enumerate(("none", "solution"))}


def build(weights, student, make_gpt, **settings):
    external = make_gpt(9, width=16) if weights == "external" else None
    settings = {"teacher_update_rate": 0.25, **settings}
    return Teacher(Method(teacher=weights, **settings), student, external=external)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


# Whose weights ------------------------------------------------------------------------------------


def test_ema_moves_by_its_update_rate(make_gpt):
    """The rate taken for the decay, or an average with the old student."""
    student = make_gpt(1)
    teacher = build("ema", student, make_gpt)
    expected = weights_of(student)
    for n in (1, 2, 3):
        move(student, n)
        teacher.update(n)
        expected = 0.75 * expected + 0.25 * weights_of(student)
        close(weights_of(teacher.copies["ema"]), expected)


@pytest.mark.parametrize("rate, source", [(0.0, "start"), (1.0, "now")])
def test_ema_at_both_ends_is_frozen_or_a_copy(make_gpt, rate, source):
    """Rates 0 and 1 exchanged."""
    student = make_gpt(1)
    weights = {"start": weights_of(student)}
    teacher = build("ema", student, make_gpt, teacher_update_rate=rate)
    move(student, 1)
    teacher.update(1)
    weights["now"] = weights_of(student)
    close(weights_of(teacher.copies["ema"]), weights[source])


def test_ema_keeps_tied_weights_tied(make_gpt):
    """A shared weight that is averaged twice per step, or comes apart."""
    student = make_gpt(1, tied_embeddings=True)
    teacher = build("ema", student, make_gpt)
    start = weights_of(student)
    move(student, 1)
    teacher.update(1)
    model = teacher.copies["ema"]
    assert model.lm_head.weight is model.embed_tokens.weight
    close(weights_of(model), 0.75 * start + 0.25 * weights_of(student))


@pytest.mark.parametrize("weights", ["frozen", "external"])
def test_frozen_and_external_teachers_never_move(make_gpt, weights):
    """A teacher that shares its weights with the student, who is changed in place."""
    student = make_gpt(1)
    teacher = build(weights, student, make_gpt)
    start = weights_of(teacher.copies[weights])
    for n in (1, 2, 25):
        move(student, n)
        teacher.update(n)
    assert torch.equal(weights_of(teacher.copies[weights]), start)


def test_live_teacher_is_the_student_itself(make_gpt):
    """A live teacher that lags behind, or that freezes the student it shares weights with."""
    student = make_gpt(1)
    teacher = build("live", student, make_gpt)
    ((coefficient, model, shown),) = teacher.terms(SHOWN)
    assert coefficient == 1.0 and model is student and shown is SHOWN["solution"]
    assert not teacher.copies and all(p.requires_grad for p in student.parameters())


def test_snapshot_is_taken_every_so_many_steps(make_gpt):
    """A copy one step too early or late, at every step, or one that goes on moving."""
    student = make_gpt(1)
    teacher = build("snapshot", student, make_gpt, teacher_every=3)
    expected = weights_of(student)
    for n in range(1, 8):
        move(student, n)
        teacher.update(n)
        if n in (3, 6):
            expected = weights_of(student)
        close(weights_of(teacher.copies["snapshot"]), expected)


def test_weights_of_one_name_are_one_copy_and_each_name_has_its_own(make_gpt):
    """A copy for every term: two that must be the same drift apart, and the memory is full."""
    target = ((0.5, "ema", "solution"), (0.5, "ema", "none"), (0.2, "snapshot", "none"),
              (-0.2, "live", "none"))
    student = make_gpt(1)
    teacher = Teacher(Method(target=target, teacher_update_rate=0.25, teacher_every=2), student)
    assert list(teacher.copies) == ["ema", "snapshot"]
    terms = teacher.terms(SHOWN)
    assert [a for a, _, _ in terms] == [0.5, 0.5, 0.2, -0.2]
    ema, snapshot = teacher.copies["ema"], teacher.copies["snapshot"]
    assert all(x is y for x, y in zip((m for _, m, _ in terms), (ema, ema, snapshot, student)))
    assert [shown is SHOWN["solution"] for _, _, shown in terms] == [True, False, False, False]
    start = weights_of(student)
    move(student, 1)
    teacher.update(1)
    close(weights_of(ema), 0.75 * start + 0.25 * weights_of(student))
    assert torch.equal(weights_of(snapshot), start)


def test_a_new_kind_of_weights_is_one_row(make_gpt, monkeypatch):
    """A list of known kinds outside the table, which a new row would not be on."""
    monkeypatch.setitem(TEACHERS, "late", lambda method, step: 0.5 if step > 1 else 0.0)
    student = make_gpt(1)
    teacher, start = Teacher(Method(teacher="late"), student), weights_of(student)
    for n in (1, 2):
        move(student, n)
        teacher.update(n)
        assert torch.equal(weights_of(teacher.copies["late"]), start) == (n == 1)
    close(weights_of(teacher.copies["late"]), 0.5 * start + 0.5 * weights_of(student))


@pytest.mark.parametrize("weights", [*TEACHERS, *TARGETS])
def test_no_copy_can_be_trained_and_the_student_can(make_gpt, weights):
    """A teacher copy that the optimiser could reach, or a student frozen with its teacher."""
    student = make_gpt(1)
    teacher = build(weights, student, make_gpt)
    assert sum(a for a, _, _ in teacher.terms(SHOWN)) == pytest.approx(1.0)
    for model in teacher.copies.values():
        assert model is not student and not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_copies_are_made_by_the_function_that_is_given(make_gpt):
    """Weights that are spread over processes copied as if they were whole."""
    calls = []

    def copied(model):
        calls.append(model)
        return copy.deepcopy(model)

    student = make_gpt(1)
    Teacher(Method(target=((0.5, "ema", "solution"), (0.5, "frozen", "none"))), student,
            copied=copied)
    assert calls == [student, student]


@pytest.mark.parametrize("settings, external", [({"teacher": "external"}, False), ({}, True)])
def test_a_checkpoint_is_given_exactly_where_the_target_has_one(make_gpt, settings, external):
    """A checkpoint that is silently ignored, or one that is silently replaced by the student."""
    with pytest.raises(ValueError, match="external needs a checkpoint, and no other kind takes"):
        Teacher(Method(**settings), make_gpt(1), external=make_gpt(2) if external else None)


# Targets ------------------------------------------------------------------------------------------


def test_trust_region_is_the_normalised_geometric_mixture(make_gpt):
    """Weights exchanged, an arithmetic mixture, or the initial teacher allowed to move."""
    student = make_gpt(1)
    initial = copy.deepcopy(student)
    teacher = build("trust_region", student, make_gpt, teacher_update_rate=0.2)
    move(student, 1)
    teacher.update(1)
    terms = teacher.terms(SHOWN)
    mixed = log_linear([model(IDS) for _, model, _ in terms], [a for a, _, _ in terms])
    product = initial(IDS).softmax(-1) ** 0.8 * student(IDS).softmax(-1) ** 0.2
    close(mixed.softmax(-1), product / product.sum(-1, keepdim=True))
    assert all(shown is SHOWN["solution"] for _, _, shown in terms)


def test_terms_of_a_method():
    """A target that is ignored, or an ordinary teacher that is not its own single term."""
    assert Method().terms == ((1.0, "frozen", "solution"),)
    region = Method(teacher="trust_region", teacher_update_rate=0.3, context="answer")
    assert region.terms == ((0.7, "frozen", "answer"), (0.3, "live", "answer"))
    target = ((1.0, "ema", "solution"), (-0.5, "frozen", "none"))
    contrast = Method(target=target, teacher="live", context="wrong")
    assert contrast.terms == target
    assert contrast.contexts == ["none", "solution"]
    assert region.contexts == ["none", "answer"]
    assert Method(teacher="external", context="none").contexts == ["none"]
    assert Method(student_context="answer").contexts == ["answer", "solution"]


def test_a_new_target_is_one_row(monkeypatch):
    """Teachers of several terms that only the code of the core can add."""
    row = lambda m: ((1.5, "live", m.context), (-0.5, "live", "none"))  # noqa: E731
    monkeypatch.setitem(TARGETS, "sharper", row)
    method = Method(teacher="sharper", context="answer")
    assert method.terms == ((1.5, "live", "answer"), (-0.5, "live", "none"))
    assert method.contexts == ["none", "answer"]


# What a method refuses ----------------------------------------------------------------------------

NAMES = {
    "divergence": minisd.DIVERGENCES, "credit": minisd.CREDITS, "advantage": minisd.ADVANTAGES,
    "token_weights": minisd.TOKEN_WEIGHTS, "reduction": minisd.REDUCTIONS,
    "top_k_support": minisd.SUPPORTS, "top_k_tail": minisd.TAILS,
    "off_policy": ("teacher", "data"), "teacher": (*TEACHERS, *TARGETS),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_row_is_refused_in_one_line_with_the_flag_and_the_rows(name):
    """A typo that falls back to a default, or a message that does not say what is allowed."""
    with pytest.raises(ValueError) as refused:
        Method(**{name: "polyak"})
    message = str(refused.value)
    assert message.startswith(f"--{name}: 'polyak'; allowed: ") and "\n" not in message
    assert all(row in message for row in NAMES[name])


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(NAMES[n], dict)])
def test_a_new_row_is_a_name_that_a_method_knows(name, monkeypatch):
    """Names copied when the program starts, so that a row added later is unknown."""
    monkeypatch.setitem(NAMES[name], "mine", None)
    assert getattr(Method(**{name: "mine"}), name) == "mine"


BAD = [
    ({"teacher_update_rate": 1.5}, "--teacher_update_rate: 1.5; allowed: 0 to 1"),
    ({"teacher_update_rate": -0.1}, "--teacher_update_rate: -0.1"),
    ({"student_frac": 2.0}, "--student_frac: 2.0"),
    ({"discount": 1.01}, "--discount: 1.01"),
    ({"reward_weight": -0.5}, "--reward_weight: -0.5"),
    ({"reward_weight": float("nan")}, "--reward_weight: nan"),
    ({"target": ((1.0, "polyak", "solution"),)}, "--target: .*allowed: frozen, ema"),
    ({"target": ((1.0, "trust_region", "solution"),)}, "--target: "),
    # The teacher would be the student.
    ({"context": "none"}, "--context: 'none'; allowed: another"),
    ({"context": "none", "teacher": "ema"}, "--context: 'none'"),
    ({"context": "none", "teacher": "trust_region"}, "--context: 'none'"),
    ({"context": "none", "reward_weight": 0.5}, "--context: 'none'"),
    # Estimates of an expectation over the student's own completions.
    ({"student_frac": 0.5, "reward_weight": 0.5}, "--reward_weight: 0.5; allowed: 0 unless"),
    ({"student_frac": 0.5, "importance_cap": 2.0}, "--importance_cap: 2.0; allowed: 0 unless"),
    ({"student_frac": 0.5, "kl_coef": 0.1}, "--kl_coef: 0.1; allowed: 0 unless"),
    ({"student_frac": 0.5, "resample": 2}, "--resample: 2; allowed: 0 unless"),
    ({"student_frac": 0.5, "credit": "sampled"}, "--credit: 'sampled'; allowed: token, imitation"),
    ({"student_frac": 0.0, "credit": "sequence"}, "--credit: 'sequence'; allowed: token"),
    # Imitation of the student's own completions is no teacher's work.
    ({"credit": "imitation"}, "--student_frac: 1.0; allowed: 0 with --credit imitation"),
    ({"credit": "imitation", "student_frac": 0.5}, "--student_frac: 0.5; allowed: 0 with"),
]


@pytest.mark.parametrize("settings, message", BAD, ids=str)
def test_what_would_teach_nothing_is_refused_by_flag(settings, message):
    """A run that trains silently on a loss of 0, on a biased estimate, or on itself."""
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        Method(**settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("settings", [
    {"context": "none", "teacher": "external"},
    {"context": "none", "reward_weight": 1.0},
    {"context": "none", "credit": "imitation", "student_frac": 0.0},
    {"credit": "imitation", "reward_weight": 1.0},
    {"student_frac": 0.5},
    {"target": ((1.0, "live", "none"), (0.3, "frozen", "solution"))},
], ids=str)
def test_what_teaches_something_is_allowed(settings):
    """A check that is wider than its reason."""
    assert Method(**settings).terms


def test_every_row_of_the_methods_names_its_source_and_has_what_it_needs():
    """A row without a source, or one that a check would refuse if a flag built it again."""
    names = "sft seq_kd gkd opd opsd sdpo sdft sequence_kl grpo dr_grpo dapo sdpo_grpo"
    assert {*names.split(), "rlvr_teacher", "sft_then_sdpo"} <= set(METHODS)
    for method in METHODS.values():
        assert method.source and method.terms and method.contexts[0] == "none"
        assert Method(**vars(method)) == method
