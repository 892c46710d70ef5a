"""The slowly moving teacher of Co-rewarding-II and III: an exponential moving average of the policy, always in fp32.

In bf16 the average freezes: with a policy weight of 0.01 the change is below half a unit in the last place for nearly
every parameter (tests/test_teacher.py shows it), and II silently becomes the paper's ablation without updates.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from corelib import sharding

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
    """The teacher's weights: a full fp32 copy of the base model that this object owns and never trains.

    With `adapter` it is instead the LoRA adapter of that name in the policy's own model, beside the policy's `default`:
    it starts as its copy, and A and B are averaged apart. (The average of two products B A is not the product of the
    averages; tests/test_engine.py measures the difference.)
    """

    def __init__(self, model, adapter: str = ""):
        self.model, self.adapter = model, adapter
        if adapter:
            model.set_adapter("default")  # the policy stays the one that is trained
            for own, policy in zip(self._parameters(), _local_parameters(model, "default"), strict=True):
                own.copy_(policy)
        else:
            if any(p.dtype != torch.float32 for p in model.parameters()):  # `.float()` would fail on FSDP2's shards
                model.float()
            model.eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, policy, weight: float) -> None:
        """teacher <- (1 - weight) teacher + weight policy, each distinct parameter once (tied weights are one)."""
        mine, theirs = self._parameters(), _local_parameters(policy, self.adapter and "default")
        if all(m.dtype == p.dtype for m, p in zip(mine, theirs, strict=True)):
            torch._foreach_lerp_(mine, theirs, weight)  # fused: every number is read once and written once
            return
        for m, p in _pieces(mine, theirs):
            m.lerp_(p.to(m.dtype), weight)

    @torch.no_grad()
    def distance(self, policy) -> float:
        """Euclidean distance between teacher and policy, over the norm of the teacher: 0 at the start."""
        mine, theirs = self._parameters(), _local_parameters(policy, self.adapter and "default")
        gap = torch.stack([torch.linalg.vector_norm(p.to(m.dtype) - m) for m, p in _pieces(mine, theirs)]).norm()
        own = torch.stack(torch._foreach_norm(mine)).norm()
        gap, own = sharding.total(torch.stack([gap, own]).square(), self.model).sqrt()
        return (gap / own).item()

    def save(self, folder: str | Path, write: bool = True) -> None:
        """Write the fp32 weights as safetensors, each tied weight once.

        Every rank calls it, one with `write`: shards are gathered one parameter at a time, into that rank's host memory.
        """
        sharding.reshard(self.model)
        whole = {}
        for name, parameter in self._named().items():
            tensor = sharding.whole(parameter) if write or sharding.is_sharded(parameter) else None
            if write:
                whole[name] = tensor
        if write:
            save_file(whole, Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote, each rank what it holds. The number of ranks may be another than at `save`.

        Raises FileNotFoundError, saying what to do, when the checkpoint has no teacher.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: this checkpoint has no teacher and cannot resume this method; delete the checkpoint to use the one before"
            )
        sharding.reshard(self.model)
        own = self._named()
        with safe_open(path, "pt") as saved, torch.no_grad():
            if set(saved.keys()) != own.keys():
                raise ValueError(f"{path} does not fit this model: {sorted(set(saved.keys()) ^ own.keys())[:3]} differ")
            for name, parameter in own.items():
                sharding.fill(parameter, saved.get_tensor(name))

    def _parameters(self) -> list[torch.Tensor]:
        return _local_parameters(self.model, self.adapter)

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return _named_parameters(self.model, self.adapter)


def _named_parameters(model, adapter: str = "") -> dict[str, torch.nn.Parameter]:
    """Distinct parameters by name: all of them, or those of one LoRA adapter."""
    return {name: p for name, p in model.named_parameters() if not adapter or f".{adapter}." in name}


def _local_parameters(model, adapter: str = "") -> list[torch.Tensor]:
    """The same as tensors; for FSDP2's DTensors this rank's shard, so that no update gathers the model."""
    sharding.reshard(model)
    return [sharding.local(p) for p in _named_parameters(model, adapter).values()]


def _pieces(mine, theirs):
    """Matching views of at most PIECE elements (or one row), so that neither a cast nor a difference copies the model."""
    for m, p in zip(mine, theirs, strict=True):
        m, p = torch.atleast_1d(m), torch.atleast_1d(p)
        rows = max(1, PIECE * len(m) // max(1, m.numel()))  # a shard may be empty
        yield from zip(m.split(rows), p.split(rows), strict=True)
