"""What a trial does with its data: units of a regression, class weights, and what the record says about the rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from finetune.config import TrialConfig
from finetune.data.targets import balanced_weights
from finetune.errors import ConfigError
from finetune.training.evaluation import confusion, per_class_table
from finetune.trial import resolve_trial, run_trial

WORDS = ["the", "film", "was", "a", "long", "slow", "bad", "good", "fine", "great", "dull", "story", "plot"]


def write(folder, labels, *, key="label", test=None):
    """One text per label, of words that depend on the row."""
    rng = np.random.default_rng(0)
    for name, values in {"train": labels, "test": test or labels[:30]}.items():
        rows = [{"text": " ".join(rng.choice(WORDS, 8)) + f" {row}", key: value} for row, value in enumerate(values)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def trial(tiny_bert_dir):
    def run(folder, **changes):
        knobs = {"model_name_or_path": str(tiny_bert_dir), "num_train_epochs": 2, "per_device_train_batch_size": 8,
                 "prefix_cache": False, "freeze_depth": 2, "learning_rate": 1e-3}
        return run_trial(TrialConfig.from_mapping({"dataset_name": str(folder), **knobs, **changes}))
    return run


def test_a_regression_does_not_depend_on_the_units_of_its_targets(tmp_path, trial):
    """Euros or cents: the same correlation, and errors that count in the source's own units."""
    targets = [2.5 + (row * 7 % 40) / 8 for row in range(80)]
    (tmp_path / "euros").mkdir()
    (tmp_path / "cents").mkdir()
    euros = trial(write(tmp_path / "euros", targets))
    cents = trial(write(tmp_path / "cents", [1024 * target + 4096 for target in targets]))
    for split in ("validation", "test"):
        here, there = euros.record.metrics[split], cents.record.metrics[split]
        assert there["pearson"] == pytest.approx(here["pearson"], abs=1e-3)
        assert there["mse"] == pytest.approx(1024**2 * here["mse"], rel=1e-3)
    first, second = euros.record.history[0]["train"]["loss"], cents.record.history[0]["train"]["loss"]
    assert second == pytest.approx(1024**2 * first, rel=1e-3)
    np.testing.assert_allclose(cents.predictions["test_logits"], 1024 * euros.predictions["test_logits"] + 4096,
                               rtol=1e-3)


def test_an_untrained_regression_starts_near_the_mean_baseline(tmp_path, trial):
    outcome = trial(write(tmp_path, [1e6 + row % 9 / 2 for row in range(60)]), num_train_epochs=1,
                    head_learning_rate=1e-9, learning_rate=1e-9)
    metrics, baseline = outcome.record.metrics["test"], outcome.record.baseline["test"]
    assert metrics["mse"] < 10 * baseline["mse"]


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 70 + [1] * 20 + [3] * 10)
    data = fake_data("classification", labels, 4)
    weights = balanced_weights(data)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(weights[[0, 1, 3]], expected)
    assert (weights[labels].mean()) == pytest.approx(1)


def test_balanced_labels_weigh_positives_by_how_rare_they_are():
    labels = np.zeros((10, 3), np.float32)
    labels[:5, 0], labels[:1, 1] = 1, 1
    np.testing.assert_allclose(balanced_weights(fake_data("multilabel", labels, 3)), [1, 9, 10])


def fake_data(task, labels, outputs):
    from finetune.data import Split, TaskData

    split = Split([("a",)] * len(labels), labels, np.array([str(i) for i in range(len(labels))]))
    return TaskData("x", None, task, [str(i) for i in range(outputs)], outputs, {"train": split}, "f")


@pytest.mark.parametrize(("labels", "key"), [
    ([int(row % 10 == 0) for row in range(80)], "label"),
    ([[["a"], ["a", "b"]][row % 10 == 0] for row in range(80)], "labels"),
])
def test_class_weights_make_the_rare_class_likelier(tmp_path, trial, labels, key):
    folder = write(tmp_path, labels, key=key)
    outcomes = [trial(folder, class_weights=weights) for weights in ("none", "balanced")]
    assert outcomes[0].record.trial_id != outcomes[1].record.trial_id
    plain, weighted = (outcome.predictions["test_logits"] for outcome in outcomes)
    gain = weighted - plain
    assert (gain[:, 1] - gain[:, 0]).mean() > 0.5


def test_class_weights_of_a_regression_are_refused(tmp_path, tiny_bert_dir):
    config = TrialConfig.from_mapping({"dataset_name": str(write(tmp_path, [row / 7 for row in range(60)])),
                                       "model_name_or_path": str(tiny_bert_dir), "class_weights": "balanced"})
    with pytest.raises(ConfigError, match="class_weights = 'balanced': a regression has no classes"):
        resolve_trial(config)


def test_the_record_lists_what_was_rejected_and_what_was_cut(tmp_path, trial):
    folder = write(tmp_path, [row % 2 for row in range(60)])
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": "", "label": 1}\n{"text": "' + "long " * 200 + '", "label": 1}\nno json\n')
    data = trial(folder, num_train_epochs=1, max_length=16, validation_size=10).record.data
    assert data["rejected"] == 2
    assert data["rejected_rows"] == ["train.jsonl line 61: 'text' is empty",
                                     "train.jsonl line 63: not JSON (Expecting value: line 1 column 1 (char 0))"]
    assert set(data["truncated"]) == {"train", "validation", "test"}
    assert 0 < data["truncated"]["train"] <= 1
    assert any(note.startswith("cut to max_length = 16 tokens: ") for note in data["notes"])


def test_the_record_holds_the_table_per_class_and_the_confusion_matrix(tmp_path, trial):
    outcome = trial(write(tmp_path, [["a", "b", "c"][row % 3] for row in range(60)]), num_train_epochs=1)
    for split in ("validation", "test"):
        logits, labels = outcome.predictions[f"{split}_logits"], outcome.predictions[f"{split}_labels"]
        details = outcome.record.details[split]
        assert details["confusion"] == confusion(logits, labels)
        assert details["per_class"] == per_class_table("classification", logits, labels, ["a", "b", "c"])
        assert sum(map(sum, details["confusion"])) == len(labels)


def test_a_regression_has_no_table_per_class(tmp_path, trial):
    outcome = trial(write(tmp_path, [row / 7 for row in range(60)]), num_train_epochs=1)
    assert outcome.record.details == {"validation": {}, "test": {}}
