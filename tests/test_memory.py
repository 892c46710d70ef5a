"""The memory plan: parameters against published counts, activations against what PyTorch stores, sums worked by hand.

Everything runs on the CPU. That a GPU's peak agrees has not been measured.
"""

import contextlib
import dataclasses
import re
import weakref

import pytest
import torch

from corelib import doctor, memory, sizes
from corelib.config import PROFILES, load_config
from corelib.memory import GIB, cure, plan
from corelib.sizes import of_config, of_model

# `safetensors.total` of the Hub's repositories; the model cards' 3.09B, 7.61B, 1.7B, 4.0B, 8.2B, 3.21B, 135M
PUBLISHED = {
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}
# hidden, layers, heads, key-value heads, head dimension, MLP, vocabulary
SMALL = [(64, 2, 4, 2, 16, 192, 300), (128, 3, 4, 1, 32, 256, 500), (96, 4, 6, 6, 32, 320, 1000)]
MODES = ["fp32", "autocast", "bf16", "lora", "lora32"]


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_the_published_ones(model):
    a = of_model(model)
    assert a.parameters == PUBLISHED[model]
    assert a.layers * a.layer + (1 if a.tied else 2) * a.head + a.hidden == a.parameters


def test_every_profile_has_a_plan():
    assert set(PUBLISHED) == set(sizes.SHAPES)
    for name in PROFILES:
        cpu = not load_config(name).bf16
        assert plan(load_config(name), 1 if cpu else 8, 80, cpu).fits, name


def test_model_of_a_folder_and_of_unknown_size(tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.for_model("qwen3", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=128, vocab_size=100)  # fmt: skip
    config.save_pretrained(tmp_path)
    # 100x64 embedding and head (untied), final norm 64; a layer: q 64x64, k and v 64x32, o 64x64, norms of heads 2x16,
    # MLP 3x64x128, norms 2x64
    assert of_model(str(tmp_path)).parameters == 2 * 6400 + 64 + 2 * (4096 + 2 * 2048 + 4096 + 32 + 24576 + 128)
    with pytest.raises(ValueError, match="size of model='nobody/nothing' is not known without a download"):
        of_model("nobody/nothing")
    with pytest.raises(ValueError, match="not known without a download"):
        of_model("../elsewhere/model")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    sizes.of_model.cache_clear()
    with pytest.raises(ValueError, match="is of type 'gpt2'; the memory plan covers qwen3, qwen2, llama"):
        of_model(str(tmp_path))


def small(shape, family="qwen3", mode="fp32", checkpointing=False, rank=8):
    """A random model as the trainer prepares it, its architecture, and the context that its forward pass runs in."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size")  # fmt: skip
    config = AutoConfig.for_model(family, **dict(zip(names, shape, strict=True)), tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    if mode in ("bf16", "lora"):
        model = model.to(torch.bfloat16)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if mode.startswith("lora"):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    mixed = mode in ("autocast", "bf16", "lora")  # accelerate runs FSDP2's bf16 weights under autocast as well
    return (
        model.train(),
        of_config(config),
        torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext(),
    )


def stored(model, context, rows: int, length: int, vocab: int) -> int:
    """Bytes that PyTorch stores for the backward pass, without parameters and the casts of them."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    shapes = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        cast = tensor.grad_fn is not None and tensor.grad_fn.name() == "TBackward0" and tuple(tensor.shape) in shapes
        if storage.data_ptr() not in own and not cast:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    ids = torch.randint(0, vocab, (rows, length))
    attention = torch.ones_like(ids)
    attention[0, :3] = 0  # one padded row is enough for a mask
    labels = ids.masked_fill(attention == 0, -100)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), context:
        model(input_ids=ids, attention_mask=attention, labels=labels, fused_lm_head=True)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SMALL)
def test_stored_activations_are_those_of_the_formula(shape, mode, checkpointing):
    model, a, context = small(shape, mode=mode, checkpointing=checkpointing)
    rank = 8 if mode.startswith("lora") else 0
    measured = stored(model, context, rows=3, length=80, vocab=shape[-1])
    # on a CPU TRL scores every position but the first
    assert sizes.stored_bytes(a, 3, 80, 79, mode, checkpointing, rank) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("mode", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_stored_activations_of_the_other_families(family, mode):
    shape = (128, 2, 4, 2, 32, 384, 500)
    model, a, context = small(shape, family, mode)
    assert sizes.stored_bytes(a, 2, 96, 95, mode, False) == pytest.approx(stored(model, context, 2, 96, 500), rel=0.1)


class Live(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes of the tensors that are alive, and their peak; parameters and gradients named before do not count."""

    def __init__(self, known):
        super().__init__()
        self.known = [t.untyped_storage() for t in known]
        self.seen, self.live, self.peak = {s._cdata: None for s in self.known}, 0, 0

    def note(self, tensor):
        storage = tensor.untyped_storage()
        key, count = storage._cdata, storage.nbytes()
        if key in self.seen:
            return

        def gone(_):
            self.live -= count
            del self.seen[key]

        self.seen[key] = weakref.ref(storage, gone)
        self.live += count
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self.note, out)
        return out


def peaks(layers: int, mode: str, rows: int, length: int, checkpointing: bool = True):
    """Peak bytes of forward and backward through Qwen3-4B's decoder layers at full width, on tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoConfig, AutoModel

    shape = dict(zip(sizes.FIELDS, sizes.SHAPES["Qwen/Qwen3-4B-Base"][1:], strict=True))
    config = AutoConfig.for_model("qwen3", **(shape | {"num_hidden_layers": layers}))
    context = torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True):
        dtype = torch.bfloat16 if mode == "bf16" else torch.float32
        model = AutoModel.from_config(config, attn_implementation="sdpa", dtype=dtype).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        ids = torch.zeros(rows, length, dtype=torch.long)
        with Live([t for p in model.parameters() for t in (p, p.grad)]) as track:
            with context:
                out = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
            forward, track.peak = track.peak, track.live
            out.sum().backward()
    return of_config(config), forward, track.peak


@pytest.mark.parametrize("layers", [2, pytest.param(36, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["bf16", "autocast", "fp32"])
def test_peaks_of_the_real_layers_at_full_width(mode, layers):
    """Micro-batch 8, 512 + 3,072 tokens, gradient checkpointing: what is in work on top of what is stored."""
    a, forward, backward = peaks(layers, mode, 8, 3584)
    tokens, r = 8 * 3584, sizes.residual(mode)
    inputs = layers * r * a.hidden * tokens + 8 * 3584**2 + 2 * r * a.head_dim * 3584  # with mask and rotary positions
    casts = 2 * layers * a.layer if mode == "autocast" else 0
    assert inputs + casts + sizes.forward_bytes(a, mode) * tokens == pytest.approx(forward, rel=0.1)
    casts = 2 * a.layer if mode == "autocast" else 0
    layer = (sizes.layer_bytes(a, 3584, mode) + sizes.backward_bytes(a, mode)) * tokens
    assert inputs + casts + layer == pytest.approx(backward, rel=0.1)


def row(p, part):
    return next(r for r in p.rows if r["part"].startswith(part))


def test_states_worked_by_hand():
    """Qwen3-4B-Base has P = 4,022,468,096 parameters: 4 P bytes are 14.985 GiB."""
    one, four = (plan(load_config("qwen3-4b"), n, 80) for n in (1, 4))
    assert row(one, "weights")["update"] == pytest.approx(14.985, abs=1e-3)
    assert row(one, "Adam moments")["rollouts"] == pytest.approx(29.970, abs=1e-3)
    assert row(one, "gradients")["rollouts"] == 0
    assert row(four, "weights")["update"] == pytest.approx(3.746, abs=1e-3)
    # vLLM: 0.35 x 80 = 28 GiB less 7.492 of weights, 1 of work and 0.580 of the sampler's 16 x 151,936 x 256 bytes; 2 x 36 layers x 8 heads x 128 x 2 bytes = 147,456 a
    # token, x 3,584 = 0.4922 GiB a sequence
    assert row(four, "vLLM: KV cache")["rollouts"] == pytest.approx(18.928, abs=1e-3)
    assert four.sequences == 38 and four.rollouts == 256
    # bf16 copies of 36 layers of 100,930,816 parameters
    assert row(one, "bf16 copies")["forward"] == pytest.approx(36 * 100_930_816 * 2 / 2**30)
    assert not any(r["part"].startswith("bf16 copies") for r in four.rows)
    # tile of the LM head: 4,096 x 32,768 in bf16 (256 MiB), its weights 32,768 x 2,560 (160 MiB)
    assert row(four, "LM head")["score"] == pytest.approx((256 + 160) / 1024)
    # backward of the head: fp32 gradient of 151,936 x 2,560 weights and its cast; of 8 x 3,072 hidden states in fp32 and
    # bf16, and of all 8 x 3,584 of them in bf16
    head = 6 * 151_936 * 2_560 + 6 * 2_560 * 8 * 3_072 + 2 * 2_560 * 8 * 3_584
    assert row(four, "LM head")["head"] == pytest.approx((256 + 160) / 1024 + head / 2**30)


def test_sums_and_frame():
    p = plan(load_config("qwen3-4b"), 4, 80)
    frame = p.frame()
    assert list(frame.columns) == list(memory.PHASES)
    assert frame["backward"].sum() == pytest.approx(p.phases["backward"])
    assert p.peak == max(p.phases.values()) and p.room == pytest.approx(80 - p.peak)


@pytest.mark.parametrize(
    "method, beta, second",
    [
        ("gt", 0.001, "KL reference, fp32"),
        ("gt", 0.0, None),
        ("co_rewarding_ii", 0.001, "teacher and KL reference, fp32"),
        ("co_rewarding_iii", 0.0, "teacher, fp32"),
        ("frozen_teacher", 0.001, "teacher and KL reference, fp32"),
    ],
)
def test_the_teacher_is_the_reference(method, beta, second):
    p = plan(load_config("qwen3-4b", method=method, beta=beta), 4, 80)
    found = [r["part"] for r in p.rows if "reference" in r["part"] or "teacher" in r["part"]]
    assert found == ([second] if second else [])
    if second:
        assert row(p, second)["update"] == pytest.approx(3.746, abs=1e-3)


def test_lora():
    """rank x (in + out) of q, k, v, o, gate, up, down: 57,344 a layer of Qwen3-4B; x 36 x 32 = 66,060,288 parameters."""
    a = of_model("Qwen/Qwen3-4B-Base")
    assert 36 * ((2560 + 4096) + 2 * (2560 + 1024) + (4096 + 2560) + 3 * (2560 + 9728)) == a.linear
    p = plan(load_config("qwen3-4b-lora", method="co_rewarding_ii"), 1, 48)
    assert row(p, "base weights, frozen, bf16")["update"] == pytest.approx(7.492, abs=1e-3)
    for part, count in (("adapters", 4), ("gradients", 4), ("Adam moments", 8), ("teacher, a second adapter", 4)):
        assert row(p, part)["update"] == pytest.approx(count * 66_060_288 / 2**30)
    assert not any("reference" in r["part"] for r in plan(load_config("qwen3-4b-lora"), 1, 48).rows)


def test_vllm_gives_its_memory_back():
    asleep, awake = (plan(load_config("qwen3-4b", vllm_sleep=sleep), 4, 80) for sleep in (True, False))
    assert awake.phases["backward"] - asleep.phases["backward"] == pytest.approx(0.35 * 80)
    assert awake.phases["rollouts"] == pytest.approx(asleep.phases["rollouts"])
    server = plan(load_config("qwen3-4b", engine="vllm_server"), 4, 80)
    assert server.sequences is None and not any("vLLM" in r["part"] for r in server.rows)


def test_other_engines_and_sharding():
    p = plan(load_config("qwen3-4b", engine="transformers"), 4, 80)
    # 40,000 // 3,584 = 11 rows of 147,456 bytes a token, and one layer of 36 twice
    assert row(p, "KV cache, transformers")["rollouts"] == pytest.approx(11 * 3584 * 147_456 * 37 / 36 / GIB)
    assert row(p, "FSDP2")["rollouts"] == pytest.approx(7.492, abs=1e-3)  # the whole model in bf16
    ddp = plan(load_config("qwen3-4b", sharding="ddp"), 4, 80)
    assert row(ddp, "DDP gradient buckets")["score"] == pytest.approx(14.985, abs=1e-3)
    assert not ddp.fits


def test_host_and_disk():
    p = plan(load_config("qwen3-4b", method="co_rewarding_ii"), 4, 80)
    # policy and teacher in fp32 for each of four processes; 12 + 4 bytes a parameter in three checkpoints, 4 in four more
    assert p.host[1]["GiB"] == pytest.approx(4 * 2 * 14.985, abs=0.01)
    assert [part["GiB"] for part in p.disk] == pytest.approx([3 * 59.939, 4 * 14.985, 7.492], abs=0.01)


def test_disk_is_what_saving_asks_for(tmp_path):
    from corelib import saving

    a = of_model("lab")
    parts = memory.disk(load_config("lab", method="co_rewarding_ii"))
    weights = [torch.nn.Parameter(torch.empty(a.parameters, device="meta"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "free", lambda folder: 0)
        with pytest.raises(saving.DiskFull) as error:
            saving.require_space(tmp_path, weights, teacher=True)
    asked = sum(part["GiB"] for part in parts) * GIB
    assert f"{saving._gb(int(asked))} more" in str(error.value)


@pytest.mark.parametrize(
    "profile, settings, gpus, gib, change",
    [
        ("qwen3-4b", {"sharding": "ddp"}, 4, 80, {"sharding": "fsdp2"}),
        ("qwen3-4b", {}, 1, 80, {"gpus": 2}),
        ("qwen3-4b", {"gradient_checkpointing": False}, 4, 80, {"gradient_checkpointing": True}),
        ("qwen3-4b", {"vllm_sleep": False, "vllm_memory": 0.6}, 4, 80, {"vllm_sleep": True}),
        ("qwen3-4b", {"vllm_memory": 0.9}, 4, 80, {"vllm_memory": 0.7}),
        ("qwen3-4b", {"engine": "vllm_server"}, 4, 33, {"micro_batch": 4}),
    ],
)
def test_the_knob_that_makes_it_fit(profile, settings, gpus, gib, change):
    config = load_config(profile, **settings)
    assert not plan(config, gpus, gib).fits
    found, after = cure(config, gpus, gib)
    assert found == change and after.fits
    assert after == plan(dataclasses.replace(config, **{k: v for k, v in change.items() if k != "gpus"}), found.get("gpus", gpus), gib)  # fmt: skip


def test_two_knobs_and_none():
    config = load_config("qwen3-4b", vllm_memory=0.9, sharding="ddp")
    found, after = cure(config, 4, 80)
    assert found == {"vllm_memory": 0.7, "sharding": "fsdp2"} and after.fits
    assert not any(plan(dataclasses.replace(config, **{k: v}), 4, 80).fits for k, v in found.items())
    assert cure(load_config("qwen3-4b-lora", engine="transformers"), 8, 2) is None


def test_splits_that_training_would_refuse():
    with pytest.raises(ValueError, match="1024 rollouts a step do not split over 3 GPUs x micro_batch=8"):
        plan(load_config("qwen3-4b"), 3, 80)
    with pytest.raises(ValueError, match="vllm_tensor_parallel=4 does not divide 2 GPUs"):
        plan(load_config("qwen3-4b", vllm_tensor_parallel=4), 2, 80)
    with pytest.raises(ValueError, match="do not split over 0 GPUs"):
        plan(load_config("qwen3-4b"), 0, 80)


def test_constants_are_those_of_the_code():
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    from corelib import engine, saving

    assert memory.GENERATE_TOKENS == engine.BATCH_TOKENS
    assert (memory.TILE_TOKENS, memory.TILE_VOCABULARY) == (
        chunked_logprob.TOKEN_CHUNK_SIZE,
        utils._CHUNKED_LOGPROB_CHUNK_SIZE,
    )
    assert memory.CHECKPOINTS == saving.KEEP + 1


def test_gradients_are_sharded_while_they_accumulate(tmp_path, monkeypatch):
    """The plan counts a shard; without `sync_each_batch` FSDP2 would keep whole gradients on every GPU."""
    from corelib.train import grpo_config

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = grpo_config(load_config("lab"), tmp_path, steps=2)
    assert args.accelerator_config.gradient_accumulation_kwargs["sync_each_batch"] is True
    assert args.optim.value == "adamw_torch"  # whose work on plain CUDA tensors is one more copy of all weights


def test_doctor_prints_the_plan(capsys):
    assert doctor.report("qwen3-4b", "4x80") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert re.search(r"weights, fp32 master +3\.75", out) and "fits: 47.8 of 80 GiB in phase rollouts" in out
    assert "38 sequences of 3,584 tokens" in out and "a peak on a GPU has not been" in out
    assert doctor.report("qwen3-4b", "1x80") == 1
    out = capsys.readouterr().out
    assert "does not fit: 22.0 GiB too much in phase forward" in out and "turn first: gpus=2" in out
    assert doctor.report("qwen3-4b", "8x80", {"model": "Qwen/Qwen3-8B-Base", "method": "co_rewarding_iii"}) == 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("qwen3-4b", "many"), "--gpus 'many' must be COUNTxGIB, e.g. 4x80"),
        (("qwen3-4b", "0x80"), "--gpus '0x80' must be COUNTxGIB"),
        (("", "4x80"), "--gpus, --set and --measure need --profile"),
        (("qwen3-4b", "4x80", {"model": "some/thing"}), "size of model='some/thing' is not known"),
        (("qwen3-4b", "4x80", {"metod": "gt"}), "did you mean 'method'"),
    ],
)
def test_doctor_refuses(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        doctor.report(*arguments)


def test_a_gpu_profile_is_not_measured_without_a_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "_gpus", lambda: [])
    with pytest.raises(ValueError, match="profile qwen3-4b is measured on a GPU, and none is visible here"):
        doctor.report("qwen3-4b", measure=True)


def test_doctor_without_arguments(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_free", lambda: 100.0)
    doctor.report()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    for said in ("torch", "GPU:", "sandbox for programs:", *PROFILES):
        assert said in out
    assert "a run takes 202 GiB" in " ".join(out.split()).replace("│ ", "").replace("│", "")
    assert "disk: a run takes 202 GiB with its checkpoints, 100 are free" in doctor.lacks(load_config("qwen3-4b"), 1)


def test_versions_that_vllm_needs(monkeypatch):
    environment = (doctor.runs.ROOT / "environment.yml").read_text()
    assert f"vllm=={doctor.VLLM}" in environment
    pinned = dict(re.findall(r"- (torch|transformers)==(\S+)", environment))
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: _version(pinned, name))
    assert doctor.vllm_line().count(" fits ") == 2
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: _version(pinned | {"torch": "2.14.0"}, name))
    assert "torch 2.14.0 DOES NOT FIT ==2.13.0" in doctor.vllm_line()


def _version(versions: dict, name: str) -> str:
    if name == "vllm":
        raise doctor.importlib.metadata.PackageNotFoundError
    return versions[name]


def test_longest_rows_keep_pairs_together():
    from datasets import Dataset

    from corelib.measure import longest

    def words(text):
        return {"input_ids": text.split()}

    rows = Dataset.from_dict({"prompt": ["a", "a a", "a a a a", "a", "a a a", "a a"]})
    assert longest(rows, words, 2, 1)["prompt"] == ["a a a a", "a a a"]
    assert longest(rows, words, 4, 2)["prompt"] == ["a a a a", "a", "a a a", "a a"]


@pytest.mark.slow
def test_measured_peak_of_the_lab():
    """A training process of the lab on the CPU: the plan within a quarter of the peak resident memory."""
    from corelib.measure import measure

    config = load_config("lab", method="co_rewarding_ii")
    (peak,) = measure(config, echo=lambda _: None)
    assert peak["what"] == "peak resident memory"
    assert plan(config, 1, 16, cpu=True).peak == pytest.approx(peak["GiB"], rel=0.25)
