"""Every stored file truncated at every length and flipped at random places: rebuilt, skipped, set aside, never used."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch

from finetune.data.encoding import encoded_cache
from finetune.prefix.store import PrefixStore
from finetune.results import CorruptRecord, RecordStore, TrialRecord
from finetune.training.checkpoint import Checkpoint, Checkpoints, DamagedCheckpoint

TRIAL = "a" * 64
FLIPS = 200


def damaged(content: bytes):
    """Every proper prefix, then single bits flipped at random places, then bytes that do not belong there."""
    rng = random.Random(0)
    step = max(1, len(content) // 400)  # every length of a small file, 400 of a large one
    yield from (content[:length] for length in range(0, len(content), step))
    for _ in range(FLIPS):
        place = rng.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1:]
    yield content + b"\0"
    yield b"\0" * len(content)


def checkpoint(step=4):
    tensors = {"model/head.weight": torch.arange(6.0).reshape(2, 3) + step, "random/0/torch": torch.get_rng_state()[:9]}
    return Checkpoint(step, 1, {"history": [{"epoch": 1, "loss": 0.1 + 0.2}]}, tensors)


@pytest.mark.fault("bytes", "a checkpoint's file is cut or has a flipped bit",
                   "skipped with a sentence; the one before it is used, or the trial starts again")
@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_damaged_checkpoint_is_never_read(tmp_path, name):
    store = Checkpoints(tmp_path, TRIAL)
    path = store.save(checkpoint()) / name
    whole = path.read_bytes()
    for content in damaged(whole):
        path.write_bytes(content)
        found, skipped = store.newest()
        assert found is None and len(skipped) == 1 and "is skipped" in skipped[0]
    path.write_bytes(whole)
    assert store.newest()[0].tensors["model/head.weight"].tolist() == checkpoint().tensors["model/head.weight"].tolist()


def test_the_newest_valid_checkpoint_is_used(tmp_path):
    store = Checkpoints(tmp_path, TRIAL)
    older = store.save(checkpoint(2))
    kept = shutil.copytree(older, tmp_path / "kept")
    newer = store.save(checkpoint(4))
    assert not older.exists()  # removed only after the new one is in
    shutil.copytree(kept, older)
    (newer / "state.json").write_bytes(b"{}")
    found, skipped = store.newest()
    assert found.step == 2 and str(newer) in skipped[0]


def test_a_checkpoint_of_another_trial_or_name_is_refused(tmp_path):
    store = Checkpoints(tmp_path, TRIAL)
    path = store.save(checkpoint())
    shutil.copytree(path, tmp_path / "checkpoints" / ("b" * 64) / path.name)
    with pytest.raises(DamagedCheckpoint, match="another trial"):
        Checkpoints(tmp_path, "b" * 64).read(path.name)
    path.rename(path.with_name("step-00000009-epoch-0001"))
    with pytest.raises(DamagedCheckpoint, match="another one's name"):
        store.read("step-00000009-epoch-0001")


@pytest.mark.fault("kill", "killed while a checkpoint is written or removed", "what is half there is swept up, the "
                   "whole one is used")
def test_what_a_kill_leaves_half_written_is_swept_up(tmp_path):
    store = Checkpoints(tmp_path, TRIAL)
    path = store.save(checkpoint())
    for leftover in (".staged-xyz", f".removed-{path.name}"):
        shutil.copytree(path, path.with_name(leftover))
    assert store.newest()[0].step == 4
    assert [entry.name for entry in store.folder.iterdir()] == [path.name]


@pytest.mark.fault("bytes", "a record is cut or has a flipped bit",
                   "set aside in quarantine/, only its trial runs again")
@pytest.mark.parametrize("name", ["record.json", "predictions.npz"])
def test_a_damaged_record_is_quarantined(tmp_path, name):
    store = RecordStore(tmp_path)

    def publish():
        record = TrialRecord(trial_id=TRIAL, setting_id="s", state="complete", config={},
                             metrics={"test": {"loss": 0.5}})
        store.publish(record, {"test_logits": np.arange(6, dtype=np.float32).reshape(3, 2)})
        return store.folder(TRIAL) / name

    whole = publish().read_bytes()
    contents = list(damaged(whole))
    for content in contents[::len(contents) // 150]:  # each one is fsynced twice
        if name == "record.json" and _parses_to(content, json.loads(whole)):
            continue  # white space between the fields: the same record
        publish().write_bytes(content)
        assert store.load_complete(TRIAL) is None and not store.folder(TRIAL).exists()
    assert len(list((tmp_path / "quarantine").iterdir())) > 100


def _parses_to(content, same):
    try:
        return json.loads(content) == same
    except ValueError:
        return False


def test_predictions_that_do_not_belong_to_the_record_are_refused(tmp_path):
    store = RecordStore(tmp_path)
    record = store.publish(TrialRecord(trial_id=TRIAL, setting_id="s", state="complete", config={}),
                           {"test_logits": np.zeros((3, 2), np.float32)})
    (store.folder(TRIAL) / "predictions.npz").write_bytes(b"PK")
    with pytest.raises(CorruptRecord):
        store.predictions(record)


@pytest.mark.fault("bytes", "encoded data in the cache is cut or has a flipped bit", "built again")
def test_damaged_encoded_data_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    right = {"ids": np.arange(40, dtype=np.int32)}
    encoded_cache.cached("k" * 64, lambda: right)
    (path, _), = encoded_cache.entries()
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        assert [whole for _, whole in encoded_cache.entries()] == [False]
    built = []
    assert encoded_cache.cached("k" * 64, lambda: built.append(1) or right)["ids"].tolist() == list(range(40))
    assert built == [1] and [whole for _, whole in encoded_cache.entries()] == [True]


@pytest.mark.fault("bytes", "cached activations are cut or have a flipped bit", "computed again")
@pytest.mark.parametrize("name", ["data.npy", "manifest.json"])
def test_damaged_activations_are_not_read(tmp_path, name):
    store = PrefixStore(tmp_path)
    with store.writer("key", (8, 4), np.dtype(np.float32), {}) as writer:
        writer.array[:] = 1.5
        writer.publish(1.0)
    path = store.folder("key") / name
    whole = path.read_bytes()
    facts = json.loads(whole) if name == "manifest.json" else None
    for content in damaged(whole):
        path.unlink()
        path.write_bytes(content)
        entry = store.read("key")
        if entry is not None:  # a flip in what the manifest says about cost or age touches no activation
            assert facts is not None and (entry.array == 1.5).all()
    path.unlink()
    path.write_bytes(whole)
    assert (store.read("key").array == 1.5).all()
