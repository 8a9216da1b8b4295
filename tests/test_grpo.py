"""Laws of the policy gradient: advantages, clipping, penalty, importance weight, reductions."""

import math

import pytest
import torch

from minisd import (
    ADVANTAGES,
    MAX_LOG_RATIO,
    REDUCTIONS,
    Batch,
    Completions,
    Method,
    Prompts,
    Sizes,
    clipped_policy_surrogate,
    group_advantages,
    k3_kl,
    truncated_importance_weight,
    weighted_sum,
)

REWARDS = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])  # P=2, G=3


def close(actual, expected, atol=1e-6):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def mean(values, mask, reduction="token_mean", limit=4):
    weights, total = REDUCTIONS[reduction](mask.float(), limit)
    return weighted_sum(values, weights) / total


def log(*ratios):
    """Log-probabilities (1, T) whose ratio to zeros is as given."""
    return torch.tensor([ratios], dtype=torch.float64).log().requires_grad_()


# Advantages ---------------------------------------------------------------------------------------


def test_group_advantages_by_hand():
    """A mean over the batch instead of the group, or a variance in place of the deviation."""
    # mean 1/3; squares 4/9 + 1/9 + 1/9 = 6/9, over G - 1 = 2: std = sqrt(1/3) = 0.577350
    expected = [[1.154701, -0.577350, -0.577350], [0.0, 0.0, 0.0]]
    close(group_advantages(REWARDS), expected)
    expected = [[2 / 3, -1 / 3, -1 / 3], [0.0, 0.0, 0.0]]
    close(group_advantages(REWARDS, normalise="mean"), expected)


@pytest.mark.parametrize("normalise", ["std", "mean"])
def test_advantages_sum_to_zero_and_know_neither_order_nor_offset(normalise):
    """A baseline that is not the group's own mean."""
    rewards = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantages = group_advantages(rewards, normalise=normalise)
    close(advantages.sum(1), torch.zeros(4), 1e-12)
    close(group_advantages(rewards + 3, normalise=normalise), advantages, 1e-10)
    close(group_advantages(rewards.flip(0, 1), normalise=normalise), advantages.flip(0, 1), 1e-12)
    scale = 1.0 if normalise == "std" else 7.0
    close(group_advantages(7 * rewards, normalise=normalise), scale * advantages, 1e-10)


@pytest.mark.parametrize("normalise", ["std", "mean"])
@pytest.mark.parametrize("G", [2, 3, 6, 7])
def test_equal_rewards_give_exactly_zero(normalise, G):
    """Rounding of the mean, divided by the floor of the deviation, that becomes an advantage."""
    rewards = torch.tensor([[0.0], [0.1], [0.3], [0.7], [1.0]]).expand(5, G)
    assert (group_advantages(rewards, normalise=normalise) == 0).all()


@pytest.mark.parametrize("name, normalise", [("group", "std"), ("group_without_std", "mean")])
def test_rows_of_the_table_give_each_completion_the_advantage_of_its_group(name, normalise):
    """A group cut at the wrong rows, or the deviation in the wrong method."""
    rows = Completions.of([[3, 1]] * 6, 0)
    batch = Batch([], {"none": Prompts.of([[2]] * 6, 0)}, rows, REWARDS.flatten(),
                  Sizes(groups=2, group_size=3))
    advantages = ADVANTAGES[name](batch, None, Method(advantage=name, reward_weight=1.0))
    close(advantages, group_advantages(REWARDS, normalise=normalise).view(6, 1))
    assert advantages[0] > 0 and (advantages[3:] == 0).all()


def test_advantages_do_not_overwrite_the_rewards():
    """A reward column in the log that is centred."""
    rewards = REWARDS.clone()
    group_advantages(rewards)
    assert torch.equal(rewards, REWARDS)


@pytest.mark.parametrize(
    "rewards, normalise, named",
    [(REWARDS[:, :1], "std", "group_size: 1"), (REWARDS, "var", "normalise: 'var'")],
)
def test_impossible_groups_are_refused_by_name(rewards, normalise, named):
    """nan from the deviation of one number, or a typo that falls back."""
    with pytest.raises(ValueError, match=named):
        group_advantages(rewards, normalise=normalise)


# The clipped objective ----------------------------------------------------------------------------


def test_clipped_surrogate_by_hand():
    """max for min, or both bounds on the same side."""
    ratios = (0.5, 0.9, 1.1, 1.5)
    old = torch.zeros(1, 4, dtype=torch.float64)
    up = clipped_policy_surrogate(log(*ratios), old, torch.tensor([[2.0]]))
    close(up, [[-1.0, -1.8, -2.2, -2.4]], 1e-6)  # 1.5 is held at 1.2
    down = clipped_policy_surrogate(log(*ratios), old, torch.tensor([[-2.0]]))
    close(down, [[1.6, 1.8, 2.2, 3.0]], 1e-6)  # 0.5 is held at 0.8


@pytest.mark.parametrize("advantage, moving", [(2.0, [1, 1, 1, 0]), (-2.0, [0, 1, 1, 1])])
def test_gradient_is_zero_outside_the_clip_on_the_right_side_alone(advantage, moving):
    """A clip that also stops steps back towards the old policy."""
    student = log(0.5, 0.9, 1.1, 1.5)
    old = torch.zeros(1, 4, dtype=torch.float64)
    clipped_policy_surrogate(student, old, torch.tensor([[advantage]])).sum().backward()
    expected = -advantage * student.detach().exp() * torch.tensor([moving])
    close(student.grad, expected)


def test_clip_bounds_are_asymmetric():
    """DAPO's higher bound used on both sides."""
    old = torch.zeros(1, 2, dtype=torch.float64)
    for advantage, expected in [(1.0, [[-0.6, -1.28]]), (-1.0, [[0.8, 1.5]])]:
        value = clipped_policy_surrogate(
            log(0.6, 1.5), old, torch.tensor([[advantage]]), clip_low=0.2, clip_high=0.28
        )
        close(value, expected)


def test_at_ratio_one_the_gradient_is_that_of_plain_policy_gradient():
    """A first step that is not -A grad log p."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 5, generator=generator).requires_grad_()  # B=3, T=5
    advantages = torch.tensor([[1.5], [-0.5], [0.0]])
    clipped_policy_surrogate(student, student.detach(), advantages).sum().backward()
    close(student.grad, -advantages.expand(3, 5))


def test_gradcheck_of_the_clipped_surrogate_and_of_k3():
    """A gradient that is not the derivative of the value, away from the corners of the clip."""
    student, old = log(0.5, 0.9, 1.1, 1.5), torch.zeros(1, 4, dtype=torch.float64)
    for advantage in (2.0, -2.0):
        a = torch.full((1, 4), advantage, dtype=torch.float64)
        check = lambda x, a=a: clipped_policy_surrogate(x, old, a)  # noqa: E731
        assert torch.autograd.gradcheck(check, (student,))
    assert torch.autograd.gradcheck(lambda x: k3_kl(x, old), (student,))


def test_advantages_per_row_and_per_token_agree_and_get_no_gradient():
    """An advantage spread over the wrong axis when B equals T, or trained through."""
    student = torch.zeros(3, 3, requires_grad=True)
    old = torch.full((3, 3), -0.1, requires_grad=True)
    rows = torch.tensor([[1.0], [2.0], [-3.0]], requires_grad=True)
    per_row = clipped_policy_surrogate(student, old, rows)
    per_token = clipped_policy_surrogate(student, old, rows.expand(3, 3))
    close(per_row, per_token.detach())
    per_row.sum().backward()
    assert rows.grad is None and old.grad is None and student.grad is not None


# The penalty and the importance weight ------------------------------------------------------------


def test_k3_by_hand():
    """p / ref in place of ref / p."""
    # ref/p = 2: 2 - ln 2 - 1 = 0.306853; ref/p = 1/2: 1/2 + ln 2 - 1 = 0.193147
    close(k3_kl(log(0.25, 0.5, 0.3), log(0.5, 0.25, 0.3)), [[0.306853, 0.193147, 0.0]])


def test_k3_trains_the_student_alone():
    """A reference that moves."""
    student, reference = log(0.25, 0.5), log(0.5, 0.25)
    k3_kl(student, reference).sum().backward()
    assert reference.grad is None
    close(student.grad, [[-1.0, 0.5]])  # 1 - ref/p


def test_truncated_importance_weight_by_hand():
    """A lower bound as well, or a weight that is trained through."""
    weight = truncated_importance_weight(log(0.01, 1.0, 1.5, 9.0), torch.zeros(1, 4), cap=2.0)
    close(weight, [[0.01, 1.0, 1.5, 2.0]])
    assert not weight.requires_grad


@pytest.mark.parametrize("gap", [1e4, -1e4, 89.0, 0.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_extreme_ratios_give_finite_values_and_gradients(gap, advantage):
    """exp(1e4) = inf on the way forward, 0 * inf = nan on the way back."""
    student = torch.full((2, 1), -0.5, requires_grad=True)
    other = torch.full((2, 1), -0.5 - gap)
    for values in (
        clipped_policy_surrogate(student, other, torch.full((2, 1), advantage)),
        k3_kl(student, other),
        truncated_importance_weight(student, other) * student,
    ):
        loss = mean(values, torch.tensor([[True], [False]]))
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite() and gradient.isfinite().all() and gradient[1] == 0


def test_the_limit_of_the_ratio_is_far_outside_every_clip():
    """A guard against overflow that changes ordinary training."""
    assert math.exp(MAX_LOG_RATIO) > 1e8
    student = torch.tensor([[3.0]], requires_grad=True)
    clipped_policy_surrogate(student, torch.zeros(1, 1), torch.tensor([[-1.0]])).sum().backward()
    close(student.grad, [[math.exp(3.0)]], 1e-4)


# Reductions: three methods, one surrogate ---------------------------------------------------------


@pytest.mark.parametrize(
    "reduction, max_tokens, expected",
    [
        ("sequence_mean", 10, -(2.0 - 1.0) / 2),  # GRPO: each completion counts once
        ("token_mean", 10, -(4 * 2.0 - 1 * 1.0) / 5),  # DAPO: each token counts once
        ("constant", 10, -(4 * 2.0 - 1 * 1.0) / 20),  # Dr. GRPO: divided by B * max_tokens
    ],
)
def test_a_long_completion_weighs_as_its_method_says(reduction, max_tokens, expected):
    """Reductions exchanged between GRPO, DAPO and Dr. GRPO."""
    mask = torch.tensor([[True] * 4, [True, False, False, False]])  # lengths 4 and 1
    student = torch.zeros(2, 4, requires_grad=True)
    values = clipped_policy_surrogate(student, student.detach(), torch.tensor([[2.0], [-1.0]]))
    loss = mean(values, mask, reduction, max_tokens)
    close(loss.detach(), expected)
    loss.backward()
    assert (student.grad[~mask] == 0).all() and (student.grad[mask] != 0).all()


def test_equal_rewards_train_nothing():
    """Noise that is learned from groups without a signal."""
    student = torch.full((6, 2), -0.7, requires_grad=True)
    advantages = group_advantages(torch.full((2, 3), 0.1)).view(6, 1)
    values = clipped_policy_surrogate(student, torch.full((6, 2), -0.9), advantages)
    mean(values, torch.ones(6, 2, dtype=torch.bool)).backward()
    assert (student.grad == 0).all()
