"""Every formula of lab/fixes: a value worked by hand, its sign, its edges; and the rows."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import tensor

import minisd
from lab.fixes import FIXES, advantages, routing, targets, weights
from lab.fixes.row import Noted, Recipe

MASK = tensor([[True, True, True, False]])
LOG = [tensor([[p]]).log() for p in ([0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.2, 0.4, 0.4])]  # (1,1,3)


def probs(logits):
    return logits.softmax(-1)[0, 0]


# Weights ------------------------------------------------------------------------------------------


def test_pw_opsd_weights_rise_from_a_floor_along_the_completion():
    """Catches a position that counts padding, and a floor that is added on top."""
    w = weights.late(MASK)
    expected = [0.25 + 0.75 / (1 + math.exp(-(t / 3 - 0.3) / 0.1)) for t in range(3)]
    assert w[0, :3].tolist() == pytest.approx(expected, abs=1e-6)
    assert 0.25 < w[0, 0] < 0.3 and w[0, 2] < 1


def test_iw_opd_weights_fall_with_the_surprise_that_is_spent():
    """Catches a sum that leaves the token itself out, and signs that cancel."""
    w = weights.front_loaded(tensor([[-2.0, 1.0, 1.0, 9.0]]), MASK)
    assert w[0, :3].tolist() == pytest.approx([1.25, 1.125, 1.0])
    assert weights.front_loaded(torch.zeros(1, 4), MASK).isfinite().all()


def test_top_share_keeps_a_share_of_the_masked_tokens():
    """Catches padding that competes, and a share of none."""
    values = tensor([[1.0, 3.0, 2.0, 9.0]])
    assert weights.top_share(values, MASK, 0.34).tolist() == [[False, True, True, False]]
    assert weights.top_share(values, MASK, 1.0).equal(MASK)
    nothing = torch.zeros_like(MASK)
    assert weights.top_share(values, nothing, 0.5).equal(nothing)


def test_tip_adds_sure_tokens_with_a_large_divergence():
    """Catches the second quadrant that is left out, or taken from the first."""
    mask = torch.ones(1, 4, dtype=torch.bool)
    kept = weights.informative(tensor([[4.0, 3.0, 1.0, 0.0]]), tensor([[0.0, 0.0, 5.0, 1.0]]), mask)
    assert kept.tolist() == [[True, True, True, False]]


def test_pcsd_gates_open_where_student_and_teacher_have_agreed():
    """Catches a momentum that starts full, and one that forgets at once."""
    gates = weights.agreement_gate(tensor([[1.0, 1.0, -40.0, 0.0]]), MASK)
    m = [0.1, 0.19, 0.171 - 4.0]
    assert gates[0, :3].tolist() == pytest.approx([1 / (1 + math.exp(-x)) for x in m], abs=1e-6)


def test_dash_sums_backwards_and_cuts_behind_a_large_gap():
    """Catches a recursion in the wrong direction, and padding that enters it."""
    A = weights.decayed_sum(tensor([[1.0, 1.0, 1.0, 7.0]]), MASK)
    assert A[0].tolist() == pytest.approx([1.75, 1.5, 1.0, 0.0])  # every decay is 1/2
    cut = weights.decayed_sum(tensor([[30.0, 0.0, 30.0, 0.0]]), MASK)
    assert cut[0, 0] == pytest.approx(30.0, abs=0.01)  # sigmoid(-10) of the rest


def test_reopold_floors_the_advantage_and_pulls_towards_the_teacher():
    """Catches a floor on the wrong side, and a turned sign."""
    assert pytest.approx(-2.558, abs=1e-3) == weights.FLOOR
    p = tensor([[-1.0, -1.0]], requires_grad=True)
    weights.floored_surrogate(p, tensor([[-0.5, -9.0]])).sum().backward()
    assert p.grad[0].tolist() == pytest.approx([-0.5, -weights.FLOOR])


def test_eopd_adds_the_forward_kl_where_the_teacher_is_unsure():
    """Catches a gate that looks at the student, or is always open."""
    student, sure = LOG[0], tensor([[[0.98, 0.01, 0.01]]]).log()
    reverse = minisd.reverse_kl(student, sure)
    assert weights.entropy_switched(student, sure).equal(reverse)
    unsure = LOG[2]  # 1.05 nats
    both = minisd.reverse_kl(student, unsure) + minisd.forward_kl(student, unsure)
    assert weights.entropy_switched(student, unsure).item() == pytest.approx(both.item(), abs=1e-6)


def test_shuffled_values_keep_their_histogram_in_each_row():
    """Catches a control whose weights come from other completions or from padding."""
    values = torch.arange(8.0).view(2, 4)
    mask = tensor([[True, True, True, False], [True, True, True, True]])
    out = weights.shuffled(values, mask)
    for row, kept, inside in zip(values, out, mask):
        assert kept[inside].sort().values.equal(row[inside])
        assert kept[~inside].equal(row[~inside])
    assert not out.equal(values)


# Targets ------------------------------------------------------------------------------------------


def test_beta_opsd_is_the_geometric_mean():
    """Catches an arithmetic mean, and ends that change places."""
    found = probs(targets.anchored(LOG[0], LOG[1], 0.5))
    mean = (LOG[0].exp() * LOG[1].exp()).sqrt()[0, 0]
    assert torch.allclose(found, mean / mean.sum())
    assert torch.allclose(probs(targets.anchored(LOG[0], LOG[1], 1.0)), LOG[1].exp()[0, 0])


def test_purified_removes_what_the_hint_says_alone():
    """Catches a subtraction of p0, and a squash that bends small differences."""
    same = probs(targets.purified(LOG[0], LOG[1], LOG[1]))
    assert torch.allclose(same, LOG[0].exp()[0, 0])
    found = probs(targets.purified(LOG[0], LOG[1], LOG[2]))
    exact = LOG[0].exp()[0, 0] * LOG[1].exp()[0, 0] / LOG[2].exp()[0, 0]
    assert torch.allclose(found, exact / exact.sum(), atol=0.02)  # 10 tanh(x/10) is nearly x


def test_the_contrast_is_the_initial_model_without_a_difference_or_weight():
    """Catches a target that is not the exact anchor at a = 0, and a clip that cuts nothing."""
    p0 = LOG[0].exp()[0, 0]
    assert torch.allclose(probs(targets.contrasted(LOG[0], LOG[1], LOG[2], a=0.0)), p0)
    assert torch.allclose(probs(targets.contrasted(LOG[0], LOG[1], LOG[1], a=1.0)), p0)
    far = tensor([[[0.0, -50.0, -50.0]]])
    found = targets.contrasted(LOG[0], far, LOG[0], a=1.0, clip=2.0) - LOG[0]
    assert found.abs().max() <= 2.0 + 1e-5
    ratio = found.exp()[0, 0]  # up for what the right one makes likelier
    assert ratio[0] > 1 > ratio[1]


def test_avsd_of_equal_views_is_the_view():
    """Catches a J that is not 0 where all views agree."""
    assert torch.allclose(probs(targets.agreeing_views(LOG[0], [LOG[1]] * 3)), LOG[1].exp()[0, 0])
    plain = targets.agreeing_views(LOG[0], LOG[1:], gain=0.0)
    assert torch.allclose(plain, (LOG[1] + LOG[2]) / 2)
    more = targets.agreeing_views(LOG[0], LOG[1:], gain=1.0)
    assert (more >= plain - 1e-6).all()  # J is never below 0


def test_rp_opsd_mixes_by_what_the_hint_changes():
    """Catches a gate per token, under which the target is no distribution."""
    found = targets.relevance_gated(LOG[0], LOG[1]).exp()[0, 0]
    assert found.tolist() == pytest.approx([0.59, 0.24, 0.17])  # g = .3
    assert torch.allclose(targets.relevance_gated(LOG[0], LOG[0]), LOG[0])


def test_a_combined_teacher_gives_what_its_rule_makes_of_all_terms():
    """Catches terms in another order, and notes of one chunk that meet those of the next."""
    linear = [torch.nn.Linear(2, 3, bias=False) for _ in range(2)]
    models = [SimpleNamespace(lm_head=f, hidden=None) for f in linear]
    notes: list = []
    first = Noted(models[0], notes)
    last = Noted(models[1], notes, lambda x: x[0] - 2 * x[1])
    for _ in range(2):
        x, y = torch.randn(1, 2), torch.randn(1, 2)
        first.lm_head(x)
        assert torch.allclose(last.lm_head(y), linear[0](x) - 2 * linear[1](y))
        assert notes == []


# Advantages ---------------------------------------------------------------------------------------

A, U = tensor([[1.0, 1.0, -1.0, -1.0]]), tensor([[0.1, 3.0, 0.1, 3.0]])


def test_rlsd_keeps_the_sign_and_clips_the_ratio():
    """Catches a ratio that is the same for right and wrong completions."""
    found = advantages.sign_kept(A, U, 0.5)[0].tolist()
    expected = [0.5 + 0.5 * x for x in (math.exp(0.1), 1.2)]
    expected += [-(0.5 + 0.5 * x) for x in (math.exp(-0.1), 0.8)]
    assert found == pytest.approx(expected)
    assert advantages.sign_kept(A, U, 0.0).equal(A)


def test_rlrt_rewards_what_the_teacher_finds_unlikely_in_right_completions():
    """Catches the ratio of RLSD, and wrong completions that change."""
    found = advantages.reversed_ratio(A, U, 0.5)[0].tolist()
    assert found == pytest.approx([0.5 + 0.5 * math.exp(-0.1), 0.75, -1, -1])


def test_rlcsd_keeps_the_sign_and_leaves_small_contrasts():
    """Catches punishment that grows where the right hint agrees, and a gate that never shuts."""
    e = tensor([[9.0, 1e-4, 9.0, -9.0]])
    found = advantages.contrast_scaled(A, e, 0.5)[0].tolist()
    assert found == pytest.approx([1.5, 1.0, -0.5, -1.5])
    large = advantages.contrast_scaled(A, -e * 100, 2.0)
    assert (large * A >= 0).all()


def test_antisd_pays_for_what_the_hint_makes_likelier():
    """Catches the sign of distillation, and a penalty where nothing changes."""
    found = advantages.against_teacher(torch.zeros(1, 3), tensor([[0.0, 2.0, -2.0]]), 0.5)[0]
    half = 0.25 * (math.log1p(math.exp(2)) - math.log(2))
    assert found.tolist()[:2] == pytest.approx([0, -half])
    assert found[2] > 0


def test_sipo_has_a_signal_where_all_fail():
    """Catches a contrast that is multiplied, and a mean over padding."""
    e = tensor([[3.0, 0.0, 0.0, 99.0]])
    found = advantages.contrast_added(torch.zeros(1, 4), e, MASK, 0.1)[0, :3].tolist()
    assert found == pytest.approx([0.2, -0.1, -0.1])


def test_distilled_rl_takes_right_completions_alone():
    """Catches a ratio without its cap, or wrong completions that are pulled in."""
    found = advantages.by_teacher_ratio(A, tensor([[-1.0, 0, 0, 0]]), tensor([[-0.5, -9, 0, 0]]))
    assert found[0].tolist() == pytest.approx([math.exp(-0.5), 3, 0, 0])


def test_opsa_has_no_teacher_and_lowers_unlikely_tokens():
    """Catches a control that punishes sure tokens, too."""
    found = advantages.constant_negative(torch.zeros(1, 2), tensor([[0.9, 0.1]]).log(), 0.5)
    assert found.tolist() == [[0.0, -0.5]]


def test_the_contrast_of_two_terms_is_a_difference_of_log_probabilities():
    """Catches a contrast that is normalised over the vocabulary, which shifts every token."""
    t = minisd.log_linear([LOG[1], LOG[2]], (1.0, -1.0))
    x = {"teacher_log_probs": minisd.token_log_probs(t, tensor([[1]])),
         "log_z": advantages.READ["log_z"](LOG[0], t)}
    assert advantages.contrast_of(lambda read: x).item() == pytest.approx(math.log(0.1 / 0.4))


# Routing ------------------------------------------------------------------------------------------


def test_pass_rates_are_those_of_the_problem():
    """Catches groups that are read across."""
    rates = routing.pass_rates(tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert rates.tolist() == [[0.5], [0.5], [1.0], [1.0]]
    assert routing.learnable(rates).tolist() == [[0.25], [0.25], [0], [0]]
    assert routing.learnable(tensor(0.2), 0.5, 0.5).item() == pytest.approx(0.4)
    assert routing.sure_teacher(tensor([0.0, 1.0])).tolist() == pytest.approx([1, math.exp(-1)])


def test_the_gate_of_antisd_shuts_at_one_level_and_opens_at_another():
    """Catches a gate that flutters at its threshold, and one that shuts during the warm-up."""
    warm = [{"teacher_entropy": h} for h in (9.0, 1.0, 1.0, 1.0, 0.0)]
    assert routing.entropy_gate(warm, True)
    for value, was, now in ((0.95, True, True), (0.95, False, False), (0.9, True, False),
                            (1.0, False, True)):
        assert routing.entropy_gate([*warm, {"teacher_entropy": value}], was) is now


def test_the_gate_of_cgtr_wants_progress_and_no_tail():
    """Catches a refresh after a fall, or by a student that writes without end."""
    def steps(reward: float, cut: float = 0.0) -> list[dict]:
        return [{"reward": reward, "cut_frac": cut}] * 10

    assert not routing.progress_gate(steps(0.5), True)
    assert routing.progress_gate(steps(0.5) + steps(0.6), False)
    assert not routing.progress_gate(steps(0.6) + steps(0.5), True)
    assert not routing.progress_gate(steps(0.5) + steps(0.6, cut=0.2), True)


# Rows ---------------------------------------------------------------------------------------------

ASKED = """
opsd opsd_clip bregman_clip pw_opsd iw_opd prefix eopd reopold tip rosd dash pcsd
trust_region beta_opsd veto purified credit ogls_sd avsd rp_opsd rlsd rlrt rlcsd antisd sipo cepo
srpo sdpg distilled_rl sc_sdpo ssopd paced correct_only op2sd cgtr off_context_grpo half_and_half
grpo dr_grpo dapo ours opsa exact_anchor reverse_frozen rlcsd_shuffled
"""


def test_every_fix_stands_beside_a_control_that_there_is():
    """Catches a fix without its control, and a row that was forgotten."""
    assert set(ASKED.split()) <= FIXES.keys()
    for name, fix in FIXES.items():
        assert fix.formula and fix.recipe.source and fix.seen in ("paper", "code", "notes")
        assert fix.control != name and fix.control in (*FIXES, "")
        assert fix.control or fix.is_control or name == "grpo"


def test_shuffled_controls_and_the_exact_anchor_differ_in_one_thing():
    """Catches a control that changes more than the idea."""
    for name in (n for n in FIXES if n.endswith("_shuffled")):
        ours, other = (FIXES[n].recipe for n in (name.removesuffix("_shuffled"), name))
        same = {"token_weights": ours.token_weights, "advantage": ours.advantage,
                "source": ours.source}
        assert replace(other, **same) == ours
    ours, anchor = FIXES["ours"].recipe, FIXES["exact_anchor"].recipe
    assert replace(anchor, source=ours.source, strength=ours.strength) == ours
    assert anchor.strength == 0


def test_a_weight_per_completion_is_not_divided_out():
    """Catches pass-rate weights under a mean per completion, which makes all of them alike."""
    for name, fix in FIXES.items():
        if fix.recipe.token_weights.startswith("learnable"):
            assert fix.recipe.reduction == "token_mean", name


def test_a_strength_fades_to_nothing():
    """Catches a schedule in steps that is read as a share."""
    recipe = Recipe(strength=0.5, fade_steps=50)
    assert [recipe.at(n, 100).strength for n in (0, 25, 50, 99)] == [0.5, 0.25, 0, 0]
    assert Recipe(strength=0.5).at(99, 100).strength == 0.5
    assert recipe.at(50, 200).progress == 0.25
