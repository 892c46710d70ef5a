"""vLLM on a CPU, for these tests only: what its CPU build cannot do as TRL asks is replaced here, never in corelib.

Without vLLM the tests in this folder are not collected; tests/test_vllm.py makes the environment of requirements.txt and
runs them there.
"""

import importlib.util

import cpu_engine  # first: vLLM reads its environment when it is imported
import pytest

_spec = importlib.util.find_spec("vllm")
HAVE_VLLM = bool(_spec and _spec.origin)
collect_ignore = [] if HAVE_VLLM else ["test_real_server.py", "test_sharded.py", "test_stock_trl.py", "test_swap.py", "test_training.py"]  # fmt: skip


def pytest_configure(config):
    config.addinivalue_line("markers", "swap: the one swap of weights that runs with every test suite")


@pytest.fixture
def vllm_on_cpu(monkeypatch):
    """TRL's colocated engine with what its CPU build needs; afterwards no engine and no process group is left."""
    import torch
    from accelerate.state import AcceleratorState
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    engines = cpu_engine.replace(monkeypatch.setattr)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # TRL sets them for vLLM
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    torch.manual_seed(0)
    yield engines
    for engine in engines:
        engine.llm_engine.engine_core.shutdown()
    engines.clear()
    cleanup_dist_env_and_memory()
    AcceleratorState._reset_state(reset_partial_state=True)
