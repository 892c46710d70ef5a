"""A real vLLM server on a CPU through TRL's client: generation as it is, weights by a file in place of NCCL.

NCCL needs a GPU at both ends. TRL's client says so (`NotImplementedError: ... needs a CUDA device, got 'cpu'`), and the
server's worker fails with `Cannot access accelerator device when none is available.` Everything else is real.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
import requests
import torch
from safetensors.torch import save_file
from test_swap import ask, check_log, expected, long_prompts, make, random_model, weights
from tiny_qwen3 import move

from corelib import engine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of a server for `random_model(..., tied=False)`; at the end exactly this process is stopped."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {
        "--model": random_model(folder, tied=False).base_model,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": "256",
        "--gpu-memory-utilization": "0.1",
        "--logprobs-mode": "processed_logprobs",
        "--weight-transfer-config": json.dumps({"backend": "nccl"}),
    }
    # `vllm serve` of the CPU build looks for a distribution named vllm, and fails; this is what it runs
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [word for flag in flags.items() for word in flag]
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = folder / "server.log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    address, deadline = f"http://127.0.0.1:{port}", time.time() + 400
    try:
        while True:
            try:
                if requests.get(f"{address}/health", timeout=5).ok:
                    break
            except requests.ConnectionError:
                time.sleep(1)
            if process.poll() is not None or time.time() > deadline:
                pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def weights_by_file(monkeypatch, tmp_path):
    """TRL's client with the server's own `reload_weights` on a folder where NCCL would broadcast."""
    from trl.generation.vllm_client import VLLMClient

    def update_named_params(self, metadata, named_params):
        push = tmp_path / "push"
        push.mkdir(exist_ok=True)
        save_file({name: p.detach().clone().contiguous() for name, p in named_params}, push / "model.safetensors")
        shutil.copy(tmp_path / "model" / "config.json", push)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(push)}}
        self._post(f"{self.base_url}/collective_rpc", json=body)

    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device=0: None)
    monkeypatch.setattr(VLLMClient, "update_named_params", update_named_params)


def test_policy_teacher_policy_on_a_real_server(url, weights_by_file, tmp_path):
    trainer = make(random_model(tmp_path, tied=False, engine="vllm_server", vllm_server=url), tmp_path)
    move(weights(trainer, "default"), 0.1, seed=1)
    move(weights(trainer, "ref"), 0.1, seed=2)
    sampling, prompts = trainer.vllm_generation, long_prompts(trainer)
    policy, teacher = expected(trainer, prompts), expected(trainer, prompts, teacher=True)
    sampling.temperature, drawn = 0.0, sampling.temperature
    assert ask(trainer, prompts) == policy
    with engine.weights_of(trainer, trainer.teacher.model):
        assert ask(trainer, prompts) == teacher != policy
    assert ask(trainer, prompts) == policy
    sampling.temperature = drawn
    trainer.train()
    check_log(trainer, 3)


def test_what_nccl_says_without_a_gpu(url, tmp_path):
    config = random_model(tmp_path, tied=False, engine="vllm_server", vllm_server=url)
    assert not torch.cuda.is_available()
    with pytest.raises(NotImplementedError, match="needs a CUDA device, got 'cpu'"):
        make(config, tmp_path)
    info = {"master_address": "127.0.0.1", "master_port": 51999, "rank_offset": 1, "world_size": 2, "packed": True}
    answer = requests.post(f"{url}/init_weight_transfer_engine", json={"init_info": info}, timeout=120)
    assert answer.status_code == 500 and "Cannot access accelerator device" in answer.text
