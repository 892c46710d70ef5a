"""One of two gloo ranks: the teacher beside a policy that `fully_shard` split, compared with the same on whole models.

Prints `checked` from rank 0 when every assertion held. Sizes are odd, so that the ranks' shards differ in size.
"""

import sys
from pathlib import Path

sys.path.pop(0)  # this folder, whose vllm/ TRL would take for the package vllm

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from corelib import sharding  # noqa: E402
from corelib.teacher import Teacher  # noqa: E402


class Sent(TorchDispatchMode):
    """Spy: every communication between ranks while it is active."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if "c10d" in operation.namespace:
            self.operations.append(str(operation))
        return operation(*args, **(kwargs or {}))

    def gathers(self) -> int:
        return sum("allgather" in o or "all_gather" in o for o in self.operations)


class Model(nn.Module):
    """An embedding tied to the head, and two layers."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.head.weight = self.embed.weight

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.head(hidden)


def model(seed: int, sharded: bool) -> Model:
    torch.manual_seed(seed)
    made = Model()
    if sharded:
        for layer in made.layers:
            fully_shard(layer)
        fully_shard(made)  # the root keeps its parameters gathered after a forward pass
    return made


def same(shards: nn.Module, whole: nn.Module) -> None:
    sharding.reshard(shards)
    for (name, a), b in zip(shards.named_parameters(), whole.parameters(), strict=True):
        assert a.full_tensor().equal(b), name


def step(policy, t: int, scale: float) -> None:
    """A made-up update; the forward pass leaves the policy's root gathered, as generation does."""
    optimizer = torch.optim.SGD(policy.parameters(), lr=scale)
    policy(torch.tensor([[t % 7, 1, 2]])).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        policy(torch.tensor([[t % 7, 1, 2]]))


folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, ids = dist.get_rank(), torch.tensor([[0, 3, 6]])
policies = [model(0, sharded) for sharded in (True, False)]
teachers = [Teacher(model(1, sharded)) for sharded in (True, False)]
assert teachers[0].model.embed.weight.to_local().shape[0] == (4, 3)[rank]
for t in range(5):
    for policy, teacher in zip(policies, teachers, strict=True):
        step(policy, t, 0.05)
        with torch.no_grad():
            teacher.model(ids)  # gathers what the update must not leave behind
    sharding.reshard(policies[0])
    for mine, theirs in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        theirs.data.copy_(mine.full_tensor())  # gradients are summed in another order: average the same bits
    with torch.no_grad():
        policies[0](ids)
    with Sent() as spy:
        teachers[0].update(policies[0], 0.3)
    assert not spy.operations, spy.operations  # no gather, nothing else
    teachers[1].update(policies[1], 0.3)
    same(teachers[0].model, teachers[1].model)
    with torch.no_grad():  # the next forward pass sees the update
        assert teachers[0].model(ids).allclose(teachers[1].model(ids), atol=1e-6)
    assert abs(teachers[0].distance(policies[0]) - teachers[1].distance(policies[1])) < 1e-6
assert teachers[0].distance(policies[0]) > 0.01

with Sent() as spy:  # the spy sees what it looks for
    teachers[0].save(folder, write=rank == 0)
assert spy.gathers() == 5, spy.operations
dist.barrier()
for sharded in (True, False):  # written from shards, read into shards and into a whole model
    again = Teacher(model(2, sharded))
    with Sent() as spy:
        again.load(folder)
    assert not spy.operations, spy.operations
    (same if sharded else lambda a, b: [x.equal(y) or sys.exit("load") for x, y in zip(a.parameters(), b.parameters(), strict=True)])(again.model, teachers[1].model)  # fmt: skip

policy = policies[0]
with torch.no_grad(), sharding.gathered(policy):
    with Sent() as spy:
        for _ in range(1 + rank):  # ranks may differ in the number of forward passes, as `generate` does
            inside = policy(ids)
    assert not spy.operations, spy.operations
assert inside.allclose(policies[1](ids), atol=1e-6)
assert all(sharding.is_sharded(p) for p in policy.parameters())
with torch.no_grad(), Sent() as spy:
    policy(ids)
assert spy.gathers() == 3, spy.operations  # the three units are gathered one by one again
assert not sharding.is_sharded(policy.embed.weight) and sharding.is_sharded(policy.layers[0].weight)  # as before
step(policy, 0, 0.05)
if rank == 0:
    print("checked")
dist.destroy_process_group()
