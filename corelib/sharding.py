"""FSDP2 beside accelerate and TRL: whole models for generation, local shards for the teacher's average, fp32 where it counts.

Everything here does nothing to a model that is not sharded. Uses accelerate 1.15's FSDP2 plugin, torch 2.13's
`FSDPModule`, and two of its private fields (tests/test_sharding.py would notice).
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def mixed_precision(accelerator) -> None:
    """Compute in bf16, but reduce gradients in fp32 and leave the model's outputs as they are.

    accelerate sets all three to bf16. In bf16 32 micro-batches of a step would be summed with 8 bits, and TRL's fp32
    log-probabilities would leave the model rounded to 0.4 %: 0.02 at -5, more than a policy moves in many steps. Source:
    released code (fsdp_workers: param bf16, reduce fp32). Call before any model is prepared.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and accelerator.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


@contextmanager
def layered_references():
    """While a GRPOTrainer is built: shard its reference model, our teacher, layer by layer with the policy's settings.

    TRL's `prepare_fsdp` alone makes one unit of it, so that every forward pass holds the whole model twice while it is
    gathered (16 GB for 4B parameters in bf16).
    """
    from trl.trainer import grpo_trainer

    stock = grpo_trainer.prepare_fsdp
    grpo_trainer.prepare_fsdp = prepare_reference
    try:
        yield
    finally:
        grpo_trainer.prepare_fsdp = stock


def prepare_reference(model, accelerator):
    """TRL's `prepare_fsdp`, with a unit for each transformer layer. Frozen models only: gradients go with the policy."""
    from trl.models import prepare_fsdp  # here, for the teacher alone does not need TRL

    plugin = accelerator.state.fsdp_plugin
    policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
    for layer in [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]:
        fully_shard(layer, reshard_after_forward=True, mp_policy=policy)
    return prepare_fsdp(model, accelerator)


def units(model) -> list[FSDPModule]:
    """The modules that are gathered as one; none when the model is not sharded."""
    return [m for m in model.modules() if isinstance(m, FSDPModule)]


def reshard(model) -> None:
    """Free what was gathered. Units that FSDP2 keeps for the backward pass would hide a change of the shards."""
    for unit in units(model):
        unit.reshard()


def local(parameter: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a parameter: its shard, or the whole of it when it is not sharded."""
    return (parameter._local_tensor if is_sharded(parameter) else parameter).detach()


def total(squares: torch.Tensor, model) -> torch.Tensor:
    """Sum over ranks of what each computed from its shards; unchanged when the model is not sharded."""
    if units(model):
        torch.distributed.all_reduce(squares)
    return squares


@contextmanager
def gathered(model):
    """Hold the whole model (in compute precision) while the block runs, so that its forward passes do not communicate.

    Without it every token of `generate` gathers every layer, and a rank that finishes early hangs the others: transformers
    synchronises the ends of its own FSDP only (`is_fsdp_managed_module`). All ranks must enter and leave together.
    """
    sharded = units(model)
    groups = [group for unit in sharded for group in unit._get_fsdp_state()._fsdp_param_groups]
    keeps = [group.post_forward_mesh_info for group in groups]
    try:
        for group in groups:
            group.post_forward_mesh_info = None  # do not reshard after forward
        for unit in sharded:
            unit.unshard()
        yield
    finally:
        for group, keep in zip(groups, keeps, strict=True):
            group.post_forward_mesh_info = keep
        reshard(model)


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether ranks hold different parts of a parameter."""
    return isinstance(parameter, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter on the CPU, gathered when it is sharded: then all ranks must call it for the same parameter."""
    return (tensor.full_tensor() if is_sharded(tensor) else tensor).detach().cpu().contiguous()


def fill(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole tensor that every rank has read into a parameter, each rank its shard; nothing is sent."""
    if is_sharded(parameter):
        value = value.to(parameter.device, parameter.dtype)
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(value)
