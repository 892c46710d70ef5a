"""A run that is really sharded on the CPU: `corelib.processes` and `corelib.train` as they are, with one workaround.

    fsdp_worker.py ACCELERATE_YAML -m corelib.train --config ... --out ...

accelerate 1.15 turns FSDP on for accelerators only (state.py: MULTI_CPU never becomes FSDP). The workaround stays here.
"""

import os
import sys

sys.path.pop(0)  # this folder, whose vllm/ TRL would take for the package vllm

if "RANK" not in os.environ:
    from corelib import processes

    sys.exit(processes.start([sys.executable, *sys.argv], sys.argv[1]))

from accelerate import PartialState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402

from corelib import train  # noqa: E402

stock = train.grpo_config


def grpo_config(*args, **kwargs):
    config = stock(*args, **kwargs)
    assert config.distributed_state.backend == "gloo"
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return config


train.grpo_config = grpo_config
sys.exit(train.main(sys.argv[4:]))
