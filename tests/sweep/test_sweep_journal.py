"""The journal file: whatever writers die of and wherever, every trial is done once."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from optuna.trial import TrialState
from shared_study import SharedStudy

import sweeps
from finetune.errors import ConfigError
from finetune.sweep.search.search import Search
from finetune.sweep.search.trials import Candidate
from finetune.sweep.spec.schema import parse_spec
from finetune.sweep.storages import open_storage
from finetune.sweep.storages.journal_file import OwnedLock

SPEC = parse_spec(sweeps.GRID, default_name="bench")
MANY = 40
# Takes trials and completes them until none waits; says on stdout which ones it has completed.
WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    import sweeps
    from finetune.sweep.search.search import Search
    from finetune.sweep.spec.schema import parse_spec
    from finetune.sweep.storages import open_storage
    search = Search(open_storage(sys.argv[1], Path("."), grace=float(sys.argv[2])),
                    parse_spec(sweeps.GRID, default_name="bench"), "bench", owner=sys.argv[3])
    print("ready", flush=True)
    while True:
        ticket = search.take()
        if ticket is None:
            break
        search.report(ticket, 1, 0.5)
        search.complete(ticket, 0.5)
""")


def candidates(count=MANY):
    return [Candidate(f"trial-{index}", {"seed": index}, None, "setting", "full") for index in range(count)]


def open_search(path, grace=1.0):
    return Search(open_storage(f"journal:{path}", path.parent, grace=grace), SPEC, "bench", phase="confirm")


def completed(search):
    return sorted(t.user_attrs["trial_id"] for t in search.study.trials if t.state == TrialState.COMPLETE)


def drain(search, seconds=30.0):
    """Completes what waits, and what becomes stale, until nothing runs."""
    deadline = time.monotonic() + seconds
    while search.waiting() or search.running():
        assert time.monotonic() < deadline, "a trial is never taken over"
        ticket = search.take()
        if ticket is None:
            time.sleep(0.1)
            search.take_over_stale()
        else:
            search.complete(ticket, 0.5)


def kill_writers(path, kills, seed):
    search = open_search(path)
    search.fill(candidates(), on_disk={}, retry_failed=False)
    chance = random.Random(seed)
    for index in range(kills):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, f"journal:{path}", "1.0", str(index)],
                                  stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        writer.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        writer.kill()
        writer.wait()
        if chance.random() < 0.5:  # what a kill within a write leaves
            with open(path, "ab") as file:
                file.write(b'{"op_code":6,"worker_id":"gone","trial_id":0,"sta'[:chance.randint(1, 48)])
    drain(search)
    assert completed(search) == sorted(candidate.trial_id for candidate in candidates())
    assert completed(open_search(path)) == completed(search)  # who reads it anew sees the same
    assert not list(path.parent.glob("*.lock*"))


@pytest.mark.fault("sweep", "journal: writers are killed at random moments", "every trial is done once")
def test_killed_writers_lose_and_double_nothing(tmp_path):
    kill_writers(tmp_path / "study.journal", 3, seed=1)


@pytest.mark.slow
def test_twenty_killed_writers_lose_and_double_nothing(tmp_path):
    kill_writers(tmp_path / "study.journal", 20, seed=2)


@pytest.mark.parametrize("tail", [b'{"op_co', b"\0" * 100, b'{"op_code":4', b"12", b'{"seed":1}', b"\xff\xfe"])
def test_a_torn_last_line_is_skipped_by_every_reader(tmp_path, tail):
    path = tmp_path / "study.journal"
    search = open_search(path)
    search.fill(candidates(3), on_disk={}, retry_failed=False)
    with open(path, "ab") as file:
        file.write(tail)
    assert search.waiting() == 3
    search.complete(search.take(), 0.5)
    assert completed(search) == completed(open_search(path)) == ["trial-0"]


def test_a_dead_process_s_lock_is_free_at_once(tmp_path):
    program = ("import os; from pathlib import Path; from finetune.sweep.storages.journal_file import OwnedLock; "
               f"OwnedLock(Path({str(tmp_path / 'a.lock')!r}), 1000).acquire(); os._exit(0)")
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ,
                                                                     "PYTHONPATH": os.pathsep.join(sys.path)})
    lock = OwnedLock(tmp_path / "a.lock", 1000)
    assert lock.owner() and lock.acquire(wait=False)
    lock.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.fault("sweep", "journal: killed between renaming a lock and removing it", "removed when it is opened next")
def test_a_lock_that_a_killed_process_had_renamed_is_removed(tmp_path):
    dead = tmp_path / "study.journal.lock"
    program = ("import os; from pathlib import Path; from finetune.sweep.storages.journal_file import OwnedLock; "
               f"OwnedLock(Path({str(dead)!r}), 1000).acquire(); os._exit(0)")
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ,
                                                                     "PYTHONPATH": os.pathsep.join(sys.path)})
    for name in ("study.journal.lock.0a1b", "study.journal.2f.lock.0a1b"):
        os.symlink(os.readlink(dead), tmp_path / name)
    ours = OwnedLock(tmp_path / "study.journal.lock.ours", 1000)
    assert ours.acquire()
    (tmp_path / "study.journal.note.lock.txt").write_text("somebody's own")
    open_search(tmp_path / "study.journal")
    assert sorted(path.name for path in tmp_path.glob("*lock*")) == ["study.journal.lock.ours",
                                                                     "study.journal.note.lock.txt"]


def test_a_frozen_holder_blocks_for_the_grace_and_keeps_its_hands_off_afterwards(tmp_path):
    path = tmp_path / "a.lock"
    program = textwrap.dedent(f"""
        import sys; from pathlib import Path; from finetune.sweep.storages.journal_file import OwnedLock
        lock = OwnedLock(Path({str(path)!r}), 1000); lock.acquire(); print("held", flush=True)
        sys.stdin.readline(); lock.release(); print("released", flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        ours = OwnedLock(path, 0.3)
        assert not ours.acquire(wait=False)
        assert ours.acquire()
        token = ours.owner()
        holder.send_signal(signal.SIGCONT)
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "released\n"
    assert ours.owner() == token
    ours.release()
    assert not ours.owner()


def test_a_relative_path_means_the_same_file_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("journal:shared/study.journal", tmp_path)
    monkeypatch.chdir("/")
    Search(storage, SPEC, "bench", phase="confirm").fill(candidates(1), on_disk={}, retry_failed=False)
    assert json.loads((tmp_path / "shared/study.journal").read_text().splitlines()[0])["study_name"] == "bench"


@pytest.mark.parametrize("content", [b"my thesis\n", b"\x89PNG\r\n", b'{"a": 1}\n'])
def test_another_program_s_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no journal of Optuna's"):
        open_storage(f"journal:{path}", tmp_path)
    with pytest.raises(ConfigError, match=r"a folder; allowed: a file"):
        open_storage(f"journal:{tmp_path}", tmp_path)
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["thesis.txt"]


@pytest.fixture
def url(tmp_path):
    return f"journal:{tmp_path / 'shared' / 'study.journal'}"


class TestJournal(SharedStudy):
    pass
