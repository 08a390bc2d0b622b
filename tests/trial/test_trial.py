"""run_trial on a tiny BERT: what the design promises about a trial's numbers."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.config import TrialConfig
from finetune.errors import ConfigError, Interrupted
from finetune.models.head import Classifier, Head
from finetune.training import signals
from finetune.trial import resolve_trial, run_trial
from finetune.trial.events import Observer

LAYERS = 4


@pytest.fixture
def knobs(tiny_bert_dir):
    return {"model_name_or_path": str(tiny_bert_dir), "train_size": 48, "evaluation_size": 24, "num_train_epochs": 2,
            "per_device_train_batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2, "prefix_cache": False}


def trial(knobs, **changes):
    return run_trial(TrialConfig.from_mapping({**knobs, **changes}))


def test_the_same_trial_twice_gives_the_same_numbers_to_the_last_digit(knobs):
    torch.manual_seed(1)
    first = trial(knobs, freeze_depth=2)
    torch.manual_seed(2)  # what ran before in the same process does not matter
    second = trial(knobs, freeze_depth=2)
    assert first.record.metrics == second.record.metrics
    for name, values in first.predictions.items():
        np.testing.assert_array_equal(values, second.predictions[name])


def test_a_trial_leaves_the_global_random_state_as_it_was(knobs):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trial(knobs, freeze_depth=LAYERS, num_train_epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("depth", [-1, 0, 1, 3, LAYERS])
def test_the_record_says_what_was_frozen_and_what_gradients_reached(knobs, depth):
    record = trial(knobs, freeze_depth=depth, num_train_epochs=1).record
    assert record.state == "complete"
    assert record.deepest_trainable_layer == {0: -1, -1: 0}.get(depth, depth)
    assert record.freeze_plan[0]["deepest_trainable_layer"] == record.deepest_trainable_layer
    assert 0 < record.parameters["trainable"] <= record.parameters["total"]
    assert (record.parameters["trainable"] == record.parameters["total"]) == (depth == 0)


def test_accumulation_equals_the_large_batch(knobs):
    quiet = {"head_dropout": 0.0, "freeze_depth": LAYERS, "weight_decay": 0.0}
    large = trial(knobs, **quiet, per_device_train_batch_size=8)
    small = trial(knobs, **quiet, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert large.record.metrics == small.record.metrics
    # The windows hold other rows than a batch of 16, since rows are grouped by length within batches: one step of the
    # whole training set is the same set of rows either way.
    whole = trial(knobs, **quiet, per_device_train_batch_size=48)
    parts = trial(knobs, **quiet, per_device_train_batch_size=12, gradient_accumulation_steps=4)
    np.testing.assert_allclose(whole.predictions["test_logits"], parts.predictions["test_logits"], atol=1e-5)


def test_the_best_epoch_is_the_earliest_on_ties_and_is_what_was_tested(knobs):
    outcome = trial(knobs, freeze_depth=0, num_train_epochs=3)
    record = outcome.record
    scores = [entry["validation"]["accuracy"] for entry in record.history]
    assert record.best_epoch == 1 + scores.index(max(scores))
    assert record.metrics["validation"]["accuracy"] == max(scores)
    predicted = outcome.predictions["test_logits"].argmax(1)
    assert record.metrics["test"]["accuracy"] == np.mean(predicted == outcome.predictions["test_labels"])


def test_depth_out_of_range_names_the_number_of_layers(knobs):
    with pytest.raises(ConfigError, match=r"freeze_depth = 9.*-1 to 4"):
        resolve_trial(TrialConfig.from_mapping({**knobs, "freeze_depth": 9}))


def test_points_that_differ_only_in_inert_knobs_are_one_trial(knobs):
    def ids(**changes):
        return resolve_trial(TrialConfig.from_mapping({**knobs, **changes})).trial_id

    assert ids(freeze_depth=LAYERS, learning_rate=1e-3) == ids(strategy="head_only", learning_rate=1e-5)
    assert ids(freeze_depth=2) == ids(strategy="prefix:2", output_dir="elsewhere", prefix_cache=True)
    assert ids(freeze_depth=2, learning_rate=1e-3) != ids(freeze_depth=2, learning_rate=1e-5)
    assert ids(freeze_depth=2, seed=1) != ids(freeze_depth=2, seed=2)


def test_a_setting_is_one_over_its_seeds(knobs):
    settings = {resolve_trial(TrialConfig.from_mapping({**knobs, "seed": seed})).setting_id for seed in (1, 2)}
    assert len(settings) == 1


@pytest.mark.fault("numbers", "the loss or the logits are not finite", "failed as non-finite, without accuracy")
@pytest.mark.parametrize(("token", "where"), [("[CLS]", "training loss is nan in epoch 1"),
                                              ("poison", "logits are not finite")])
def test_a_trial_whose_numbers_are_not_finite_has_no_accuracy(knobs, tiny_bert_dir, tmp_path, token, where):
    """A NaN in one token's embedding: of a token in every row, or of one that only validation has."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    folder, data = shutil.copytree(tiny_bert_dir, tmp_path / "model"), tmp_path / "data"
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    weights = load_file(folder / "model.safetensors")
    rare = next(word for word in ("z", "q", "j", "x") if word in vocabulary)
    weights["embeddings.word_embeddings.weight"][vocabulary[rare if token == "poison" else token]] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    data.mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"text": f"a good film {number}" + (f" {rare}" if split == "validation" else ""), "label": number % 2}
                for number in range(12)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    knobs = {name: value for name, value in knobs.items() if name not in ("train_size", "evaluation_size")}
    outcome = trial(knobs, model_name_or_path=str(folder), dataset_name=str(data), freeze_depth=0)
    assert outcome.record.state == "failed" and outcome.record.error["kind"] == "non-finite"
    assert where in outcome.record.error["message"]
    assert not outcome.record.metrics and not outcome.predictions


def test_a_pruned_trial_has_no_test_figures(knobs):
    class Prune(Observer):
        def epoch_ended(self, epoch, entry):
            return "prune"

    outcome = run_trial(TrialConfig.from_mapping(knobs), observer=Prune())
    assert outcome.record.state == "pruned" and len(outcome.record.history) == 1
    assert "test" not in outcome.record.metrics and "test_logits" not in outcome.predictions


def test_the_head_starts_the_same_at_every_depth_and_differs_by_seed(tiny_bert_dir):
    def head(seed):
        return Head(8, 4, 2, 0.1, torch.Generator().manual_seed(seed)).linears[0].weight

    assert torch.equal(head(1), head(1)) and not torch.equal(head(1), head(2))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_fp16_is_refused_where_accelerate_would_leave_it_out(knobs):
    with pytest.raises(ConfigError, match="mixed_precision = 'fp16': needs a GPU.*allowed on a CPU: no, bf16"):
        resolve_trial(TrialConfig.from_mapping({**knobs, "mixed_precision": "fp16"}))


class Echo(torch.nn.Module):
    """A backbone whose last hidden state is what it is given."""

    def forward(self, hidden, attention_mask):
        return SimpleNamespace(last_hidden_state=hidden)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_ignores_padding(pooling, side):
    hidden, padding = torch.randn(1, 3, 8), torch.full((1, 2, 8), 7.0)
    padded = torch.cat([hidden, padding] if side == "right" else [padding, hidden], 1)
    mask = torch.tensor([[1, 1, 1, 0, 0] if side == "right" else [0, 0, 1, 1, 1]])
    classifier = Classifier(Echo(), Head(8, 0, 2, 0.0, torch.Generator().manual_seed(0)), pooling)
    expected = classifier.pool(hidden=hidden, attention_mask=torch.ones(1, 3, dtype=torch.long))
    torch.testing.assert_close(classifier.pool(hidden=padded, attention_mask=mask), expected)


class Interrupt(Observer):
    """A signal at the first step of the second epoch; `meaning` is what the tracker takes it for."""

    def __init__(self, meaning):
        self.meaning = meaning

    def epoch_ended(self, epoch, entry):
        self.epochs = epoch
        return "continue"

    def stepped(self, step, total_steps, loss):
        if getattr(self, "epochs", 0) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def interrupted(self, signum):
        return self.meaning


@pytest.fixture
def stepwise(monkeypatch):
    monkeypatch.setattr("finetune.trial.progress.REPORT_EVERY_SECONDS", -1)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.listen()
    yield
    signals.forget()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_means_the_servers_stop_prunes_with_the_epochs_so_far(knobs, stepwise):
    outcome = run_trial(TrialConfig.from_mapping(knobs), observer=Interrupt("prune"))
    assert outcome.record.state == "pruned" and len(outcome.record.history) == 1
    assert "test" not in outcome.record.metrics and outcome.record.best_epoch == 1


def test_any_other_signal_ends_the_trial_without_a_record(knobs, stepwise):
    with pytest.raises(Interrupted):
        run_trial(TrialConfig.from_mapping(knobs), observer=Interrupt("stop"))
