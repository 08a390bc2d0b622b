"""What looks at a model on the host must not seed a GPU: dropout draws there, and a trial's masks are its own.

Once it did: the first trial of a process with `pooling: cls` tried which modules may be cut, and with torch.manual_seed
gave the GPU's generator another state than the second trial found (logits apart by 0.06 in float32).
"""

from __future__ import annotations

import pytest
import torch
from families import build

from finetune.config import TrialConfig
from finetune.freezing.prepare import reinit_layers
from finetune.models.discovery import discover_stack
from finetune.models.one_token import cuttable_modules
from finetune.trial import run_trial


@pytest.fixture
def seeded(monkeypatch):
    """The seeds that GPUs are given from here on."""
    found = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", found.append)
    return found


def test_the_spy_sees_what_pytorchs_own_function_does(seeded):
    torch.manual_seed(7)
    assert seeded == [7]


def test_looking_at_a_model_seeds_no_gpu_and_leaves_the_hosts_generator(seeded):
    model = build("BERT")
    seeded.clear()
    before = torch.get_rng_state()
    stack = discover_stack(model)
    assert cuttable_modules(stack)
    reinit_layers(stack, 1, seed=3)
    assert seeded == [] and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("knobs", [{"pooling": "cls"}, {"reinit_layers": 1}, {"strategy": "lora:2"}], ids=str)
def test_a_trial_seeds_a_gpu_once_whatever_was_before(tiny_bert_dir, tmp_path, monkeypatch, knobs, seeded):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    config = TrialConfig.from_mapping({"model_name_or_path": str(tiny_bert_dir), "train_size": 8, "evaluation_size": 8,
                                       "num_train_epochs": 1, **knobs})
    found = []
    for _ in range(2):
        seeded.clear()
        run_trial(config)
        found.append(list(seeded))
    assert found[0] == found[1] and len(found[0]) == 1
