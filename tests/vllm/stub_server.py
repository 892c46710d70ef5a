"""A stand-in for `vllm serve` on loopback, for TRL's client without vLLM, NCCL or a GPU.

It answers the endpoints that TRL 1.16's VLLMClient calls. Weights do not travel: the client's side sends their digest,
and what the stub generates is a function of that digest, the prompt and the number of the completion, never of the
order or time of the requests. So a test sees with whose weights a rollout was made.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

UNTOUCHED = "the weights on disk"  # the digest before the first update


class StubServer(ThreadingHTTPServer):
    """`answer(digest, prompt, i)` gives the token ids of completion i; `pause(body)` runs in every generation: it may
    sleep, or wait for another server.

    `log` has a row (path, started, ended, digest) for every POST that succeeded; times are `time.monotonic`.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[str, Sequence[int], int], list[int]], pause: Callable[[dict], None]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.pause = answer, pause
        self.digest, self.updating, self.log = UNTOUCHED, False, []
        self.stale = False  # whether the prefix cache was left alone after an update

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def get(self, path: str) -> dict:
        return {
            "/health": {},
            "/v1/models": {"data": [{"id": "stub"}]},
            "/get_world_size": {"world_size": 1},
            "/server_info": {
                "vllm_config": {
                    "weight_transfer_config": {"backend": "nccl"},
                    "model_config": {"logprobs_mode": "processed_logprobs"},
                }
            },
        }[path]

    def post(self, path: str, body: dict) -> dict:
        """Raises RuntimeError for what a real server would get wrong in silence."""
        if path == "/start_weight_update":
            self.updating = True
        elif path == "/update_weights":
            if not self.updating:
                raise RuntimeError("weights outside of an update")
            self.digest, self.stale = body["update_info"]["digest"], True
        elif path == "/finish_weight_update":
            self.updating = False
        elif path == "/reset_prefix_cache":
            self.stale = False
            return {"success": True}
        elif path == "/v1/completions":
            if self.updating or self.stale:
                raise RuntimeError("generation in the middle of an update, or from a prefix cache of other weights")
            digest = self.digest
            self.pause(body)
            if digest != self.digest:
                raise RuntimeError("the weights changed during a generation")
            return {"choices": [self.choice(digest, p, i) for p in body["prompt"] for i in range(body["n"])]}
        elif path != "/init_weight_transfer_engine":
            raise KeyError(path)
        return {}

    def choice(self, digest: str, prompt: Sequence[int], i: int) -> dict:
        ids = self.answer(digest, prompt, i)
        tokens = [f"token_id:{t}" for t in ids]
        logprobs = {"tokens": tokens, "token_logprobs": [-1.0] * len(ids), "top_logprobs": [{t: -1.0} for t in tokens]}
        return {"prompt_token_ids": list(prompt), "token_ids": ids, "logprobs": logprobs}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, self.server.get(self.path.split("?")[0]))

    def do_POST(self):
        started = time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        try:
            answer = self.server.post(self.path, body)
        except Exception as error:  # 400: TRL's client raises at once, it would try 500 again
            return self.reply(400, {"error": f"{type(error).__name__}: {error}"})
        self.server.log.append((self.path, started, time.monotonic(), self.server.digest))
        self.reply(200, answer)

    def reply(self, status: int, body: dict):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def serving(answer, pause=lambda body: None):
    """A running StubServer."""
    server = StubServer(answer, pause)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def digest_of(named_params) -> str:
    """A fingerprint of names and values, whatever the order."""
    rows = sorted((name, hashlib.sha256(p.detach().float().contiguous().numpy().tobytes()).digest()) for name, p in named_params)  # fmt: skip
    return hashlib.sha256(b"".join(name.encode() + value for name, value in rows)).hexdigest()


def without_nccl(monkeypatch) -> None:
    """TRL's client on a CPU: requests as they are, but a digest in place of the broadcast over NCCL."""
    from trl.generation import vllm_client, vllm_generation

    def init_communicator(self, device=0):
        if self.get_server_info()["weight_transfer_config"] is None:
            raise RuntimeError("the server has no weight-transfer engine")
        init_info = {"master_port": self.group_port, "rank_offset": 1, "world_size": self.get_world_size() + 1}
        self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": init_info})

    def update_named_params(self, metadata, named_params):
        named_params = [(name, p.detach().clone()) for name, p in named_params]
        announced = [(name, str(p.dtype).removeprefix("torch."), list(p.shape)) for name, p in named_params]
        assert announced == list(metadata), "the server was told of other tensors than it gets"
        self._start_weight_update()
        info = {"names": [name for name, *_ in metadata], "digest": digest_of(named_params)}
        self._post(f"{self.base_url}/update_weights", json={"update_info": info})
        self._finish_weight_update()

    monkeypatch.setattr(vllm_client, "is_vllm_available", lambda *_, **__: True)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda *_, **__: True)
    monkeypatch.setattr(vllm_client, "_HAS_RESET_PREFIX_CACHE_SUCCESS", True)  # as vLLM 0.31 answers
    monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", init_communicator)
    monkeypatch.setattr(vllm_client.VLLMClient, "update_named_params", update_named_params)
