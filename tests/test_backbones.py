"""The paper's backbones: how each family's tokenizer renders a prompt and ends a turn, on tokenizers built for the test."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from corelib import evaluate, train
from corelib.config import load_config
from corelib.data import to_prompt

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# family: special tokens, declared EOS, pad token, template, tokens that must end a rollout.
# Sources: tokenizer_config.json and generation_config.json of Qwen/Qwen3-4B-Base, Qwen/Qwen2.5-7B, meta-llama/Llama-3.2-3B-Instruct
FAMILIES = {
    "Qwen3-Base": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", "<|endoftext|>", CHATML, {"<|endoftext|>", "<|im_end|>"}),
    "Qwen2.5": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", "<|endoftext|>", CHATML, {"<|endoftext|>", "<|im_end|>"}),
    "Llama-3.2-Instruct": (["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>", None, LLAMA, {"<|eot_id|>", "<|end_of_text|>"}),
}  # fmt: skip


def build(folder, special, eos, pad, template):
    words = [*special, "system", "user", "assistant", "the", "question", "answer", "?", "[UNK]"]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=eos, pad_token=pad, unk_token="[UNK]", additional_special_tokens=special
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return load_config("qwen3-4b", model=str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollout_ends_where_the_family_ends_a_turn(family, tmp_path):
    special, eos, pad, template, ends = FAMILIES[family]
    config = build(tmp_path, special, eos, pad, template)
    tokenizer = train.load_tokenizer(config)
    stop = evaluate.stop_ids(config, tokenizer)
    assert {tokenizer.convert_ids_to_tokens(i) for i in stop} == ends and stop[0] == tokenizer.eos_token_id
    assert tokenizer.pad_token is not None and tokenizer.padding_side == "left"
    rendered = tokenizer.apply_chat_template(to_prompt("the question ?"), tokenize=False, add_generation_prompt=True)
    assert "the question ?" in rendered and "boxed" in rendered
    turn_end = "<|eot_id|>" if family.startswith("Llama") else "<|im_end|>"
    assert rendered.count(turn_end) == len(to_prompt("the question ?"))  # one a message; the assistant's turn is open
    assert tokenizer.convert_tokens_to_ids(turn_end) in stop


def test_a_model_without_a_chat_template_is_refused_with_the_remedy(tmp_path):
    config = build(tmp_path, ["<|end_of_text|>"], "<|end_of_text|>", None, None)
    with pytest.raises(ValueError, match="no chat template.*Instruct"):
        train.load_tokenizer(config)


def test_test_time_training_reports_the_questions_it_trained_on(shared_data, tmp_path):
    """Paper, table 9: train on AMC without its answers, report avg@k and pass@k on the same 83 questions."""
    (tmp_path / "AMC-TTT").symlink_to(shared_data / "corew_train" / "AMC-TTT")
    config = load_config("qwen3-8b-ttt", source=str(tmp_path))
    assert config.model == "Qwen/Qwen3-8B-Base" and config.test_samples == 64
    trained = set(train.load_pairs(config)["question"])
    validation, test = (evaluate.problems_of(config, split)["question"] for split in ("validation", "test"))
    assert len(trained) == len(test) == 83 and set(validation) == set(test)
    assert len(trained & set(test)) >= 82  # the audit repairs a broken \\frac in one of them
    # the rollouts of a step split over every number of GPUs that the paper could have used
    assert all(config.prompts * config.rollouts % (gpus * config.micro_batch) == 0 for gpus in (1, 2, 4, 8))
