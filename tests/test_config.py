import pytest
import yaml

from corelib.config import METHOD_NAMES, PROFILES, RunConfig, load_config
from corelib.rewards import METHODS


def test_full_scale_defaults_are_the_released_scripts():
    c = load_config("qwen3-4b", method="co_rewarding_ii")
    assert (c.prompts_per_step, c.rollouts, c.max_completion_tokens, c.learning_rate) == (128, 8, 3072, 3e-6)
    assert (c.teacher_start, c.teacher_end, c.beta, c.warmup, c.loss_type) == (0.01, 1e-5, 0.001, 0.1, "bnpo")
    assert load_config("qwen3-4b", method="co_rewarding_i").beta == 0.005
    assert c.prompts == 128 and load_config("qwen3-4b", method="co_rewarding_i").prompts == 256


def test_method_names_and_functions_are_the_same_nine():
    assert tuple(METHODS) == METHOD_NAMES and len(METHODS) == 9


@pytest.mark.parametrize("value", ["3e-6", 3e-6, "0.000003"])
def test_yaml_strings_become_numbers(value):
    assert load_config("lab", learning_rate=value).learning_rate == 3e-6  # PyYAML reads 3e-6 as a string


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"method": "co_rewarding_4"}, "valid are gt, majority_voting"),
        ({"learnig_rate": 1e-4}, "did you mean 'learning_rate'"),
        ({"profile": "big"}, "unknown profile 'big'"),
        ({"steps": 2.5}, "steps=2.5 must be a int"),
        ({"bf16": "yes"}, "bf16='yes' must be a bool"),
        ({"seed": True}, "seed=True must be a int"),
        ({"method": "gt", "views": "both"}, "ablation of majority_voting"),
        ({"method": "co_rewarding_i", "prompts_per_step": 3}, "must be even"),
        ({"rollouts": 1}, "at least 2"),
        ({"dataset": "math"}, "belong together"),
        ({"save_steps": 0}, "at least 1"),
        ({"min_support": 7}, "must lie between 0 and 1"),
        ({"top_p": -1}, "must lie between"),
        ({"steps": -4}, "must lie between"),
        ({"teacher_start": 40}, "must lie between"),
        ({"temperature": 0}, "must lie between"),
        ({"eval_dataset": "mathtest"}, "did you mean 'math-test'"),
    ],
)
def test_bad_settings_are_one_clear_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        load_config(**({"profile": "lab"} | settings))


def test_file_then_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("profile: lab\nmethod: entropy\nlearning_rate: 1e-4\n")
    assert load_config(path=path).method == "entropy"
    assert load_config(path=path, method="gt", seed=3).run_name.startswith("gt-lab-lab-3-")
    with pytest.raises(ValueError, match="does not exist"):
        load_config(path=tmp_path / "absent.yaml")
    path.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="must be a mapping"):
        load_config(path=path)


def test_yaml_round_trip_keeps_the_run_name(tmp_path):
    for name in PROFILES:
        config = load_config(name, method="co_rewarding_i")
        assert RunConfig(**yaml.safe_load(config.to_yaml())) == config
        assert RunConfig(**yaml.safe_load(config.to_yaml())).run_name == config.run_name


def test_run_name_changes_with_what_changes_the_result_only():
    base = load_config("lab")
    assert load_config("lab", learning_rate=1e-5).hash6 != base.hash6
    assert load_config("lab", report_to="tensorboard", save_steps=7, stop_seconds=3).hash6 == base.hash6


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"eval_samples": 4, "eval_temperature": 0.0}, "same answer 4 times"),
        ({"min_support": 0.5, "method": "gt"}, "floor for votes"),
        ({"engine": "vllm_server", "vllm_server": ","}, "address of one server, or two"),
        ({"engine": "vllm_server", "vllm_server": "a,b,c"}, "address of one server, or two"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens=0 must be at least 1"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load_config("lab", **settings)
    with pytest.raises(ValueError, match="setting of the lab's world"):
        load_config("qwen3-4b", wrong_rewrites=0.1)
