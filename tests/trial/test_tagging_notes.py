"""What a record says of tags that a reader should know, and a margin that means nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny import wordpiece_tokenizer

from analysis.findings.premises import _other_metric
from analysis.statistics.metrics import BY_WORD
from finetune.config import TrialConfig
from finetune.trial import run_trial

SENTENCE = "in\tO\nnew\tB-place\nyork\tI-place\n{n}\tO\ntoday\tO\nor\tO\nthen\tO\n\n"


def test_a_decoder_is_allowed_with_a_warning_and_cut_words_are_counted(tmp_path):
    from transformers import GPT2Config, GPT2Model

    tokenizer = wordpiece_tokenizer()
    GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64,
                         bos_token_id=1, eos_token_id=1)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "set.conll").write_text("".join(SENTENCE.format(n=f"take{n}") for n in range(20)))
    record = run_trial(TrialConfig.from_mapping({
        "dataset_name": str(tmp_path / "set.conll"), "model_name_or_path": str(tmp_path / "model"), "max_length": 8,
        "num_train_epochs": 1, "freeze_depth": 1, "save_model": False})).record
    assert record.state == "complete"
    assert any("is a decoder" in note for note in record.data["notes"])
    assert any(note.startswith("words that were cut: ") and "count as wrong" in note for note in record.data["notes"])


@pytest.mark.parametrize(("task", "kind", "metric", "known", "advice"), [
    ("token_classification", "all O", "f1", {"f1": 0, "precision": 0, "f1_macro": 0}, ""),
    ("token_classification", "all O", "accuracy", {"accuracy": 0, "f1": 0, "precision": 0, "f1_macro": 0},
     "--metric f1,"),
    ("token_classification", BY_WORD, "accuracy", {"accuracy": 0, "f1_macro": 0}, ""),
    ("classification", "majority", "accuracy", {"accuracy": 0, "f1": 0, "f1_macro": 0}, "--metric f1_macro,"),
])
def test_another_metric_is_advised_only_where_the_baseline_does_worse_in_it(task, kind, metric, known, advice):
    record = SimpleNamespace(task=task, metrics={"test": known})
    said = _other_metric(SimpleNamespace(metric=metric, baseline_kind=kind, reference=SimpleNamespace(
        trials=[SimpleNamespace(record=record)])))
    assert advice in said and bool(said) == bool(advice)
