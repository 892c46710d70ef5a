import math

import pytest
import torch
from torch import nn

from corelib.teacher import FILE, Teacher, policy_weight


class Tied(nn.Module):
    """Two layers that share one weight, as a tied language model shares its embedding with its head."""

    def __init__(self):
        super().__init__()
        self.embed, self.head, self.inner = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False), nn.Linear(4, 4)
        self.head.weight = self.embed.weight


def test_schedule_end_points_and_sum():
    assert policy_weight(0, 330) == 0.01 and policy_weight(330, 330) == pytest.approx(1e-5, abs=1e-18)
    assert sum(policy_weight(t, 330) for t in range(330)) == pytest.approx(1.66, abs=0.005)  # specification 4.2
    assert policy_weight(165, 330) == pytest.approx((0.01 + 1e-5) / 2)
    assert policy_weight(330, 330, schedule="text") == pytest.approx(1e-4)
    assert 1 - policy_weight(0, 330, schedule="eq11") == pytest.approx(0.9901)
    assert 1 - policy_weight(330, 330, schedule="eq11") == 1.0


@pytest.mark.parametrize(
    "steps, released, text, eq11", [(162, 0.441, 0.438, 0.449), (174, 0.415, 0.412, 0.423), (330, 0.190, 0.187, 0.195)]
)
def test_share_of_the_base_model_is_the_specifications(steps, released, text, eq11):
    for schedule, expected in (("released", released), ("text", text), ("eq11", eq11)):
        first = (
            1 if schedule == "eq11" else 0
        )  # the specification's figure for Eq. 11 counts steps from 1, as the paper does
        share = math.prod(1 - policy_weight(t, steps, schedule=schedule) for t in range(first, first + steps))
        assert share == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("t, total", [(-1, 10), (11, 10), (0, 0)])
def test_schedule_rejects_steps_outside_the_run(t, total):
    with pytest.raises(ValueError, match="must lie in"):
        policy_weight(t, total)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="valid are released, text, eq11"):
        policy_weight(0, 1, schedule="linear")


def test_update_is_a_literal_fp64_average_and_ties_count_once():
    torch.manual_seed(0)
    policy, teacher = Tied(), Teacher(Tied())
    literal = {n: p.detach().double() for n, p in teacher.model.named_parameters()}
    for t in range(50):
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(torch.randn_like(p) * 0.01)
        weight = policy_weight(t, 50)
        teacher.update(policy, weight)
        literal = {n: (1 - weight) * literal[n] + weight * p.detach().double() for n, p in policy.named_parameters()}
    for name, p in teacher.model.named_parameters():
        assert torch.allclose(p.double(), literal[name], atol=1e-6)
    assert teacher.model.head.weight is teacher.model.embed.weight


def test_bf16_average_freezes_and_fp32_does_not():
    """The specification's simulation (4.3): 330 steps, consistent drift; a bf16 teacher is II's ablation without updates."""
    torch.manual_seed(0)
    start = (torch.randn(5000) * 0.02).bfloat16().float()
    direction, moved = torch.sign(torch.randn(5000)), {}
    for dtype in (torch.float32, torch.bfloat16):
        policy, teacher = start.clone(), start.to(dtype)
        for t in range(330):
            policy += direction * 3e-6 * 0.5 * (1 + math.cos(math.pi * t / 330))
            teacher = teacher.lerp(policy.to(dtype), policy_weight(t, 330))
        moved[dtype] = (teacher.float() != start).float().mean().item()
    assert moved[torch.float32] > 0.99
    assert moved[torch.bfloat16] < 0.05


def test_teacher_is_fp32_whatever_the_policy_is():
    teacher = Teacher(Tied().bfloat16())
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in teacher.model.parameters())
    teacher.update(Tied().bfloat16(), 0.5)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}


def test_distance_is_relative_and_zero_at_the_start():
    torch.manual_seed(0)
    policy = Tied()
    teacher = Teacher(Tied())
    teacher.model.load_state_dict(policy.state_dict())
    assert teacher.distance(policy) == 0
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.1)
    assert teacher.distance(policy) == pytest.approx(0.1, rel=1e-4)


def test_save_and_load_are_exact_and_defects_are_named(tmp_path):
    torch.manual_seed(0)
    saved, other = Teacher(Tied()), Teacher(Tied())
    saved.save(tmp_path)
    other.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(saved.model.parameters(), other.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="does not fit"):
        Teacher(nn.Linear(2, 2)).load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(FileNotFoundError, match="has no teacher"):
        other.load(tmp_path)
