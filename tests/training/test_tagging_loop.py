"""Training with tags against a plain loop over AutoModelForTokenClassification, as a user would write it."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny import save_tiny_bert
from torch.nn import functional
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification

from finetune.config import TrialConfig
from finetune.data.encoding.batches import training_batches
from finetune.training.loop import Trainer
from finetune.training.schedule import shape
from finetune.trial import build_classifier, encode_splits, resolve_trial

MAX_LENGTH, ROWS = 16, 6


@pytest.fixture
def config(tmp_path):
    """No dropout; sentences of 3 to 18 words, of which some are cut."""
    model, rng = save_tiny_bert(tmp_path / "model", layers=2), random.Random(1)
    settings = json.loads((model / "config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(settings))
    words = ["a\tO", "wonderful\tO", "film\tO", "by\tO", "woody\tB-person\nallen\tI-person", "york\tB-place"]
    (tmp_path / "set.conll").write_text("\n\n".join("\n".join(rng.choices(words, k=rng.randint(3, 14)))
                                                    for _ in range(60)) + "\n")
    return TrialConfig.from_mapping({
        "dataset_name": str(tmp_path / "set.conll"), "model_name_or_path": str(model), "max_length": MAX_LENGTH,
        "head_dropout": 0.0, "num_train_epochs": 1, "per_device_train_batch_size": ROWS, "learning_rate": 1e-3,
        "head_learning_rate": 1e-2, "freeze_depth": 0})


def plain(config, data, head):
    """The plain model with the head's first weights, and for rows of train its inputs and labels: the first subword of
    a word has its tag, the others -100."""
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    model = AutoModelForTokenClassification.from_pretrained(config.model_name_or_path, num_labels=data.num_outputs)
    model.classifier.load_state_dict(head.linears[0].state_dict())
    collate = DataCollatorForTokenClassification(tokenizer)

    def batch(rows):
        features = []
        for row in rows:
            inputs = tokenizer(list(data.splits["train"].texts[row]), is_split_into_words=True, truncation=True,
                               max_length=MAX_LENGTH)
            of = inputs.word_ids()
            first = [word is not None and of.index(word) == place for place, word in enumerate(of)]
            inputs["labels"] = [int(data.splits["train"].labels[row][word]) if begins else -100
                                for word, begins in zip(of, first, strict=True)]
            features.append(inputs)
        return collate(features)

    return model.train(), batch


def ours(config):
    resolved = resolve_trial(config)
    classifier, stack = build_classifier(resolved)
    train = encode_splits(resolved)["train"]
    if AcceleratorState._shared_state:  # of another test's trial
        AcceleratorState._reset_state(reset_partial_state=True)
    return resolved.data, Trainer(config, Accelerator(cpu=True), classifier, stack, resolved.strategy, train,
                                  resolved.data.task)


def as_plain(name):
    return "bert." + name.removeprefix("backbone.") if name.startswith("backbone.") else name.replace(
        "head.linears.0", "classifier")


def test_one_step_has_the_plain_loop_s_loss_and_gradients(config):
    data, trainer = ours(config)
    model, batch = plain(config, data, trainer.classifier.head)
    rows = np.arange(ROWS)
    trainer.enter(epoch=1)
    assert (trainer.train.encoded.words.kept < trainer.train.encoded.words.counts)[rows].any(), "some words are cut"
    loss = model(**batch(rows)).loss
    loss.backward()
    assert float(trainer._gradients([rows])) / trainer.train.count(rows) == pytest.approx(loss.item(), rel=1e-6)
    found = {as_plain(name): parameter.grad for name, parameter in trainer.classifier.named_parameters()}
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_epoch_ends_in_the_plain_loop_s_weights(config, accumulated):
    """The same batches and rates: clipped, decayed (but for biases and norms), a mean over the words of each step."""
    config = config.replace(gradient_accumulation_steps=accumulated, weight_decay=0.1)
    data, trainer = ours(config)
    model, batch = plain(config, data, trainer.classifier.head)
    groups = [{"params": [p for name, p in model.named_parameters() if name.startswith("classifier.") == top
                          and (p.ndim > 1) == decays], "peak": rate, "weight_decay": 0.1 * decays}
              for top, rate in ((True, 1e-2), (False, 1e-3)) for decays in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    batches = training_batches(trainer.train.encoded.lengths, ROWS, config.seed, 1)
    windows = [batches[start:start + accumulated] for start in range(0, len(batches), accumulated)]
    for step, window in enumerate(windows):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * shape(config, step, len(windows))
        inputs = [batch(rows) for rows in window]
        words = sum(int((one["labels"] != -100).sum()) for one in inputs)
        for one in inputs:
            labels = one.pop("labels")
            functional.cross_entropy(model(**one).logits.flatten(0, 1), labels.flatten(), reduction="sum").div(
                words).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    trainer.train_epoch(1, lambda: None)
    assert trainer.step == len(windows) > 3
    found = {as_plain(name): parameter for name, parameter in trainer.classifier.named_parameters()}
    for name, parameter in model.named_parameters():
        if not name.endswith("key.bias"):  # attention does not depend on it: Adam steps by rounding
            torch.testing.assert_close(found[name].detach(), parameter.detach(), rtol=1e-3, atol=2e-5,
                                       msg=lambda told, name=name: f"{name}: {told}")
