"""Proof that frozen means frozen: the audit in every trial, digests, checkpointing; and planted leaks that it finds."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from families import build
from training import train, trainer_for

from finetune.config import TrialConfig
from finetune.errors import EnvironmentProblem, TrialFailed
from finetune.freezing import FreezePlan, audit_loss, check_frozen, frozen_digests
from finetune.freezing.prepare import prepare_backbone, reinit_layers
from finetune.models import load_backbone
from finetune.training import loop
from finetune.trial import run_trial

FROZEN = "backbone.encoder.layer.1.output.dense.weight"


@pytest.fixture
def knobs(tiny_bert_dir):
    return {"model_name_or_path": str(tiny_bert_dir), "train_size": 16, "evaluation_size": 8, "num_train_epochs": 1,
            "per_device_train_batch_size": 8, "learning_rate": 1e-2, "head_learning_rate": 1e-2}


def outcome(knobs, **changes):
    return run_trial(TrialConfig.from_mapping({**knobs, **changes})).record


@pytest.mark.parametrize(("strategy", "deepest"), [
    ("full", -1), ("embeddings", 0), ("prefix:3", 3), ("head_only", 4), ("suffix:1", -1), ("train:1-2", 1),
    ("bitfit", -1), ("norm_only", -1), ("lora:2", 0), ("lp_ft:1", -1), ("gradual:1", 3),
])
def test_every_trial_is_audited_and_the_record_says_what_backpropagation_reached(knobs, strategy, deepest):
    record = outcome(knobs, strategy=strategy, num_train_epochs=2)
    assert record.state == "complete" and record.deepest_trainable_layer == deepest
    audit = record.model_extra["audit"]
    assert audit["leaks"] == [] and audit["trainable_without_gradient"] == []
    assert audit["trainable_with_gradient"] > 0
    for entry in record.history:
        assert entry["step_seconds"] > 0 and entry["peak_memory_bytes"] > 0 and entry["trainable_parts"][-1] == "head"


def test_a_gradient_on_a_frozen_parameter_stops_the_trial_with_its_name(knobs, monkeypatch):
    """Something thaws a parameter behind the plan's back, as peft and gradient checkpointing helpers do."""
    apply = FreezePlan.apply

    def thawing(self, classifier):
        apply(self, classifier)
        dict(classifier.named_parameters())[FROZEN].requires_grad_(True)

    monkeypatch.setattr(FreezePlan, "apply", thawing)
    record = outcome(knobs, freeze_depth=3, prefix_cache=False)
    assert record.state == "failed" and record.error["kind"] == "leak" and FROZEN in record.error["message"]
    assert not record.metrics


def test_a_frozen_parameter_that_moves_stops_the_trial_with_its_name(knobs, monkeypatch):
    step = loop.Trainer._step

    def nudging(self, *arguments):
        result = step(self, *arguments)
        with torch.no_grad():
            dict(self.classifier.named_parameters())[FROZEN][0, 0] += 1e-6
        return result

    monkeypatch.setattr(loop.Trainer, "_step", nudging)
    record = outcome(knobs, freeze_depth=3, prefix_cache=False)
    assert record.state == "failed" and record.error["kind"] == "leak"
    assert f"{FROZEN} is frozen and changed" in record.error["message"]


def test_digests_see_the_smallest_change_and_name_every_tensor():
    trainer = trainer_for(build("BERT"), freeze_depth=2)
    trainer.enter(1)
    before = frozen_digests(trainer.classifier, trainer.plan)
    assert before.keys() == trainer.plan.frozen
    check_frozen(trainer.classifier, trainer.plan, before)
    weight = dict(trainer.classifier.named_parameters())[FROZEN]
    with torch.no_grad():
        weight.view(torch.int32)[0, 0] ^= 1
    with pytest.raises(TrialFailed, match=FROZEN.replace(".", r"\.")) as caught:
        check_frozen(trainer.classifier, trainer.plan, before)
    assert caught.value.kind == "leak"


def test_the_audit_reports_trainable_parameters_without_gradient_and_leaves_none_behind():
    trainer = trainer_for(build("XLNet"), freeze_depth=0)
    trainer.enter(1)
    inputs = trainer.train(range(4))
    report = audit_loss(trainer.classifier(**inputs).sum(), trainer.classifier, trainer.plan, trainer.stack)
    assert "backbone.mask_emb" in report.trainable_without_gradient and report.deepest_trainable_layer == -1
    assert report.trainable_with_gradient + len(report.trainable_without_gradient) == len(trainer.plan.trainable)
    assert all(p.grad is None for p in trainer.classifier.parameters())


@pytest.mark.parametrize("depth", [-1, 0, 2, 3])
@pytest.mark.parametrize("family", ["BERT", "DeBERTa-v2 with convolution", "Llama", "GPT-2"])
def test_gradient_checkpointing_over_a_frozen_prefix_trains_the_same(family, depth):
    """transformers#16276: checkpointed layers above frozen embeddings silently got no gradient."""
    results, calls = [], []
    for checkpointing in (False, True):
        trainer = trainer_for(build(family), freeze_depth=depth, gradient_checkpointing=checkpointing, head_dropout=0.0)
        # Inside the layer: what is checkpointed is its `forward`, so the layer's own hooks do not see the second run.
        inner, count = next(trainer.stack.layers[-1].children()), [0]
        inner.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        torch.manual_seed(1)
        seen = train(trainer)
        results.append((seen, {name: p.detach() for name, p in trainer.classifier.named_parameters()}))
        calls.append(count[0])
    (plain, weights), (checkpointed, same) = results
    assert checkpointed.moved == plain.moved and checkpointed.with_gradient == plain.with_gradient
    for name in weights:
        torch.testing.assert_close(same[name], weights[name], msg=name)
    assert calls[1] == (calls[0] if depth == 3 else 2 * calls[0])  # it did run again in the backward pass


def test_gradient_checkpointing_through_a_whole_trial_gives_the_same_figures(knobs):
    plain, checkpointed = (outcome(knobs, freeze_depth=2, gradient_checkpointing=on, prefix_cache=False)
                           for on in (False, True))
    assert checkpointed.state == "complete" and checkpointed.trial_id == plain.trial_id
    assert checkpointed.metrics["test"]["loss"] == pytest.approx(plain.metrics["test"]["loss"], abs=1e-6)


def test_the_best_epoch_comes_back_whole_when_more_trained_later(knobs, tmp_path):
    """lp_ft whose second phase is worse: what is tested is the first epoch's model, backbone included.

    Where validation has the opposite labels, the better phase in training is surely the worse one there.
    """
    import json

    for split, first, sign in (("train", 0, 0), ("validation", 40, 1), ("test", 40, 1)):
        rows = [{"text": f"{('a bad', 'a good')[i % 2]} film , number {i}", "label": (i + sign) % 2}
                for i in range(first, first + 40)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrialConfig.from_mapping({
        **knobs, "dataset_name": str(tmp_path), "strategy": "lp_ft:1", "num_train_epochs": 2, "train_size": None,
        "learning_rate": 0.01, "metric_for_best_model": "loss", "evaluation_size": None})
    result = run_trial(config)
    assert result.record.state == "complete", result.record.error
    assert result.record.best_epoch == 1 and result.record.history[1]["validation"]["loss"] > (
        result.record.history[0]["validation"]["loss"])
    torch.testing.assert_close(torch.from_numpy(result.predictions["test_logits"]),
                               torch.from_numpy(result.predictions["validation_logits"]), atol=1e-5, rtol=0)


def test_lora_without_peft_names_what_to_install(tiny_bert_dir, monkeypatch):
    from finetune.freezing import resolve_strategy

    config = TrialConfig.from_mapping({"model_name_or_path": str(tiny_bert_dir), "strategy": "lora:2"})
    backbone = load_backbone(config)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'stellar-finetuning\[lora\]'") as caught:
        prepare_backbone(backbone, config, resolve_strategy(config, backbone.num_layers))
    assert caught.value.exit_code == 5


def test_reinit_layers_draws_the_top_layers_anew_and_leaves_the_rest(tiny_bert_dir):
    backbone = load_backbone(TrialConfig(model_name_or_path=str(tiny_bert_dir)))

    def weights(count, seed):
        model = backbone.fresh_model()
        reinit_layers(backbone.stack.rebind(model), count, seed)
        return dict(model.named_parameters())

    pristine, first, again, other = (dict(backbone.pristine.named_parameters()), weights(2, 1), weights(2, 1),
                                     weights(2, 2))
    changed = {name for name in pristine if not torch.equal(first[name], pristine[name])}
    assert changed and all(name.startswith(("encoder.layer.2.", "encoder.layer.3.", "pooler.")) for name in changed)
    assert "encoder.layer.2.output.dense.weight" in changed and "pooler.dense.weight" in changed
    assert all(torch.equal(first[name], again[name]) for name in pristine)
    assert not torch.equal(first["encoder.layer.3.output.dense.weight"], other["encoder.layer.3.output.dense.weight"])
    deviation = float(first["encoder.layer.3.output.dense.weight"].detach().std())
    assert deviation == pytest.approx(backbone.pristine.config.initializer_range, rel=0.2)
    assert torch.equal(first["encoder.layer.3.output.LayerNorm.weight"], torch.ones(32))


def test_reinit_layers_works_through_a_trial_and_makes_another_one(knobs):
    plain, drawn = outcome(knobs, freeze_depth=4), outcome(knobs, freeze_depth=4, reinit_layers=1)
    assert drawn.state == "complete" and drawn.trial_id != plain.trial_id
    assert drawn.metrics["test"]["loss"] != plain.metrics["test"]["loss"]


def test_a_plan_for_another_model_is_refused():
    trainer, other = trainer_for(build("BERT"), freeze_depth=1), trainer_for(build("GPT-2"), freeze_depth=1)
    trainer.enter(1)
    with pytest.raises(ValueError, match="this plan is for another model"):
        trainer.plan.apply(other.classifier)
    with pytest.raises(ValueError, match="no such parameter"):
        FreezePlan.build(trainer.stack, {"encoder.layer.9.x"})


def test_applying_a_plan_twice_is_applying_it_once_and_a_later_one_thaws():
    trainer = trainer_for(build("BERT"), freeze_depth=3)
    trainer.enter(1)
    assert sum(p.requires_grad for p in trainer.classifier.parameters()) == 2
    whole = FreezePlan.build(trainer.stack, trainer.stack.part_of)
    whole.apply(trainer.classifier)
    whole.apply(trainer.classifier)
    assert all(p.requires_grad for p in trainer.classifier.parameters())
    assert whole == replace(whole) and whole.prefix_layers is None and trainer.plan.prefix_layers == 3
