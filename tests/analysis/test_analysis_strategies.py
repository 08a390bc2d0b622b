"""Strategies at equal epochs and at equal compute: planted records, worked out by hand."""

from __future__ import annotations

import pytest

from analysis.strategies import main, markdown, strategy_rows
from finetune.results import RecordStore, TrialRecord


def record(
    strategy, rate, seed, epochs, seconds, test, *, trainable=50, deepest=-1, metric="accuracy", state="complete"
):
    name = f"{strategy}-{rate}"
    return TrialRecord(
        trial_id=f"{name}-{seed}".replace(":", "-"), setting_id=name, state=state, metric=metric, num_layers=6,
        config={"seed": seed}, effective={"strategy": strategy, "learning_rate": rate},
        parameters={"total": 100, "trainable": trainable}, deepest_trainable_layer=deepest,
        metrics={"validation": {metric: max(epochs)}, "test": {metric: test}},
        history=[{"epoch": i, "validation": {metric: value}, "train_seconds": seconds, "peak_memory_bytes": i << 20}
                 for i, value in enumerate(epochs, 1)],
        cost={"train_seconds": seconds * len(epochs)})


TRIALS = [
    record("full", 1e-4, 1, [0.5, 0.6, 0.8], 10, 0.78), record("full", 1e-4, 2, [0.4, 0.7, 0.9], 10, 0.82),
    record("full", 1e-3, 1, [0.9, 0.5, 0.5], 10, 0.99),  # one seed only: not chosen, however lucky
    record("head_only", None, 1, [0.6, 0.7, 0.65], 4, 0.7, trainable=1, deepest=6),
    record("head_only", None, 2, [0.6, 0.6, 0.55], 4, 0.6, trainable=1, deepest=6),
    record("prefix:3", 1e-4, 1, [0.7, 0.7, 0.7], 13, 0.7, deepest=3),
    record("prefix:3", 1e-4, 2, [0.7, 0.7, 0.7], 13, 0.7, deepest=3),
    record("bitfit", 1e-3, 1, [0.9], 1, 0.9, state="failed"),
]


def test_each_strategy_is_its_best_setting_on_validation_among_those_with_most_seeds():
    rows, budget = strategy_rows(TRIALS)
    full, prefix, head = rows
    assert [row.strategy for row in rows] == ["full", "prefix:3", "head_only"]  # what trains most comes first
    assert full.learning_rate == 1e-4 and full.test == (0.78, 0.82) and full.seeds == (1, 2)
    assert (full.trainable_share, head.trainable_share, prefix.deepest, head.learning_rate) == (0.5, 0.01, 3, None)
    assert full.train_seconds == 30 and full.peak_memory_bytes == 3 << 20


def test_equal_compute_counts_the_epochs_that_ended_within_half_of_the_dearest_strategy_s_time():
    (full, prefix, head), budget = strategy_rows(TRIALS)
    assert budget == 39 / 2
    assert full.equal_compute == pytest.approx((0.5 + 0.4) / 2)  # one epoch of 10 s fits
    assert head.equal_compute == pytest.approx((0.7 + 0.6) / 2)
    assert prefix.equal_compute == 0.7
    slow, _ = strategy_rows([record("full", 1e-4, 1, [0.9], 10, 0.9)])
    assert slow[0].equal_compute is None and "no epoch done" in markdown(slow)


def test_a_metric_that_should_be_small_is_chosen_small():
    rows, _ = strategy_rows([record("full", rate, 1, [loss], 1, loss, metric="loss") for rate, loss in
                             [(1e-4, 0.7), (1e-3, 0.3), (1e-2, 0.5)]])
    assert rows[0].test == (0.3,) and "0.3000 (one seed)" in markdown(rows)


def test_the_table_says_it_in_words():
    table = markdown(strategy_rows(TRIALS)[0])
    assert "| `full` | 0.0001 | 80.0% (78.0% to 82.0%) | 45.0% | 50.0% | embeddings | 30.0 s (100%) | 3 MiB |" in table
    assert "| `head_only` | - | 65.0% (60.0% to 70.0%) | 65.0% | 1.0% | head | 12.0 s (40%) | 3 MiB |" in table
    assert "bitfit" not in table


def test_the_command_reads_a_sweep_s_directory(tmp_path, capsys):
    assert main(str(tmp_path)) == 2 and "no complete trial" in capsys.readouterr().err
    for trial in TRIALS:
        RecordStore(tmp_path).publish(trial)
    assert main(str(tmp_path)) == 0
    assert "Equal compute: 19.5 s of training" in capsys.readouterr().out
