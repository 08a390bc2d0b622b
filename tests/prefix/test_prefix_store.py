"""Entries on disk: whole or absent, built once, evicted by use; and what is worth keeping."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from finetune.cli import main as finetune
from finetune.errors import ConfigError, EnvironmentProblem
from finetune.prefix import store as store_module
from finetune.prefix.budget import disk_budget, hint_for, parse_size, worth_keeping
from finetune.prefix.store import DATA, MANIFEST, PrefixStore


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    store_module._verified.clear()
    return PrefixStore()


def write(store, key="k", rows=100, used=None):
    facts = {"model": "m", "boundary": 2, "rows": rows, "tokens": rows}
    with store.writer(key, (rows, 8), np.dtype(np.float32), facts) as writer:
        writer.array[:] = np.arange(rows * 8).reshape(rows, 8)
        writer.publish(1.5)
    if used is not None:
        os.utime(store.folder(key) / MANIFEST, (used, used))


def as_another_process(store, key="k"):
    store_module._verified.clear()
    return store.read(key)


def test_what_was_written_is_read(store):
    write(store)
    entry = as_another_process(store)
    np.testing.assert_array_equal(entry.array, np.arange(800).reshape(100, 8))
    assert entry.seconds == 1.5 and entry.facts["boundary"] == 2


def test_writing_into_what_was_read_reaches_no_other_reader(store):
    write(store)
    store.read("k").array[:] = 7
    assert as_another_process(store).array[0, 1] == 1


def test_nothing_stays_of_an_entry_that_was_not_published(store):
    with pytest.raises(KeyboardInterrupt), store.writer("k", (10, 8), np.dtype(np.float32), {}):
        raise KeyboardInterrupt
    assert store.read("k") is None and not store.folder("k").exists()


@pytest.mark.parametrize("position", [0, 60, 128, 1000, -1])
def test_a_flipped_bit_anywhere_makes_it_absent(store, position):
    write(store)
    path = store.folder("k") / DATA
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    assert as_another_process(store) is None


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_a_truncated_file_makes_it_absent(store, size):
    write(store)
    os.truncate(store.folder("k") / DATA, size)
    assert as_another_process(store) is None


@pytest.mark.parametrize("damage", [
    lambda manifest: manifest | {"key": "another"}, lambda manifest: manifest | {"layout": 0},
    lambda manifest: manifest | {"checksum": "0" * 32}, lambda manifest: {"key": "k"}, lambda manifest: [],
])
def test_a_foreign_manifest_makes_it_absent(store, damage):
    write(store)
    path = store.folder("k") / MANIFEST
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    assert as_another_process(store) is None


def test_half_a_manifest_and_missing_data_make_it_absent(store):
    write(store, "half")
    write(store, "gone")
    os.truncate(store.folder("half") / MANIFEST, 20)
    (store.folder("gone") / DATA).unlink()
    assert as_another_process(store, "half") is None and as_another_process(store, "gone") is None


def test_bytes_are_read_once_per_process_and_again_when_the_file_was_replaced(store, monkeypatch):
    write(store)
    sums = []
    checksum = store_module._checksum
    monkeypatch.setattr(store_module, "_checksum", lambda path: sums.append(path) or checksum(path))
    assert as_another_process(store) and store.read("k") and store.read("k")
    assert len(sums) == 1
    content = bytearray((store.folder("k") / DATA).read_bytes())
    content[-1] ^= 1
    (store.folder("k") / DATA).write_bytes(content)
    assert store.read("k") is None and len(sums) == 2


def test_what_was_used_least_recently_goes_first(store):
    now = time.time()
    for age, key in enumerate(["new", "old", "older"]):
        write(store, key, used=now - 100 * age)
    size = store.listing()[0].size
    store.read("old")  # is used
    gone = store.evict(2 * size)
    assert [listing.key for listing in gone] == ["older"]
    assert [listing.key for listing in store.evict(0, keep=["new"])] == ["old"]
    assert [listing.key for listing in store.listing()] == ["new"]


def test_an_evicted_entry_stays_readable_for_who_has_it_mapped(store):
    write(store)
    entry = store.read("k")
    store.remove("k")
    assert entry.array[99, 7] == 799 and store.read("k") is None


def test_a_full_disk_is_one_sentence_and_leaves_nothing(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        write(store)
    assert not store.folder("k").exists()


def test_what_a_killed_builder_left_behind_goes(store):
    for key in ("k", "abandoned"):
        store.folder(key).mkdir(parents=True)
        (store.folder(key) / f".{DATA}.1.tmp").write_bytes(b"half")
    os.utime(store.folder("abandoned"), (1, 1))
    write(store)
    assert {path.name for path in store.folder("k").iterdir()} == {DATA, MANIFEST}
    store.evict(10**9)
    assert not store.folder("abandoned").exists() and store.read("k")


def _build(root, barrier, built):
    store = PrefixStore(root)
    barrier.wait()
    with store.lock("one"):
        if store.read("k") is None:
            built.value += 1
            time.sleep(0.2)
            write(store)


def test_two_processes_build_an_entry_once(store):
    context = multiprocessing.get_context("fork")
    barrier, built = context.Barrier(2), context.Value("i", 0)
    processes = [context.Process(target=_build, args=(store.root, barrier, built)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert built.value == 1 and as_another_process(store) is not None


def test_a_lock_holds_where_the_quota_is_used_up(tmp_path):
    """An empty file can still be made there, but nothing be written into it."""
    code = ("import resource; from pathlib import Path; from finetune.files import FileLock\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
            "first, second = FileLock(Path('x')), FileLock(Path('x'))\n"
            "print(first.acquire(wait=False, note='me'), second.acquire(wait=False))")
    root = str(Path(store_module.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root},
                          capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True False\n", "")


def test_the_cache_command_shows_and_clears(store, capsys):
    write(store)
    assert finetune(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "1 entries" in shown and str(store.root) in shown
    assert finetune(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"][0]["boundary"] == 2
    assert finetune(["cache", "clear"]) == 0
    assert store.listing() == [] and "freed" in capsys.readouterr().out
    assert finetune(["cache"]) == 0 and "0 entries" in capsys.readouterr().out


@pytest.mark.parametrize("text, size", [("20GB", 20 * 10**9), ("512MiB", 2**29), ("0", 0), ("1.5 kB", 1500)])
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "3 furlongs", "nan"])
def test_what_is_no_size_is_refused_with_the_flag_and_an_example(text):
    with pytest.raises(ConfigError, match="--prefix_budget.*20GB"):
        parse_size(text)


def test_everything_wanted_is_kept_when_it_fits():
    assert worth_keeping({1: 1, 2: 1, 3: 1}, {1: 10, 2: 10, 3: 10}, 30) == {1, 2, 3}


def test_what_does_not_fit_is_chosen_by_the_passes_it_saves():
    # At 2 all of 2, 3 and 4 can start; 4 alone would serve one of them.
    assert worth_keeping({2: 5, 3: 1, 4: 1}, {2: 10, 3: 10, 4: 10}, 10) == {2}
    assert worth_keeping({2: 1, 3: 1, 4: 9}, {2: 10, 3: 10, 4: 10}, 10) == {4}
    # A pooled vector is small: it comes along.
    assert worth_keeping({2: 5, 6: 1}, {2: 10, 6: 1}, 11) == {2, 6}
    assert worth_keeping({2: 5}, {2: 10}, 9) == set()


def test_the_hint_counts_trials_per_boundary():
    told = [{"prefix_id": "a", "prefix_boundaries": [3]}, {"prefix_id": "a", "prefix_boundaries": [3]},
            {"prefix_id": "a", "prefix_boundaries": []}, {"prefix_id": "b", "prefix_boundaries": [1]}, {}]
    assert hint_for(told, 5).wanted == {"a": {3: 2}, "b": {1: 1}}


def test_the_default_budget_does_not_shrink_as_the_cache_fills(store):
    before = disk_budget(store)
    write(store, rows=100_000)
    assert disk_budget(store) == pytest.approx(before, rel=0.05)
    assert disk_budget(store, 7) == 7
