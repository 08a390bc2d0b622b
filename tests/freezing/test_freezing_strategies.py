"""Every strategy: what trains at each epoch equals its definition, seen in the optimizer of the real training loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from families import LAYERS, build
from training import train, trainer_for

from finetune.config import TrialConfig
from finetune.errors import ConfigError
from finetune.freezing import Moment, resolve_strategy
from finetune.freezing.language import FORMS
from finetune.freezing.rules import settled_parts

HEAD = {"head.linears.0.weight", "head.linears.0.bias"}
STEPS_PER_EPOCH = 2  # 8 rows in batches of 4


@dataclass(frozen=True)
class Names:
    """A family's parameters by what they are called there: the definitions below are written in these words."""

    every: frozenset[str]
    embeddings_prefix: str
    layer_prefix: str
    norm: str  # what the names of norms hold

    def embeddings(self):
        return {name for name in self.every if name.startswith(self.embeddings_prefix)}

    def layers(self, *indices):
        return {name for name in self.every for index in indices if name.startswith(f"{self.layer_prefix}{index}.")}

    def top(self):
        return self.every - self.embeddings() - self.layers(*range(LAYERS))

    def above(self, first):
        return self.layers(*range(first, LAYERS)) | self.top()


FAMILIES = {
    "BERT": ("backbone.embeddings.", "backbone.encoder.layer.", "LayerNorm"),
    "Llama": ("backbone.embed_tokens.", "backbone.layers.", "norm"),
}
# (strategy, epochs, definition(names, epoch) of what trains besides the head)
CASES = [
    ("full", 1, lambda n, epoch: n.every),
    ("prefix:0", 1, lambda n, epoch: n.every),
    ("prefix:2", 1, lambda n, epoch: n.above(2)),
    ("prefix:3", 1, lambda n, epoch: set()),
    ("head_only", 1, lambda n, epoch: set()),
    ("embeddings", 1, lambda n, epoch: n.above(0)),
    ("suffix:1", 1, lambda n, epoch: n.embeddings() | n.layers(0, 1)),
    ("suffix:3", 1, lambda n, epoch: n.embeddings()),
    ("train:1-2", 1, lambda n, epoch: n.layers(1, 2)),
    ("train:0", 1, lambda n, epoch: n.layers(0)),
    ("freeze:layer.1,embeddings", 1, lambda n, epoch: n.layers(0, 2) | n.top()),
    ("freeze:*weight", 1, lambda n, epoch: {name for name in n.every if not name.endswith("weight")}),
    ("norm_only", 1, lambda n, epoch: {name for name in n.every if n.norm in name}),
    ("lp_ft:1", 3, lambda n, epoch: n.every if epoch > 1 else set()),
    ("lp_ft:2", 3, lambda n, epoch: n.every if epoch > 2 else set()),
    ("gradual:1", 6, lambda n, epoch: [set(), n.above(2), n.above(1), n.above(0), n.every, n.every][epoch - 1]),
    ("gradual:2", 3, lambda n, epoch: n.above(2) if epoch > 2 else set()),
]


def names_of(family, trainer):
    every = frozenset(name for name, _ in trainer.classifier.named_parameters()) - HEAD
    return Names(every, *FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("strategy", "epochs", "definition"), CASES, ids=[case[0] for case in CASES])
def test_what_trains_at_each_epoch_is_the_definition(family, strategy, epochs, definition):
    trainer = trainer_for(build(family), strategy=strategy, num_train_epochs=epochs)
    names = names_of(family, trainer)
    seen = train(trainer)
    for epoch in range(1, epochs + 1):
        expected = definition(names, epoch) | HEAD
        assert seen.trained[epoch] == expected
        assert seen.with_gradient[epoch] == expected
        assert seen.moved[epoch] == expected
    assert len(seen.steps) == epochs * STEPS_PER_EPOCH  # as many as full takes


def test_bitfit_trains_every_bias_and_nothing_else():
    seen = train(trainer_for(build("BERT"), strategy="bitfit"))
    assert seen.moved[1] == seen.trained[1] == {name for name in seen.trained[1] if name.endswith("bias")} | HEAD
    assert len(seen.trained[1] - HEAD) == 1 + 8 * LAYERS  # embeddings.LayerNorm; q k v o, two dense, two norms


def test_bitfit_does_not_take_a_table_of_positions_for_a_bias():
    trainer = trainer_for(build("MPNet"), strategy="bitfit")
    seen = train(trainer)
    assert "backbone.encoder.relative_attention_bias.weight" not in seen.trained[1]
    assert "backbone.encoder.layer.0.attention.attn.q.bias" in seen.trained[1]


@pytest.mark.parametrize(("family", "per_layer", "outside"), [("T5 encoder", 2, 1), ("Llama", 2, 1), ("Qwen3", 4, 1),
                                                              ("Gemma 2", 4, 1), ("ModernBERT", 2, 2), ("GPT-2", 4, 2)])
def test_norms_are_found_by_what_they_are(family, per_layer, outside):
    """RMSNorm has one vector, LayerNorm two; ModernBERT's first layer has one norm less; its LayerNorm has no bias."""
    seen = train(trainer_for(build(family), strategy="norm_only"))
    assert len(seen.trained[1] - HEAD) == per_layer * LAYERS + outside - (family == "ModernBERT")
    assert seen.moved[1] == seen.trained[1]


def test_a_model_without_biases_refuses_bitfit():
    with pytest.raises(ConfigError, match="bitfit.*no biases"):
        train(trainer_for(build("Llama"), strategy="bitfit"))


def test_lora_trains_adapters_on_every_linear_layer_and_the_base_stays():
    model = build("BERT")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "pooler" not in name}
    trainer = trainer_for(model, strategy="lora:2", num_train_epochs=2)
    seen = train(trainer)
    adapters = {name for name in seen.trained[1] if ".lora_" in name}
    assert seen.trained[2] == adapters | HEAD and len(adapters) == 2 * 6 * LAYERS
    assert all(".layer." in name for name in adapters) and seen.moved[2] == seen.trained[2]
    base = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if ".lora_" not in name}
    assert base.keys() == before.keys() and all(torch.equal(base[name], before[name]) for name in before)


@pytest.mark.parametrize("family", ["GPT-2", "DeBERTa-v2 with convolution", "XLNet", "T5 encoder"])
def test_lora_works_where_linear_layers_are_called_something_else(family):
    """GPT-2's Conv1D; XLNet's attention is no linear layer, its feed-forward is."""
    seen = train(trainer_for(build(family), strategy="lora:2", num_train_epochs=2))
    assert len(seen.trained[1]) > 2 * LAYERS and seen.moved[2] == seen.trained[2]
    assert all(".lora_" in name or name in HEAD for name in seen.trained[1])


# What changes in the middle.

def drawn_layers(names):
    return sorted({int(name.split(".layer.")[1].partition(".")[0]) for name in names if ".layer." in name})


def test_lisa_redraws_its_layers_every_period_and_drops_the_state_of_frozen_ones():
    trainer = trainer_for(build("BERT"), strategy="lisa:2/3", num_train_epochs=6, count=8)
    seen = train(trainer)
    assert len(seen.steps) == 12
    draws = [drawn_layers(step) for step in seen.steps]
    assert all(len(draw) == 2 for draw in draws)
    assert all(draws[step] == draws[step - step % 3] for step in range(12))
    assert len({tuple(draw) for draw in draws}) > 1
    always = {name for name in seen.steps[0] if ".layer." not in name}
    assert all({name for name in step if ".layer." not in name} == always for step in seen.steps)
    for step in range(1, 12):
        kept = seen.steps[step] & seen.steps[step - 1]
        assert seen.states[step] == kept  # no state of what was frozen, nor an old one of what trains again


def test_lisa_draws_every_layer_equally_often_and_by_the_seed():
    trainer = trainer_for(build("BERT"), strategy="lisa:1/2")

    def draws(seed):
        moments = [Moment(1, step, 1, 600, seed) for step in range(0, 600, 2)]
        plans = [trainer.strategy.plan(trainer.stack, moment) for moment in moments]
        return [drawn_layers(plan.trainable)[0] for plan in plans]

    first = draws(1)
    assert first == draws(1) and first != draws(2)
    assert min(np.bincount(first, minlength=LAYERS)) > 75  # 100 expected of each, deviation 8.2


def test_newly_trainable_parameters_have_a_fresh_state_and_a_short_rewarm_up():
    trainer = trainer_for(build("BERT"), strategy="lp_ft:1", num_train_epochs=2, count=4 * 100, learning_rate=1e-3)
    seen = train(trainer)
    assert seen.states[100] == HEAD and seen.states[101] == seen.steps[101]
    layer = "backbone.encoder.layer.0.output.dense.weight"
    schedule = [1 - step / 200 for step in range(200)]
    rewarm = math.ceil(0.02 * 200)
    rates = [seen.rates[step].get(layer) for step in range(200)]
    assert rates[:100] == [None] * 100
    np.testing.assert_allclose(rates[100:], [1e-3 * schedule[step] * min(1, (step - 99) / rewarm)
                                             for step in range(100, 200)], rtol=1e-9)
    head = [seen.rates[step]["head.linears.0.weight"] for step in range(200)]
    np.testing.assert_allclose(head, [1e-2 * factor for factor in schedule], rtol=1e-9)


def test_a_rewarm_up_is_short_against_the_steps_that_a_draw_trains():
    trainer = trainer_for(build("BERT"), strategy="lisa:1/5", num_train_epochs=1, count=4 * 100)
    seen = train(trainer)
    layer = next(name for name in seen.steps[50] if ".layer." in name)
    assert seen.rates[50][layer] == pytest.approx(1e-2 * (1 - 50 / 100))  # 2% of 100 steps would be two of the five


def test_auto_freezes_from_the_bottom_what_its_own_gradient_norms_say():
    names = names_of("BERT", trainer_for(build("BERT"), strategy="auto:75", num_train_epochs=6, count=24))
    order = ["embeddings", *(f"layer.{i}" for i in range(LAYERS))]
    most = []
    for seed in (2, 5, 8):  # a run may settle nothing, and which one does so differs with the processor's rounding
        trainer = trainer_for(build("BERT"), strategy="auto:75", num_train_epochs=6, count=24, seed=seed)
        seen = train(trainer)
        assert len(trainer.gradient_norms) == 6
        counts = []
        for epoch in range(1, 7):
            settled = settled_parts(trainer.gradient_norms[:epoch - 1], order, 75)
            expected = names.every if settled == 0 else names.above(settled - 1)
            assert seen.trained[epoch] == expected | HEAD
            counts.append(settled)
        assert counts[:2] == [0, 0] and counts == sorted(counts)
        most.append(counts[-1])
    assert max(most) > 0


def test_settled_parts_is_autofreeze_s_rule():
    order = ["embeddings", "layer.0", "layer.1"]

    def settled(*epochs, q=50):
        return settled_parts([dict(zip(order, norms, strict=True)) for norms in epochs], order, q)

    assert settled([1, 1, 1]) == 0  # one epoch shows no change
    assert settled([1, 1, 1], [1.0, 1.1, 3]) == 2  # changes 0, 0.1, 2: the median is 0.1
    assert settled([1, 1, 1], [2, 1, 1]) == 0  # only from the bottom
    assert settled([1, 1, 1], [1, 1, 1]) == 2  # the last one never settles
    frozen = [{"embeddings": 1, "layer.0": 1, "layer.1": 1}, {"embeddings": 1, "layer.0": 3, "layer.1": 2},
              {"layer.0": 9, "layer.1": 2}]
    assert settled_parts(frozen, order, 30) == 1  # what is frozen stays so and has no norm any more


# The orthogonal knobs.

def test_layer_decay_is_a_factor_per_layer():
    seen = train(trainer_for(build("BERT"), layer_decay=0.5, learning_rate=1e-2))
    rates = seen.rates[0]
    peak = 1e-2
    for index, factor in enumerate([0.25, 0.5, 1.0]):
        assert rates[f"backbone.encoder.layer.{index}.output.dense.weight"] == pytest.approx(peak * factor)
    assert rates["backbone.embeddings.word_embeddings.weight"] == pytest.approx(peak * 0.125)
    assert rates["head.linears.0.weight"] == pytest.approx(1e-2)


def test_fp16_s_loss_scale_does_not_reach_clipping_or_weights():
    """A power of two scales exactly; a step whose gradients overflow is left out, and the scale falls."""
    def trained(scale=None, overflow=False):
        torch.manual_seed(0)
        trainer = trainer_for(build("BERT"), freeze_depth=1, count=4, max_grad_norm=0.5)
        torch.manual_seed(0)
        if scale:
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        if overflow:
            trainer.classifier.head.linears[0].weight.register_hook(lambda gradient: gradient * math.inf)
        moved = train(trainer).moved[1]
        return trainer, moved, {name: p.detach().clone() for name, p in trainer.classifier.named_parameters()}

    _, moved, plain = trained()
    _, _, scaled = trained(1024.0)
    assert moved and all(torch.equal(scaled[name], value) for name, value in plain.items())
    trainer, moved, _ = trained(1024.0, overflow=True)
    assert trainer.step == 1 and not moved and trainer.accelerator.scaler.get_scale() == 512.0


@pytest.mark.parametrize("frozen_dropout", [False, True])
def test_frozen_modules_run_in_eval_mode_unless_asked_otherwise(frozen_dropout):
    trainer = trainer_for(build("BERT"), freeze_depth=2, frozen_dropout=frozen_dropout)
    modes = {}
    for name, module in trainer.classifier.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: modes.update({name: module.training}))
    train(trainer)
    frozen = [name for name in modes if name.startswith(("backbone.embeddings", "backbone.encoder.layer.0",
                                                         "backbone.encoder.layer.1"))]
    others = [name for name in modes if name.startswith(("backbone.encoder.layer.2", "head"))]
    assert {modes[name] for name in frozen} == {frozen_dropout} and {modes[name] for name in others} == {True}


# How it is written.

def test_every_strategy_of_the_registry_has_a_test_of_what_it_trains():
    tested = {case[0].partition(":")[0] for case in CASES} | {"bitfit", "lora", "lisa", "auto"}
    assert tested == FORMS.keys()


@pytest.mark.parametrize(("text", "says"), [
    ("ful", "did you mean full"), ("prefix", "an argument is missing"), ("prefix:7", "the model has 6 layers"),
    ("prefix:-1", "layers from 0 to 6"), ("prefix:two", "example: prefix:4"), ("full:1", "takes no argument"),
    ("suffix:0", "layers from 1 to 6"), ("train:3-9", "layers 0 to 5"), ("train:4-2", "FIRST-LAST"),
    ("lp_ft:3", "num_train_epochs is 3"), ("lp_ft:0", "epochs from 1 to 2"), ("gradual:0", "at least 1"),
    ("lisa:2", "LAYERS/STEPS"), ("lisa:7/1", "layers from 1 to 6"), ("lisa:1/0", "at least 1"),
    ("auto:100", "percent from 1 to 99"), ("lora:0", "ranks from 1"), ("freeze:", "an argument is missing"),
    ("prefix:²", "layers from 0 to 6"), ("", "strategy"),
])
def test_a_strategy_that_cannot_be_read_is_one_sentence_with_an_example(text, says):
    with pytest.raises(ConfigError) as caught:
        config = TrialConfig.from_mapping({"strategy": text, "num_train_epochs": 3})
        resolve_strategy(config, 6)
    message = str(caught.value)
    assert says in message and message.count("\n") == 0 and message.startswith(f"strategy = {text!r}")


def test_a_pattern_that_matches_nothing_says_what_names_look_like():
    with pytest.raises(ConfigError, match=r"freeze:\*atention\*.*matches no parameter.*layer\.0"):
        trainer_for(build("BERT"), strategy="freeze:*atention*").enter(1)


@pytest.mark.parametrize(("written", "canonical"), [
    ("prefix:0", "full"), ("prefix:6", "head_only"), ("prefix:3", "prefix:3"), (" lisa : 2 / 20 ", "lisa:2/20"),
    ("train:4", "train:4-4"), ("embeddings", "embeddings"),
])
def test_one_spelling_per_meaning(written, canonical):
    config = TrialConfig.from_mapping({"strategy": written})
    assert resolve_strategy(config, 6).canonical == canonical


def test_every_example_of_the_language_reads_and_is_its_own_canonical_spelling():
    for form in FORMS.values():
        config = TrialConfig.from_mapping({"strategy": form.example, "num_train_epochs": 3})
        assert resolve_strategy(config, 6).canonical == form.example
