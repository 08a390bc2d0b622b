"""Every family: the partition, frozen means frozen at every depth, the refusals, and the page that shows them."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import pytest
import torch
from conformance import PAGE, _train_at, conformance, page, refusal, stack_of
from families import FAMILIES, LAYERS, REFUSED, build

from finetune.models.discovery import discover_stack


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_lies_in_exactly_one_part(family):
    stack = stack_of(family)
    assert conformance(family).misplaced == []
    assert list(stack.parts) == ["embeddings", *(f"layer.{i}" for i in range(LAYERS)), "top"]
    for index in range(LAYERS):  # at the least what lies in a layer and is read by no other is that layer's
        own = [name for name in stack.part_of if name.startswith(f"{stack.path}.{index}.")]
        assert own and sum(stack.part_of[name] == f"layer.{index}" for name in own) >= len(own) - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_is_frozen_at_every_depth_under_weight_decay(family):
    result = conformance(family)
    assert list(result.leaks) == [-1, 0, 1, 2, 3]
    assert not any(result.leaks.values()), "a frozen parameter moved, had a gradient or was in the optimizer"
    assert not any(result.deeper.values()), "backpropagation went below the boundary"


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_that_should_train_does(family):
    assert not any(conformance(family).idle.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_and_encoders_are_told_apart(family):
    decoders = {"GPT-2", "Llama", "Qwen2", "Qwen3", "OPT", "Mistral", "Gemma 2", "GPT-NeoX", "Phi"}
    assert stack_of(family).causal == (family in decoders)


@pytest.mark.parametrize("family", ["DeBERTa", "MPNet", "T5 encoder"])
def test_a_plan_by_place_of_registration_is_seen_to_reach_below_the_boundary(family):
    """The check can fail: shared position biases, left where they are registered, take gradients past frozen layers."""
    stack = stack_of(family)
    shared = next(name for name in stack.parts["embeddings"] if "rel" in name)
    parts = {**stack.parts, "embeddings": tuple(n for n in stack.parts["embeddings"] if n != shared),
             "top": (*stack.parts["top"], shared)}
    _, _, deeper = _train_at(replace(stack, parts=parts), 2)
    assert deeper == [1, 2]


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_stack_is_refused_with_the_reason_and_what_to_do(name):
    error = refusal(name)
    assert error is not None and REFUSED[name][1] in error.reason
    assert str(error).count("\n") == 0 and ("; choose " in str(error) or "; save " in str(error))
    assert error.exit_code == 2


def test_probing_changes_nothing():
    model = build("BERT").train()
    model.embeddings.word_embeddings.weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    discover_stack(model)
    assert all(module.training for module in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["embeddings.word_embeddings.weight"]
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_page_is_what_the_checks_give():
    generated = page()
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(generated)
    assert "| NO |" not in generated
    assert PAGE.read_text() == generated, "write it anew: python tests/support/conformance.py"
