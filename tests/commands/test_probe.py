"""The layer probe: every depth's features, stored or computed, and what a linear model makes of them."""

import contextlib
import json

import numpy as np
import pytest
import torch
from accelerate import PartialState

from finetune.cli import main
from finetune.config import TrialConfig
from finetune.data.encoding.batches import to_device
from finetune.prefix.reuse import PrefixReuse
from finetune.results import RecordStore
from finetune.sweep import probe
from finetune.sweep.probe import depth_features, fit, fit_labels, layer_probe, with_cut_words
from finetune.trial import build_classifier, encode_splits, resolve_trial, run_trial


@pytest.fixture
def config(tiny_bert_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return TrialConfig.from_mapping({"model_name_or_path": str(tiny_bert_dir), "train_size": 48, "evaluation_size": 32,
                                     "num_train_epochs": 1, "max_length": 32, "freeze_depth": 0})


def reuse_of(config):
    resolved = resolve_trial(config)
    classifier, stack = build_classifier(resolved)
    device = PartialState().device.type  # a trial's entries are those of its device, the first one of the process
    classifier.to(device)
    splits = encode_splits(resolved, device)
    return PrefixReuse(classifier, stack, resolved.prefix, list(splits.values()), contextlib.nullcontext), splits


def test_features_are_the_mean_of_the_models_own_hidden_states(config):
    reuse, splits = reuse_of(config)
    split, rows = splits["validation"], np.arange(8)
    found = depth_features(reuse, split)
    inputs = to_device(split(rows), reuse.device)
    with torch.no_grad():
        hidden = reuse.stack.model.eval()(**inputs, output_hidden_states=True).hidden_states
    mask = inputs["attention_mask"].unsqueeze(-1)
    assert sorted(found) == [0, 1, 2, 3, 4]
    for depth, state in enumerate(hidden):
        expected = (state * mask).sum(1) / mask.sum(1)
        assert found[depth][rows] == pytest.approx(expected.cpu().numpy(), abs=1e-5)


def test_stored_activations_give_the_same_features(config):
    reuse, splits = reuse_of(config)
    computed = depth_features(reuse, splits["validation"])
    run_trial(config.replace(freeze_depth=2))
    assert reuse.store.read(reuse.key(splits["validation"], 2)) is not None
    stored = depth_features(reuse, splits["validation"])
    for depth in computed:
        assert stored[depth] == pytest.approx(computed[depth], abs=1e-5)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_a_linear_probe_finds_what_is_linear(task):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 5)).astype(np.float32)
    scores = features @ rng.normal(size=(5, 3))
    labels = {"classification": scores.argmax(1), "multilabel": (scores > 0).astype(np.float32),
              "regression": scores[:, 0]}[task]
    logits = fit(task, features, labels, 1 if task == "regression" else 3)(features)
    assert logits.shape == (400, 1 if task == "regression" else 3)
    right = {"classification": lambda: (logits.argmax(1) == labels).mean(),
             "multilabel": lambda: ((logits > 0) == labels).mean(),
             "regression": lambda: np.corrcoef(logits[:, 0], labels)[0, 1]}[task]()
    assert right > 0.85


def test_a_class_that_training_lacks_is_never_predicted():
    features = np.random.default_rng(0).normal(size=(40, 4))
    logits = fit("classification", features, np.where(features[:, 0] > 0, 2, 0), 3)(features)
    assert set(logits.argmax(1)) == {0, 2}


def test_the_command_writes_what_the_report_reads(config, tmp_path, capsys):
    folder = tmp_path / "run"
    outcome = run_trial(config)
    RecordStore(folder).publish(outcome.record, outcome.predictions)
    capsys.readouterr()
    assert main(["probe", str(folder)]) == 0
    content = json.loads((folder / "probe.json").read_text())
    assert content == json.loads(capsys.readouterr().out) == layer_probe(config)
    assert [point["freeze_depth"] for point in content["points"]] == [-1, 1, 2, 3, 4]
    from analysis.command import _probe
    from analysis.load.records import read_probe
    from finetune.sweep.workers import worker

    assert worker._probe(folder) == ((folder / "probe.json").read_text(), None)
    (folder / "probe.json").unlink()
    _probe([str(folder), "wandb:a/b/c"])  # finetune report --probe
    assert read_probe(folder / "probe.json")[0]["points"] == content["points"]
    assert worker._probe(tmp_path / "no")[0] is None and "no complete trial" in worker._probe(tmp_path / "no")[1]
    assert main(["probe", str(tmp_path / "no")]) == 2 and "no complete trial" in capsys.readouterr().err


SENTENCES = ("a\tO\nfilm\tO\nby\tO\nwoody\tB-person\nallen\tI-person\n{n}\tO\n\n"
             "new\tB-place\nyork\tI-place\n{n}\tO\n\n")


@pytest.fixture
def tagged(config, tmp_path):
    (tmp_path / "set.conll").write_text("".join(SENTENCES.format(n=f"take{n}") for n in range(20)))
    return TrialConfig.from_mapping({
        "model_name_or_path": config.model_name_or_path, "dataset_name": str(tmp_path / "set.conll"), "max_length": 9,
        "num_train_epochs": 1, "freeze_depth": 0})


def test_a_word_s_features_are_the_hidden_states_of_its_first_subword(tagged):
    reuse, splits = reuse_of(tagged)
    split = splits["train"]
    words, found = split.encoded.words, depth_features(reuse, split)
    assert (words.kept < words.counts).any(), "max_length cuts words here"
    assert len(fit_labels(split)) == words.kept.sum() == len(found[0])
    ends = np.concatenate([[0], np.cumsum(words.kept)])
    for row in (0, 3, len(words.counts) - 1):
        inputs = to_device(split(np.array([row])), reuse.device)
        inputs.pop("words")
        with torch.no_grad():
            hidden = reuse.stack.model.eval()(**inputs, output_hidden_states=True).hidden_states
        assert sorted(found) == list(range(len(hidden)))
        for depth, state in enumerate(hidden):
            assert found[depth][ends[row]:ends[row + 1]] == pytest.approx(
                state[0, words.position[row]].cpu().numpy(), abs=1e-5)
    run_trial(tagged.replace(freeze_depth=2))
    assert reuse.store.read(reuse.key(split, 2)) is not None
    stored = depth_features(reuse, split)
    for depth in found:
        assert stored[depth] == pytest.approx(found[depth], abs=1e-5)


def test_tags_are_read_from_each_depth_and_cut_words_are_missed(tagged, monkeypatch):
    whole = layer_probe(tagged.replace(max_length=32))
    assert (whole["metric"], [point["freeze_depth"] for point in whole["points"]]) == ("f1", [-1, 1, 2, 3, 4])
    assert whole["points"][0]["value"] == 1, "here the word alone tells its tag"
    assert layer_probe(tagged.replace(max_length=5))["points"][0]["value"] < 1
    monkeypatch.setattr(probe, "MOST_WORDS", 3)
    one = layer_probe(tagged)  # fitted on one sentence, measured on all
    assert one["points"][0]["value"] < whole["points"][0]["value"]


def test_logits_of_words_stand_where_their_words_do(tagged):
    split = reuse_of(tagged)[1]["validation"]
    words = split.encoded.words
    logits = with_cut_words(split, np.arange(words.kept.sum())[:, None].astype(float))
    assert np.isnan(logits).sum() == (words.counts - words.kept).sum() > 0
    assert logits[~np.isnan(logits)].tolist() == list(range(words.kept.sum()))
    assert not np.isnan(logits[words.offsets[:-1]]).any()


def test_words_of_one_tag_are_all_that_the_probe_can_say():
    said = fit("token_classification", np.zeros((4, 2)), np.full(4, 2), 5)(np.ones((3, 2)))
    assert said.shape == (3, 5) and (said.argmax(1) == 2).all()
