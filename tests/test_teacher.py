"""Laws of the weights of the teacher: which ones, when they move, and that nothing trains them."""

import copy

import pytest
import torch

from minisd import TEACHERS, Teacher, geometric_mixture, reverse_kl

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])  # B=2, T=5


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def step(student, seed):
    """Stands for an optimiser step: every weight of the student moves, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)


def build(kind, student, make_gpt, **options):
    external = make_gpt(9, width=16) if kind == "external" else None
    return Teacher(kind, student, external=external, **{"update_rate": 0.25, **options})


def test_ema_moves_by_its_update_rate(make_gpt):
    """The rate taken for the decay, or an average with the old student."""
    student = make_gpt(1)
    teacher = Teacher("ema", student, update_rate=0.25)
    expected = weights_of(student)
    for n in (1, 2, 3):
        step(student, n)
        teacher.update(n)
        expected = 0.75 * expected + 0.25 * weights_of(student)
        torch.testing.assert_close(weights_of(teacher.model), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rate, source", [(0.0, "start"), (1.0, "now")])
def test_ema_at_both_ends_is_frozen_or_a_copy(make_gpt, rate, source):
    """Rates 0 and 1 exchanged."""
    student = make_gpt(1)
    weights = {"start": weights_of(student)}
    teacher = Teacher("ema", student, update_rate=rate)
    step(student, 1)
    teacher.update(1)
    weights["now"] = weights_of(student)
    torch.testing.assert_close(weights_of(teacher.model), weights[source], atol=1e-12, rtol=0)


def test_ema_keeps_tied_weights_tied(make_gpt):
    """A shared weight that is averaged twice per step, or comes apart."""
    student = make_gpt(1, tied_embeddings=True)
    teacher = Teacher("ema", student, update_rate=0.25)
    start = weights_of(student)
    step(student, 1)
    teacher.update(1)
    assert teacher.model.head.weight is teacher.model.embedding.weight
    expected = 0.75 * start + 0.25 * weights_of(student)
    torch.testing.assert_close(weights_of(teacher.model), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["frozen", "external"])
def test_frozen_and_external_teachers_never_move(make_gpt, kind):
    """A teacher that shares its weights with the student, who is changed in place."""
    student = make_gpt(1)
    teacher = build(kind, student, make_gpt)
    start = weights_of(teacher.model)
    for n in (1, 2):
        step(student, n)
        teacher.update(n)
    assert torch.equal(weights_of(teacher.model), start)


def test_live_teacher_is_the_student_itself(make_gpt):
    """A live teacher that lags behind, or that freezes the student it shares weights with."""
    student = make_gpt(1)
    teacher = Teacher("live", student)
    assert teacher.model is student and all(p.requires_grad for p in student.parameters())


def test_snapshot_is_taken_every_so_many_steps(make_gpt):
    """A copy one step too early or late, at every step, or one that goes on moving."""
    student = make_gpt(1)
    teacher = Teacher("snapshot", student, every=3)
    expected = weights_of(student)
    for n in range(1, 8):
        step(student, n)
        teacher.update(n)
        if n in (3, 6):
            expected = weights_of(student)
        assert torch.equal(weights_of(teacher.model), expected), n


def test_trust_region_is_the_normalised_geometric_mixture(make_gpt):
    """Weights exchanged, an arithmetic mixture, or the initial teacher allowed to move."""
    student = make_gpt(1)
    initial = copy.deepcopy(student)
    teacher = Teacher("trust_region", student, update_rate=0.2)
    step(student, 1)
    teacher.update(1)
    logits = [model(IDS) for model, _ in teacher.parts()]
    mixed = geometric_mixture(logits, [weight for _, weight in teacher.parts()])
    product = initial(IDS).softmax(-1) ** 0.8 * student(IDS).softmax(-1) ** 0.2
    expected = product / product.sum(-1, keepdim=True)
    torch.testing.assert_close(mixed.softmax(-1), expected, atol=1e-12, rtol=0)


def test_geometric_mixture_by_hand():
    """Logits mixed before they are normalised: a shift of one of them would matter."""
    a = torch.tensor([[[0.8, 0.2]]]).log() + 5.0
    b = torch.tensor([[[0.5, 0.5]]]).log() - 3.0
    # sqrt(0.8 * 0.5) : sqrt(0.2 * 0.5) = 0.632456 : 0.316228 = 2 : 1
    mixed = geometric_mixture([a, b], [0.5, 0.5]).softmax(-1)
    torch.testing.assert_close(mixed, torch.tensor([[[2 / 3, 1 / 3]]]), atol=1e-6, rtol=0)
    assert geometric_mixture([a], [1.0]) is a


def test_geometric_mixture_of_extreme_logits_is_finite():
    """0 * -inf for a part with weight 0, or a token that one part forbids."""
    a = torch.tensor([[[-torch.inf, 1e4, 0.0]]])
    b = torch.tensor([[[1e4, -torch.inf, 0.0]]])
    for weight in (0.0, 0.3, 1.0):
        mixed = geometric_mixture([a, b], [1 - weight, weight])
        assert mixed.isfinite().all()
        assert reverse_kl(torch.zeros(1, 1, 3), mixed).isfinite().all()
    assert geometric_mixture([a, b], [1.0, 0.0]).argmax().item() == 1


@pytest.mark.parametrize("kind", TEACHERS)
def test_every_teacher_has_weights_that_sum_to_one_and_none_that_train(make_gpt, kind):
    """A teacher copy that the optimiser could reach, or a mixture that is not normalised."""
    student = make_gpt(1)
    teacher = build(kind, student, make_gpt)
    assert sum(weight for _, weight in teacher.parts()) == pytest.approx(1.0)
    for model, _ in teacher.parts():
        assert model is student or not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize(
    "kind, options, named",
    [
        ("polyak", {}, "teacher: 'polyak'; allowed: frozen, live"),
        ("ema", {"update_rate": 1.5}, "teacher_update_rate: 1.5"),
        ("ema", {"update_rate": -0.1}, "teacher_update_rate: -0.1"),
        ("snapshot", {"every": 0}, "teacher_every: 0"),
        ("external", {}, "external needs a checkpoint"),
        ("frozen", {"external": 1}, "no other kind takes one"),
    ],
)
def test_impossible_teachers_are_refused_by_name(make_gpt, kind, options, named):
    """A typo that falls back to a frozen teacher, or a checkpoint that is silently ignored."""
    if "external" in options:
        options = {"external": make_gpt(2)}
    with pytest.raises(ValueError, match=named):
        Teacher(kind, make_gpt(1), **options)
