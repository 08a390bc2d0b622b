"""Copies of weights in bf16: the digits of autocast, fewer casts; where they would change a digit they are not used."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, build
from test_graphs import losses
from torch import nn
from training import trainer_for

from finetune.training.master_weights import autocast_dtype, copies_for, same_loss
from finetune.training.recorders import EagerTwin


def without_copies(**knobs):
    """The twin's losses and trainer, every weight and gradient cast by autocast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.training.graphs.same_loss", lambda *_: False)
        found, trainer, _ = losses(EagerTwin(), mixed_precision="bf16", **knobs)
    assert trainer.graphs.replays and trainer.graphs._copies is None
    return found, trainer


def assert_same_bits(ours, theirs):
    for (name, found), (_, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert found.dtype == torch.float32 and torch.equal(found, expected), name


@pytest.mark.parametrize("knobs", [{}, {"freeze_depth": 0}, {"freeze_depth": 3}, {"max_grad_norm": 0.0},
                                   {"strategy": "lp_ft:2", "freeze_depth": None}, {"head_size": 8},
                                   {"strategy": "bitfit", "freeze_depth": None}], ids=str)
def test_losses_and_weights_are_those_of_autocast_to_the_last_bit(knobs):
    expected, plain = without_copies(**knobs)
    found, trainer, said = losses(EagerTwin(), mixed_precision="bf16", **knobs)
    assert not said and trainer.graphs.replays and trainer.graphs._copies is not None
    assert found == expected
    assert_same_bits(trainer.classifier, plain.classifier)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "DeBERTa"])  # it overflows in bf16
def test_other_families_too(family):
    expected, plain = without_copies(family=family, num_train_epochs=2)
    found, trainer, _ = losses(EagerTwin(), mixed_precision="bf16", family=family, num_train_epochs=2)
    assert found == expected and trainer.graphs._copies is not None
    assert_same_bits(trainer.classifier, plain.classifier)


def test_without_autocast_there_are_none():
    _, trainer, _ = losses(EagerTwin())
    assert trainer.graphs.replays and trainer.graphs._copies is None


def test_evaluation_and_checkpoints_see_the_float32_weights_alone():
    _, trainer, _ = losses(EagerTwin(), mixed_precision="bf16")
    assert {parameter.dtype for parameter in trainer.classifier.parameters()} == {torch.float32}
    assert all(copy.grad is None for *_, copy in trainer.graphs._copies.places)


class Routed(nn.Module):
    """`shared` has its weight in two modules; `tied` multiplies it by hand, in float32."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return x.float() @ self.third.weight.float().T


def test_what_modules_share_or_nobody_trains_is_left_to_autocast():
    model = Routed()
    trained = [model.first.weight, model.second.bias, model.third.weight]
    copies = copies_for(model, torch.optim.AdamW(trained), torch.bfloat16)
    assert [(module, name) for module, name, *_ in copies.places] == [(model.second, "bias"), (model.third, "weight")]
    assert copies_for(model, torch.optim.AdamW(trained), None) is None
    assert copies_for(model, torch.optim.AdamW([model.first.weight]), torch.bfloat16) is None


@pytest.mark.parametrize("cast", [True, False])
def test_a_weight_that_is_multiplied_in_float32_on_purpose_is_noticed(cast):
    """In silence where the model casts it itself, with an error where it does not."""
    model = Routed()
    copies = copies_for(model, torch.optim.AdamW(model.parameters()), torch.bfloat16)
    x = torch.randn(8, 4)

    def backward():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x) if cast else nn.functional.linear(x.double(), model.third.weight.float().double())
            loss = out.square().sum()
        if not cast and model.third.weight.dtype == torch.bfloat16:
            raise RuntimeError("expected mat1 and mat2 to have the same dtype")
        loss.backward()
        return loss.detach()

    before = torch.get_rng_state()
    assert not same_loss(copies, backward, lambda: model.zero_grad(set_to_none=True))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, "everything is as it was"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_dtype_is_autocast_s():
    assert autocast_dtype(trainer_for(build("BERT"), mixed_precision="bf16").accelerator) == torch.bfloat16
    assert autocast_dtype(trainer_for(build("BERT")).accelerator) is None
