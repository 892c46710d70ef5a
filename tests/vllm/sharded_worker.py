"""A run of several CPU ranks with a vLLM engine in each: `corelib.processes` and `corelib.train` as they are.

    sharded_worker.py ACCELERATE_YAML -m corelib.train --config ... --out ...

Two workarounds, which stay here: `cpu_engine`, and that accelerate 1.15 turns FSDP on for accelerators only (state.py:
MULTI_CPU never becomes FSDP), where ACCELERATE_YAML asks for FSDP.
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent)  # not the folder above, whose vllm/ would be the package vllm

if "RANK" not in os.environ:
    from corelib import processes

    sys.exit(processes.start([sys.executable, *sys.argv], sys.argv[1]))

import cpu_engine  # noqa: E402
from accelerate import PartialState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402

from corelib import train  # noqa: E402

stock = train.grpo_config


def grpo_config(*args, **kwargs):
    config = stock(*args, **kwargs)
    assert config.distributed_state.backend == "gloo"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return config


train.grpo_config = grpo_config
cpu_engine.replace()
sys.exit(train.main(sys.argv[4:]))
