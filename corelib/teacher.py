"""The slowly moving teacher of Co-rewarding-II and III: an exponential moving average of the policy, always in fp32.

In bf16 the average freezes: with a policy weight of 0.01 the change is below half a unit in the last place for nearly
every parameter (tests/test_teacher.py shows it), and II silently becomes the paper's ablation without updates.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILE = "teacher.safetensors"
TEXT_END = 1e-4  # the paper's text: teacher weight 0.99 -> 0.9999
PIECE = 2**23  # elements copied at once: 32 MB of fp32 stay in the L2 cache of an H100 or H200 (50 or 60 MB)


def policy_weight(
    t: int, total_steps: int, start: float = 0.01, end: float = 1e-5, schedule: str = "released"
) -> float:
    """Weight of the policy in the teacher's update before step t's teacher rollouts, t = 0 ... total_steps.

    released: end + (start - end)(1 + cos(pi t / T)) / 2, as the released code (`alpha_start`, `alpha_end`);
    text: the same with the end of the paper's text (1e-4);
    eq11: the paper's Eq. 11 as printed, whose teacher weight runs from 1 - (start - TEXT_END) to exactly 1.
    Raises ValueError for t outside 0 ... total_steps or an unknown schedule.

    >>> policy_weight(0, 330), policy_weight(330, 330)
    (0.01, 1e-05)
    """
    if not 0 <= t <= total_steps or total_steps < 1:
        raise ValueError(f"t={t} must lie in 0 ... total_steps={total_steps}, and total_steps be at least 1")
    falling = 0.5 * (1 + math.cos(math.pi * t / total_steps))
    if schedule == "released":
        return end + (start - end) * falling
    if schedule == "text":
        return TEXT_END + (start - TEXT_END) * falling
    if schedule == "eq11":
        return (start - TEXT_END) * falling
    raise ValueError(f"unknown schedule {schedule!r}: valid are released, text, eq11")


class Teacher:
    """The teacher's weights. `model` is a full fp32 copy of the base model that this object owns and never trains."""

    def __init__(self, model):
        self.model = model.float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, policy, weight: float) -> None:
        """teacher <- (1 - weight) teacher + weight policy, each distinct parameter once (tied weights are one)."""
        mine, theirs = self._parameters(), _local_parameters(policy)
        if all(m.dtype == p.dtype for m, p in zip(mine, theirs, strict=True)):
            torch._foreach_lerp_(mine, theirs, weight)  # fused: every number is read once and written once
            return
        for m, p in _pieces(mine, theirs):
            m.lerp_(p.to(m.dtype), weight)

    @torch.no_grad()
    def distance(self, policy) -> float:
        """Euclidean distance between teacher and policy, over the norm of the teacher: 0 at the start."""
        mine, theirs = self._parameters(), _local_parameters(policy)
        gap = torch.stack([torch.linalg.vector_norm(p.to(m.dtype) - m) for m, p in _pieces(mine, theirs)])
        return (gap.norm() / torch.stack(torch._foreach_norm(mine)).norm()).item()

    def save(self, folder: str | Path) -> None:
        """Write the fp32 weights as safetensors, each tied weight once."""
        names = {id(p): n for n, p in reversed(list(self.model.named_parameters()))}
        save_file({names[id(p)]: p.detach().contiguous() for p in self.model.parameters()}, Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote. Raises FileNotFoundError, saying what to do, when the checkpoint has no teacher."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: this checkpoint has no teacher and cannot resume this method; delete the checkpoint to use the one before"
            )
        saved, own = load_file(path), dict(self.model.named_parameters())
        if saved.keys() != own.keys():
            raise ValueError(f"{path} does not fit this model: {sorted(saved.keys() ^ own.keys())[:3]} differ")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(saved[name])

    def _parameters(self) -> list[torch.Tensor]:
        return _local_parameters(self.model)


def _local_parameters(model) -> list[torch.Tensor]:
    """Distinct parameters; for FSDP2's DTensors this rank's shard, so that no update gathers the model."""
    return [getattr(p, "_local_tensor", p).detach() for p in model.parameters()]


def _pieces(mine, theirs):
    """Matching views of at most PIECE elements (or one row), so that neither a cast nor a difference copies the model."""
    for m, p in zip(mine, theirs, strict=True):
        m, p = torch.atleast_1d(m), torch.atleast_1d(p)
        rows = max(1, PIECE * len(m) // max(1, m.numel()))  # a shard may be empty
        yield from zip(m.split(rows), p.split(rows), strict=True)
