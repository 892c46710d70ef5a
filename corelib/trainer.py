"""The smallest subclass of TRL's GRPOTrainer that runs all nine methods. Written for TRL 1.16.0.

What is overridden, and why (tests/test_trainer.py asserts that these names and signatures still exist):

`_get_train_sampler`     both views of a question stay in one generation batch, and the order is a function of the epoch
`_generate`              teacher update and teacher rollouts beside the policy's, before any log-probability
`_generate_single_turn`  transformers: rollouts in batches that fit a GPU, not all of a step's at once
`_get_per_token_logps_and_entropies`, `_compute_loss`
                         vLLM: the difference between its log-probabilities and the trainer's, at no extra forward pass
`create_accelerator_and_postprocess`  FSDP2: precision of what is reduced and returned
`_save_checkpoint`       adds the teacher, then declares the checkpoint whole
`_load_from_checkpoint`  restores the teacher

The rewards themselves use TRL's public interface: one reward function that sees its rows, gathers the whole groups
over all ranks, and asks `corelib.rewards.METHODS`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model
from peft import LoraConfig
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler, create_model_from_path

from corelib import confidence, engine, grader, saving, sharding
from corelib.answers import cluster, equivalent, extract, extract_released, vote
from corelib.config import CONFIDENCE, TEACHER, UNLABELLED, RunConfig
from corelib.rewards import METHODS, Group
from corelib.teacher import Teacher, policy_weight

# accelerate 1.15 calls the CPU of several processes "cpu:0", where torch 2.13 cannot load an optimizer's state to
torch.serialization.register_package(9, lambda _: None, lambda data, where: data if where == "cpu:0" else None)


class PairSampler(RepeatSampler):
    """TRL's RepeatSampler over units of `views` adjacent rows, shuffled by (seed, epoch).

    TRL's own sampler carries a generator from epoch to epoch, so that a run resumed in its second epoch sees another
    order than the run that was never stopped.
    """

    def __init__(self, *args, views: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        if self.batch_size % views:
            raise ValueError(f"a generation batch of {self.batch_size} prompts cannot hold whole pairs of views")
        self.views, self.epoch = views, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        units = torch.randperm(self.num_samples // self.views, generator=generator).tolist()
        rows = [unit * self.views + view for unit in units for view in range(self.views)]
        for start in range(0, len(rows) - self.batch_size + 1, self.batch_size):
            for _ in range(self.repeat_count):
                for row in rows[start : start + self.batch_size]:
                    yield from [row] * self.mini_repeat_count


class CoRewardingTrainer(GRPOTrainer):
    """GRPO whose rewards come from votes, views, a teacher or the policy's confidence, by `config.method`.

    The dataset has the columns prompt, pair_id, view, answer; for paired methods the rows of a pair are adjacent,
    original first. Raises ValueError when one generation batch is not exactly one optimizer step.
    """

    def __init__(self, config: RunConfig, model: str, args, train_dataset, processing_class, callbacks=()):
        self.config = config
        lora = LoraConfig(
            r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ) if config.lora_rank else None  # fmt: skip
        with sharding.layered_references():
            super().__init__(
                model=model,
                peft_config=lora,
                reward_funcs=[self.judge],
                args=args,
                train_dataset=train_dataset,
                processing_class=processing_class,
                callbacks=list(callbacks),
            )
        if self.args.steps_per_generation != self.args.gradient_accumulation_steps or self.num_iterations != 1:
            raise ValueError("one generation batch must be one optimizer step: the teacher's schedule counts steps")
        self.teacher = self.teacher_server = None
        if config.method in TEACHER:
            self.teacher = self._make_teacher(model)
            if config.engine == "vllm_server" and len(urls := engine.servers(config)) > 1:
                self.teacher_server = engine.TeacherServer(self, self.teacher.model, urls[1])
        if config.method == "self_certainty":
            policy = self.model.get_base_model() if is_peft_model(self.model) else self.model
            confidence.with_mean_logits(policy, self.temperature)
        if self.use_vllm and is_peft_model(self.model):
            engine.leave_base_untouched(self.vllm_generation)
        self._rollout = self._teacher_texts = self._logps = None
        self._difference = engine.Difference()

    def _make_teacher(self, model: str) -> Teacher:
        """The base model as the first teacher, under the name by which TRL takes its KL reference.

        So the KL of II and III is against the moving teacher, as in the released code. A full model: TRL's reference,
        which it loads where there is a KL term. LoRA: a second adapter, a copy of the policy's first one.
        """
        if is_peft_model(self.model):
            self.model.add_adapter(engine.TEACHER_ADAPTER, self.model.peft_config["default"])
            # With a second adapter in a subfolder, Trainer (transformers 5.17) would load only that one on resume
            self.model.save_pretrained = partial(self.model.save_pretrained, selected_adapters=["default"])
            return Teacher(self.model, adapter=engine.TEACHER_ADAPTER)
        weights = self.ref_model
        if weights is None:
            weights = create_model_from_path(model, **dict(self.args.model_init_kwargs or {}))
            if self.is_fsdp_enabled:
                weights = sharding.prepare_reference(weights, self.accelerator)
        return Teacher(weights if self.is_fsdp_enabled else weights.to(self.accelerator.device))

    def create_accelerator_and_postprocess(self):
        """Extends Trainer.create_accelerator_and_postprocess: FSDP2 reduces in fp32 and keeps log-probabilities in fp32."""
        super().create_accelerator_and_postprocess()
        sharding.mixed_precision(self.accelerator)

    def _get_train_sampler(self, dataset=None):
        """Replaces GRPOTrainer._get_train_sampler: keep pairs together, make the order a function of the epoch."""
        return PairSampler(
            data_source=dataset if dataset is not None else self.train_dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=True,
            seed=self.args.seed,
            views=2 if self.config.paired else 1,
        )

    def _generate(self, prompts):
        """Extends GRPOTrainer._generate: EMA update, policy rollouts, teacher rollouts.

        At step k the teacher first takes in the policy of step k, before that policy is updated, and then answers the
        same prompts with the same sampling parameters. TRL computes the reference log-probabilities after this method,
        so the KL is against the teacher just updated. (Released order: rollouts, update, teacher's rollouts. The
        policy's rollouts do not depend on the teacher, so updating first changes nothing.)
        """
        teaches = self.teacher is not None and self.model.training
        if teaches and self.config.method != "frozen_teacher":
            c = self.config
            weight = policy_weight(
                self.state.global_step, self.state.max_steps, c.teacher_start, c.teacher_end, c.teacher_schedule
            )
            self.teacher.update(self.accelerator.unwrap_model(self.model), weight)
        if teaches and self.teacher_server is not None:
            self.teacher_server.start(self._tokenize_prompts(prompts)[0], self.num_generations)
        rollout = super()._generate(prompts)
        prompt_ids, completion_ids = rollout[0], rollout[1]
        self._rollout = (prompt_ids, completion_ids)
        if teaches:
            if self.teacher_server is not None:
                teacher_ids = self.teacher_server.finish(len(prompt_ids))
            else:
                with engine.weights_of(self, self.teacher.model):
                    teacher_ids, _ = self._generate_single_turn(prompt_ids, None, {}, self.num_generations)
            self._teacher_texts = self.processing_class.batch_decode(teacher_ids, skip_special_tokens=True)
        return rollout

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        """Extends GRPOTrainer._generate_single_turn: transformers would hold the cache of all rollouts of a step at once."""
        rest = (images, multimodal_fields, num_generations, has_tool_images)
        rows = max(1, engine.BATCH_TOKENS // (self.config.max_prompt_tokens + self.max_completion_length))
        if self.use_vllm:
            sharding.reshard(self.vllm_generation.model)  # TRL pushes shards
            return super()._generate_single_turn(prompt_ids, *rest)
        completion_ids = []
        with sharding.gathered(self.model_wrapped):
            for start in range(0, len(prompt_ids), rows):
                completion_ids += super()._generate_single_turn(prompt_ids[start : start + rows], *rest)[0]
        return completion_ids, None

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        """Extends GRPOTrainer._get_per_token_logps_and_entropies: keeps the newest log-probabilities for `_compute_loss`."""
        out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps = out[0].detach()
        return out

    def _compute_loss(self, model, inputs):
        """Extends GRPOTrainer._compute_loss: after every swap of weights the engine must be the policy again.

        The rollouts' own log-probabilities (vLLM's) are compared with those of the loss's forward pass.
        """
        loss = super()._compute_loss(model, inputs)
        if inputs.get("sampling_per_token_logps") is not None:
            self._difference.add(self._logps, inputs["sampling_per_token_logps"], inputs["completion_mask"])
            if self.accelerator.sync_gradients:  # the last micro-batch of the step
                for name, value in self._difference.flush(self.accelerator).items():
                    self._metrics["train"][name].append(value)
        return loss

    def judge(self, prompts, completions, completion_ids, pair_id, view, answer, log_extra, log_metric, **_):
        """TRL reward function: this rank's rows in, their rewards out; the vote is over whole groups on all ranks."""
        parse = extract_released if self.config.answer_equality == "released" else extract
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        rows = [
            {"pair": p, "view": v, "truth": t, "answer": parse(text) or None}
            for p, v, t, text in zip(pair_id, view, answer, texts, strict=True)
        ]
        if self.teacher is not None:
            for row, text in zip(rows, self._teacher_texts, strict=True):
                row["teacher"] = parse(text) or None
        if self.config.method in CONFIDENCE:
            model = self.accelerator.unwrap_model(self.model)
            with self.accelerator.autocast(), sharding.gathered(model):
                entropies, certainties = confidence.sequence_confidence(
                    model,
                    *self._rollout,
                    self.processing_class.pad_token_id,
                    self.args.per_device_train_batch_size,
                    self.accelerator.device,
                    self.temperature,
                    certainty=self.config.method == "self_certainty",
                )
            for i, row in enumerate(rows):
                row["entropy"] = entropies[i]
                row["certainty"] = certainties[i] if certainties else None
        everyone = gather_object(rows)
        if len(everyone) % self.num_generations:
            raise RuntimeError(f"{len(everyone)} gathered rollouts do not form groups of {self.num_generations}")
        # Judged once and broadcast: a grading timeout on one rank must not give it labels of its own.
        judged = [
            judge_batch(everyone, self.num_generations, self.config, self.state.global_step)
            if self.accelerator.is_main_process
            else None
        ]
        rewards, labels, metrics = broadcast_object_list(judged)[0]
        for reward in rewards:  # TRL turns an advantage that is not a number into 0 and trains on
            if not math.isfinite(reward):
                raise saving.not_a_number("reward", reward, self.state.global_step + 1, self.args.output_dir)
        if self.teacher is not None:
            metrics["teacher/distance"] = self.teacher.distance(self.accelerator.unwrap_model(self.model))
        for name, value in metrics.items():
            log_metric(name, value)
        mine = slice(self.accelerator.process_index * len(rows), (self.accelerator.process_index + 1) * len(rows))
        log_extra("pair_id", list(pair_id))
        log_extra("view", list(view))
        log_extra("answer", [row["answer"] for row in rows])
        log_extra("label", labels[mine])
        log_extra("truth", list(answer))
        if self.teacher is not None:
            log_extra("teacher_answer", [row["teacher"] for row in rows])
        return rewards[mine]

    def _save_checkpoint(self, model, trial):
        """Extends GRPOTrainer._save_checkpoint: the teacher belongs to the state; the mark comes last."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with saving.writing(folder, self.args.should_save):
            self.accelerator.wait_for_everyone()  # what an earlier call left there is gone
            super()._save_checkpoint(model, trial)
            if self.teacher is not None:
                self.teacher.save(folder, write=self.args.should_save)
            self.accelerator.wait_for_everyone()
        if self.args.should_save:
            saving.rotate_checkpoints(folder.parent)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Extends Trainer._load_from_checkpoint: without its teacher, II would restart from the base model (released bug)."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.teacher is not None:
            self.teacher.load(resume_from_checkpoint)


def judge_batch(
    rows: list[dict], group_size: int, config: RunConfig, step: int
) -> tuple[list[float], list[str | None], dict[str, float]]:
    """Rewards and labels of all rollouts of a step, and what is worth logging about them. Pure.

    `rows`: every rollout of the generation batch in order, `group_size` consecutive ones to a prompt, with the keys
    pair, view, truth, answer and, by method, teacher, entropy, certainty. Raises ValueError when a group is torn.
    """
    groups = [rows[i : i + group_size] for i in range(0, len(rows), group_size)]
    for group in groups:
        if len({(row["pair"], row["view"]) for row in group}) != 1:
            raise ValueError("a group mixes prompts: rollouts must arrive as consecutive groups of one prompt")
    by_view = {(g[0]["pair"], g[0]["view"]): g for g in groups}
    rewards, labels, logged = [], [], Counter()
    seen: dict[str, list[float]] = {}

    def log(name, value):
        if value is not None:
            seen.setdefault(name, []).append(float(value))

    for group in groups:
        pair, view, truth = group[0]["pair"], group[0]["view"], group[0]["truth"]
        other = by_view.get((pair, "rephrased" if view == "original" else "original"), [])
        judged = METHODS[config.method](
            Group(
                answers=[r["answer"] for r in group],
                other_view=[r["answer"] for r in other],
                teacher=[r.get("teacher") for r in group],
                teacher_other_view=[r.get("teacher") for r in other],
                truth=truth,
                entropy=[r.get("entropy") for r in group],
                self_certainty=[r.get("certainty") for r in group],
                seed=int(hashlib.sha256(f"{config.seed}-{step}-{pair}-{view}".encode()).hexdigest()[:8], 16),
                equality=config.answer_equality,
                min_support=config.min_support,
            )
        )
        rewards += judged.rewards
        labels += [judged.label] * len(group)
        own = vote([r["answer"] for r in group], equality=config.answer_equality)
        log("answers/distinct_group", len(own.counts) / group_size)
        log("answers/support", own.support)
        has_label = config.method not in UNLABELLED
        if has_label:
            log("label/missing", judged.label is None)
            log("label/support", judged.support)
            logged[judged.label] += judged.label is not None
        if truth:
            log(
                "gt/accuracy" if view == "original" else "gt/accuracy_rephrased",
                sum(r["answer"] is not None and equivalent(truth, r["answer"]) for r in group) / group_size,
            )
            log("gt/policy_label_accuracy", own.label is not None and equivalent(truth, own.label))
            if has_label and config.method != "gt":
                log("gt/label_accuracy", judged.label is not None and equivalent(truth, judged.label))
            if config.method in TEACHER:
                teacher = vote([r["teacher"] for r in group], equality=config.answer_equality)
                log("gt/teacher_label_accuracy", teacher.label is not None and equivalent(truth, teacher.label))
        if other and view == "original":
            theirs = vote([r["answer"] for r in other], equality=config.answer_equality)
            log(
                "views/agreement",
                own.label is not None and theirs.label is not None and equivalent(own.label, theirs.label),
            )
    metrics = {name: sum(values) / len(values) for name, values in seen.items()}
    answered = [r["answer"] for r in rows if r["answer"] is not None]
    metrics["answers/none"] = 1 - len(answered) / len(rows)
    metrics["answers/timeouts"] = float(grader.shared().timeouts)  # pairs that no grader could decide in time, so far
    classes = Counter(cluster(answered, equality=config.answer_equality))
    metrics["answers/distinct_batch"] = len(classes) / len(rows)
    metrics["answers/top_share"] = max(classes.values(), default=0) / len(rows)
    if sum(logged.values()):
        metrics["label/top_share"] = max(logged.values()) / sum(logged.values())
    return rewards, labels, metrics
