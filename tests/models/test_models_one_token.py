"""Where one token per row is read, the last layer finishes that token only: same vectors, same gradients, less work."""

from __future__ import annotations

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, LAYERS, build
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.bert.modeling_bert import BertOutput

from finetune.config import TrialConfig
from finetune.models.discovery import discover_stack
from finetune.models.head import READ, Classifier, Head
from finetune.models.one_token import cuttable_modules
from finetune.trial import run_trial

UNCUT = {"XLNet"}  # its hidden states are (tokens, rows, width)
MASK = {"right": [[1] * 9, [1] * 4 + [0] * 5, [1] * 6 + [0] * 3],
        "left": [[1] * 9, [0] * 5 + [1] * 4, [0, 0] + [1] * 7]}


def classifier_of(model, pooling):
    return Classifier(model, Head(16, 8, 2, 0.0, torch.Generator().manual_seed(0)), pooling).eval()


def inputs_of(side="right"):
    ids = (torch.arange(27).view(3, 9) * 7 + 5) % 55 + 3
    return {"input_ids": ids, "attention_mask": torch.tensor(MASK[side])}


def pooled_and_gradients(classifier, inputs):
    classifier.zero_grad(set_to_none=True)
    pooled = classifier.pool(**inputs)
    (classifier.head(pooled) * torch.arange(1.0, 7).view(3, 2)).sum().backward()
    return pooled.detach(), {name: p.grad.clone() for name, p in classifier.named_parameters() if p.grad is not None}


def assert_same(model, pooling, inputs):
    """Returns the share of the last layer's multiplications that is left."""
    stack = discover_stack(model)
    cuttable = cuttable_modules(stack)
    whole, one = classifier_of(model, pooling), classifier_of(copy.deepcopy(model), pooling)
    one.read_one_token(SimpleNamespace(cuttable=cuttable))
    expected, gradients = pooled_and_gradients(whole, inputs)
    found, own = pooled_and_gradients(one, inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(own[name] / scale, gradient / scale, atol=1e-5, rtol=1e-4, msg=name)
    return last_layer_operations(one, inputs, stack.path) / last_layer_operations(whole, inputs, stack.path)


def last_layer_operations(classifier, inputs, path):
    with FlopCounterMode(display=False) as counter:
        classifier.pool(**inputs)
    return sum(counter.get_flop_counts()[f"{type(classifier.backbone).__name__}.{path}.{LAYERS - 1}"].values())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_and_gradients_are_those_of_the_whole_layer(family, side):
    model = build(family)
    model.config.use_cache = False
    share = assert_same(model, "last" if discover_stack(model).causal else "cls", inputs_of(side))
    assert share == 1 if family in UNCUT else share < 0.9


def test_a_pooler_reads_the_first_token():
    assert assert_same(build("BERT"), "pooler", inputs_of()) < 0.75


def test_a_mean_reads_them_all():
    classifier = classifier_of(build("BERT"), "mean")
    classifier.read_one_token(SimpleNamespace(cuttable=cuttable_modules(discover_stack(classifier.backbone))))
    assert classifier.reader is None and set(READ) == {"cls", "last", "pooler"}


class Mixing(BertOutput):
    """A feed-forward's end that looks at other tokens' attention."""

    def forward(self, hidden, before):
        return super().forward(hidden, before + before.mean(1, keepdim=True))


def test_what_mixes_tokens_after_attention_is_seen():
    """The check can fail: what feeds such a mixture is not cut; the wide part of the feed-forward still is."""
    model = build("BERT")
    model.encoder.layer[-1].output.__class__ = Mixing
    cuttable = cuttable_modules(discover_stack(model))
    assert cuttable[0] == "encoder.layer.2.intermediate"
    assert 0.5 < assert_same(model, "cls", inputs_of()) < 0.9


def test_keys_are_not_cut_even_where_weights_are_tiny():
    model = build("BERT")
    with torch.no_grad():
        for parameter in model.encoder.layer[-1].attention.parameters():
            parameter.mul_(0.1)
    assert cuttable_modules(discover_stack(model)) == ("encoder.layer.2.attention.output",)


def test_a_whole_trial_with_and_without_reuse_and_checkpointing(tiny_bert_dir, tmp_path):
    """With gradient checkpointing the last layer is computed whole; without dropout nothing else differs."""
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config | quiet))
    knobs = {"model_name_or_path": str(folder), "train_size": 32, "evaluation_size": 16, "num_train_epochs": 2,
             "per_device_train_batch_size": 8, "learning_rate": 1e-3, "head_dropout": 0.0, "pooling": "cls",
             "freeze_depth": 1}
    first, *others = [run_trial(TrialConfig.from_mapping({**knobs, **changed})).predictions["test_logits"]
                      for changed in ({}, {"prefix_cache": False}, {"gradient_checkpointing": True})]
    for logits in others:
        torch.testing.assert_close(torch.from_numpy(logits), torch.from_numpy(first), atol=1e-4, rtol=1e-3)
