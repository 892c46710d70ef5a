"""Rollouts from vLLM servers, with stand-ins for the servers (stub_server.py): runs without vLLM.

The stub's answers depend on the weights that were pushed, so equal labels mean equal weights at every rollout.
"""

import contextlib
import random
import threading
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from stub_server import UNTOUCHED, digest_of, serving, without_nccl

from corelib import lab, runs, train

WORDS = lab.tokenizer().convert_tokens_to_ids
ROLLOUTS = 4  # a prompt; validation asks for one


def answer(digest, prompt, i):
    """A boxed number from 1 to 3, decided by the weights, the question and the place in the group."""
    number = random.Random(f"{digest} {list(prompt)} {i}").randint(1, 3)
    return WORDS(f"\\boxed{{ {number} }} <eos>".split())


@pytest.fixture(autouse=True)
def client(monkeypatch):
    without_nccl(monkeypatch)


def on(tiny, method, *stubs, **settings):
    """A run of three steps on these servers: one for both models, or one for each."""
    urls = ",".join(stub.url for stub in stubs)
    small = dict(engine="vllm_server", vllm_server=urls, rollouts=ROLLOUTS, learning_rate=1e-3, beta=0.001, teacher_start=0.5, steps=3)  # fmt: skip
    return tiny(method, **(small | settings))


def run(config, folder):
    """Train; the stored rollouts and the final weights."""
    train.train(config, folder)
    tables = [pd.read_parquet(f) for f in sorted((folder / "completions").glob("*.parquet"))]
    file = "adapter_model.safetensors" if config.lora_rank else "model.safetensors"
    return pd.concat(tables, ignore_index=True), load_file(folder / "final" / file)


def rollouts(stub, validated=True):
    """Whose weights made the rollouts, in order. The policy is validated before the first step and after the last one."""
    made = [digest for path, _, _, digest in stub.log if path == "/v1/completions"]
    return made[1:-1] if validated else made


@pytest.mark.parametrize("lora", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_a_second_server_works_beside_the_first_and_changes_no_label(tiny, tmp_path, lora):
    both = threading.Barrier(2, timeout=60)  # breaks unless the two servers generate at the same time

    def meet(body):
        if body["n"] == ROLLOUTS:
            both.wait()

    with serving(answer) as one, serving(answer, meet) as policy, serving(answer, meet) as teacher:
        alone, weights = run(on(tiny, "co_rewarding_ii", one, lora_rank=lora), tmp_path / "one")
        beside, same = run(on(tiny, "co_rewarding_ii", policy, teacher, lora_rank=lora), tmp_path / "two")
    pd.testing.assert_frame_equal(alone, beside)
    assert alone["label"].nunique() > 1 and (alone["teacher_answer"] != alone["answer"]).any()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    turns = rollouts(one)
    assert turns[::2] == rollouts(policy) and turns[1::2] == rollouts(teacher, validated=False)
    assert UNTOUCHED not in turns and len({*turns[2:]}) == 4  # from the first update on, teacher and policy differ


@pytest.mark.slow
def test_a_second_server_saves_the_time_of_a_generation(tiny, tmp_path):
    with contextlib.ExitStack() as stack:
        one, policy, teacher = (
            stack.enter_context(serving(answer, lambda body: time.sleep(2.0 * (body["n"] > 1)))) for _ in range(3)
        )
        run(on(tiny, "co_rewarding_ii", one), tmp_path / "one")
        run(on(tiny, "co_rewarding_ii", policy, teacher), tmp_path / "two")
    seconds = [runs.load_metrics(tmp_path / name)["step_time"].median() for name in ("one", "two")]
    print(f"step: {seconds[0]:.2f} s with one server, {seconds[1]:.2f} s with two, generations of 2 s")
    assert seconds[0] > 4 and seconds[0] - seconds[1] > 1


def test_the_server_gets_exactly_the_policys_weights(tiny, tmp_path):
    """What the last generation of the run was made with is what was saved, tied weights once."""
    with serving(answer) as stub:
        run(on(tiny, "gt", stub, eval_steps=3), tmp_path)
    final = load_file(tmp_path / "final" / "model.safetensors")
    assert rollouts(stub, validated=False)[-1] == digest_of(final.items())  # the validation at the end


def test_what_the_teachers_server_refuses_stops_the_run(tiny, tmp_path):
    def refuse(digest, prompt, i):
        raise ValueError("no room for the teacher")

    with serving(answer) as policy, serving(refuse) as teacher:
        with pytest.raises(Exception, match="no room for the teacher"):
            train.train(on(tiny, "co_rewarding_ii", policy, teacher), tmp_path)
    assert runs.read_status(tmp_path)["state"] == "failed"


def test_the_stub_refuses_what_a_server_would_get_wrong(tiny, tmp_path, monkeypatch):
    """The tests above would notice a forgotten reset of the prefix cache."""
    from trl.generation.vllm_client import VLLMClient

    monkeypatch.setattr(VLLMClient, "reset_prefix_cache", lambda self: None)
    with serving(answer) as stub, pytest.raises(Exception, match="prefix cache of other weights"):
        train.train(on(tiny, "gt", stub), tmp_path)
