"""The bench of a full-scale step: its arithmetic worked by hand, its machinery on a tiny model."""

import inspect
import json
import time

import pytest
import torch
from torch import nn

from corelib import bench_gpu, bench_kit
from corelib.__main__ import main
from corelib.bench_kit import SIZES, in_turn, peak_bytes, ratio, row
from corelib.bench_steps import TRAINING_PHASES, Stepper, memory, steps
from corelib.teacher import Teacher

TINY = SIZES["tiny"]


def test_full_is_qwen3_4b():
    """4,022,468,096 parameters: the model card's 4.0 billion, 3.6 without the embedding."""
    model = bench_kit.random_model(SIZES["full"], "meta")
    assert sum(p.numel() for p in model.parameters()) == 4_022_468_096
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert 4_022_468_096 - 151_936 * 2560 == 3_633_511_936


def test_random_model_is_the_same_each_time():
    a, b = (bench_kit.random_model(TINY, "cpu") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_flops_by_hand():
    """Tiny, worked by hand: a layer multiplies 32 x 32 (q) + 2 x 32 x 16 (k, v) + 32 x 32 (o) + 3 x 32 x 64 = 9,216 weights."""
    weights = 6 * (2 * 9216 * 48 + 512 * 32 * 32)  # two layers see 48 tokens, the head 32
    attention = 6 * 2 * 2 * 16 * 48 * 48  # half of 12 L H Q T, for each of T tokens
    assert bench_gpu.model_flops(TINY, 48, 32) == weights + attention


def test_flops_of_the_full_row_are_near_6_n():
    """PaLM's 6 N a token holds within the attention's share, which grows with the row."""
    flops = bench_gpu.model_flops(SIZES["full"], 3584, 3584)
    assert 1.10 < flops / (6 * 4.022e9 * 3584) < 1.15


def test_counted_flops_agree_with_pytorchs_own_counter():
    """PyTorch counts 2 mn k of every product of the forward pass, attention in full and the head on every position."""
    from torch.utils.flop_counter import FlopCounterMode

    model = bench_kit.random_model(TINY, "cpu")
    model.set_attn_implementation("eager")  # the fused CPU kernel is not in PyTorch's table
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.randint(2, 512, (1, 48)))
    ours = bench_gpu.model_flops(TINY, 48, 48)
    attention = 6 * 2 * 2 * 16 * 48 * 48
    rotary = 2 * 8 * 48  # the angles of the rotary embedding are a product too
    assert counter.get_total_flops() - rotary == (ours + attention) / 3  # a third is forward; PyTorch does not halve


def test_score_and_met():
    less, more = row("a", 80.0, "MB", 64.0), row("b", 0.9, "of 1", 0.8, "higher")
    assert (less["met"], more["met"]) == (False, True)
    assert bench_gpu.score(less) == pytest.approx(0.8) and bench_gpu.score(more) == pytest.approx(1.125)
    assert bench_gpu.score(row("c", -3.0, "MB", 64.0)) == 2.0  # less than nothing is no division by zero
    assert row("d", 1.0, "x")["met"] is None


def test_only_the_full_size_on_a_gpu_is_a_verdict():
    rows = [row("a", 80.0, "MB", 64.0), row("b", 0.9, "of 1", 0.8, "higher")]
    for size, name, verdict in (
        ("full", "NVIDIA H200", True),
        ("small", "NVIDIA H200", False),
        ("full", "CPU x", False),
    ):
        title = bench_gpu._finding({"size": size, "device": {"name": name}}, rows)
        assert title.startswith("1 of 2 goals" if verdict else "No verdict")


def test_ratio_is_the_median_of_rounds():
    assert ratio([2.0, 9.0, 6.0], [1.0, 3.0, 3.0]) == 2.0  # 2, 3, 2
    assert ratio([4.0, 6.0], [1.0, 2.0, 3.0]) == 2.5  # not the same rounds: 5 / 2


def test_in_turn_rotates_warms_up_and_keeps_its_budget():
    calls = []
    seconds = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 60, "cpu", rounds=2)
    assert calls == ["b", "a", "a", "b", "b", "a"] and [len(s) for s in seconds.values()] == [2, 2]
    started = time.monotonic()
    seconds = in_turn({"slow": lambda: time.sleep(0.1)}, 0.45, "cpu", rounds=100)
    assert 0.25 < time.monotonic() - started < 0.6 and 2 <= len(seconds["slow"]) <= 3
    least = in_turn({"slow": lambda: time.sleep(0.05)}, 0.0, "cpu")["slow"]
    assert len(least) == 2 and max(least) < 0.04  # the least, budget or not; on a CPU waiting is not counted


def test_peak_bytes_counts_what_is_held_at_once():
    def work():
        a = torch.empty(1_000_000)  # 4 MB
        b = torch.empty(2_000_000)  # 12 MB together
        del a
        c = torch.empty(500_000)  # 10 MB
        return b, c

    assert peak_bytes(work, "cpu") == pytest.approx(12e6, rel=1e-3)


PIECE = 2**16  # instead of 2**23, so that the test is small


class Wide(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.big = nn.Parameter(torch.rand(5, PIECE // 2, dtype=dtype))  # two rows a piece, the last piece one
        self.row = nn.Parameter(torch.rand(7, dtype=dtype))
        self.one = nn.Parameter(torch.rand((), dtype=dtype))


def test_teacher_never_copies_a_bf16_policy_whole(monkeypatch):
    """The policy is two and a half pieces: a full fp32 copy would be 2.5 times what is allowed."""
    monkeypatch.setattr("corelib.teacher.PIECE", PIECE)
    torch.manual_seed(0)
    teacher, policy = Teacher(Wide(torch.float32)), Wide(torch.bfloat16)
    before = [p.detach().clone() for p in teacher.model.parameters()]
    assert peak_bytes(lambda: teacher.update(policy, 0.25), "cpu") <= 4 * PIECE * 1.01
    for old, new, p in zip(before, teacher.model.parameters(), policy.parameters(), strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * p.float(), atol=1e-6)
    assert peak_bytes(lambda: teacher.distance(policy), "cpu") <= 2 * 4 * PIECE * 1.01
    flat = [torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in (teacher.model, policy)]
    assert teacher.distance(policy) == pytest.approx(((flat[1] - flat[0]).norm() / flat[0].norm()).item(), rel=1e-4)


def test_fp32_update_allocates_nothing():
    teacher, policy = Teacher(Wide(torch.float32)), Wide(torch.float32)
    assert peak_bytes(lambda: teacher.update(policy, 0.25), "cpu") < 1e5


def test_trl_still_has_what_is_compared():
    from trl.trainer import grpo_trainer
    from trl.trainer.callbacks import SyncRefModelCallback

    assert list(inspect.signature(SyncRefModelCallback._sync_target_model).parameters) == ["model", "target_model", "alpha"]  # fmt: skip
    assert hasattr(grpo_trainer, "create_model_from_path")


def test_tokenizer_words_are_tokens_and_hold_answers():
    tokenizer = bench_kit.tokenizer(TINY)
    ids = [2, 17, 511]
    assert tokenizer(" ".join(map(bench_kit.word, ids)))["input_ids"] == ids
    assert "\\boxed{7}" in tokenizer.decode([17]) and len(tokenizer) == TINY.vocab


def test_stepper_raises_what_training_raises():
    class Broken:
        def add_callback(self, _):
            pass

        def train(self):
            raise torch.OutOfMemoryError("no memory left")

    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        Stepper(Broken())


def test_out_of_memory_halves_the_rows():
    tried = []

    def attempt(rows):
        tried.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError

    assert bench_kit.largest(8, attempt) == 2 and tried == [8, 4, 2]
    with pytest.raises(torch.OutOfMemoryError):
        bench_kit.largest(2, lambda rows: (_ for _ in ()).throw(torch.OutOfMemoryError()))


def test_a_failing_section_loses_nothing_of_the_others(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setitem(bench_gpu.SECTIONS, "confidence", fails)
    out, figure = tmp_path / "bench.json", tmp_path / "bench.png"
    code = main(["bench", "gpu", "--size", "tiny", "--sections", "confidence,ema", "--seconds", "0.1", "--out", str(out), "--figure", str(figure)])  # fmt: skip
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert code == 0 and found["sections"]["confidence"]["error"] == "OutOfMemoryError: CUDA out of memory."
    assert [line["what"] for line in found["sections"]["ema"]["rows"]][0] == "EMA from fp32: share of copy bandwidth"
    assert "confidence failed" in printed and "goal >= 0.8" in printed and figure.stat().st_size > 5000
    if not torch.cuda.is_available():
        assert "says nothing about a GPU" in printed.replace("say nothing", "says nothing")
    assert "--size tiny --sections confidence,ema --seconds 0.1" in found["command"]


def test_bad_names_are_refused_before_anything_is_built(capsys):
    for flags, message in (
        (["--sections", "emma"], "unknown section 'emma': did you mean 'ema'?"),
        (["--size", "huge"], "unknown size 'huge'"),
        (["--seconds", "0"], "must be above 0"),
    ):
        assert main(["bench", "gpu", *flags]) == 2
        assert message in capsys.readouterr().err


def test_confidence_section_measures_all_heads():
    found = bench_gpu.confidence(TINY, "cpu", 0.1)
    assert found["rows_at_once"] == 2 and found["tokens_a_row"] == [16, 32]
    assert set(found["seconds"]) == {"log-probabilities", "TRL's policy head", "entropy", "self-certainty", "forward and backward"}  # fmt: skip
    assert found["peak_bytes"]["self-certainty"] > 0 and len(found["rows"]) == 5


def test_whole_steps_make_the_rollouts_they_claim(monkeypatch):
    """Every trainer of the section draws step_prompts x rollouts answers of exactly new_tokens, II and III twice."""
    from trl import GRPOTrainer

    drawn = {}
    plain = GRPOTrainer._generate_single_turn

    def spy(self, prompt_ids, *args, **kwargs):
        ids, logps = plain(self, prompt_ids, *args, **kwargs)
        drawn.setdefault(getattr(getattr(self, "config", None), "method", "stock"), []).append([len(i) for i in ids])
        return ids, logps

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", spy)
    found = steps(TINY, "cpu", 0.1)
    each = [[TINY.new_tokens] * (TINY.step_prompts * TINY.rollouts)]
    assert drawn == {"stock": each * 3, "gt": each * 3, "co_rewarding_ii": each * 6, "co_rewarding_iii": each * 6}
    assert [line["what"] for line in found["rows"]] == ["GT: whole step over stock GRPOTrainer", "II: whole step over GT", "III: whole step over GT"]  # fmt: skip


def test_memory_section_compares_with_the_plan_without_its_allowances():
    """Held by both steps, by hand: five fp32 copies of 35,040 weights (policy, gradients, two of Adam, teacher)."""
    from corelib.memory import PHASES

    found = memory(TINY, "cpu", 0.1)
    assert set(TRAINING_PHASES) < set(PHASES)
    parts = [part for part in found["planned_parts"] if "allowance" not in part["part"]]
    assert len(parts) < len(found["planned_parts"])
    assert found["planned_GiB"]["update"] == pytest.approx(sum(part["update"] for part in parts))
    measured = found["measured_over_planned"] * max(found["planned_GiB"].values())
    assert measured > 5 * 4 * 35_040 / 2**30
    assert found["rollouts"] == 4 and found["rows"][1]["goal"] is None  # a CPU is not judged
