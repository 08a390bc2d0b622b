"""How a sweep begins and ends: the first worker is born first, nothing waits for what is no trial."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from finetune.results import RecordStore
from finetune.sweep import runner
from finetune.sweep.plan import Description, SweepOptions, near_each_other
from finetune.sweep.search.trials import Candidate
from finetune.sweep.spare_time import ProbeInSpareTime, SpareTime
from finetune.sweep.spec.schema import parse_spec
from finetune.sweep.workers.birth import give_birth, head_start, usable_cores, variables_for
from finetune.sweep.workers.team import Event
from sweeps import Lines, sweep

AT_BIRTH = """
import multiprocessing.process, sys

def start(process):
    print(sorted({"numpy", "optuna", "psutil", "pydantic", "sqlalchemy", "torch", "yaml"} & set(sys.modules)))
    raise KeyboardInterrupt

multiprocessing.process.BaseProcess.start = start
from finetune.cli import main
sys.exit(main(["sweep", "no_such_file"]))
"""


def toy(behaviour="", depths=(0, 2), seeds=(1, 2, 3)):
    return {"method": "grid", "parameters": {
        "dataset_name": {"value": f"toy?{behaviour}"}, "num_train_epochs": {"value": 2},
        "freeze_depth": {"values": list(depths)}, "seed": {"values": list(seeds)}}}


def pids(folder):
    return [int(line.split()[1]) for line in (folder / "starts.log").read_text().splitlines()]


def test_the_first_worker_is_born_before_anything_heavy_is_imported():
    done = subprocess.run([sys.executable, "-c", AT_BIRTH], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (130, "[]"), done.stderr


def test_a_sweep_that_is_refused_takes_its_worker_with_it(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({"method": "grid", "parameters": {"freeze_dept": {"values": [0]}}}))
    done = subprocess.run([sys.executable, "-m", "finetune", "sweep", str(file), "--output_dir", str(tmp_path / "out")],
                          capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean freeze_depth" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_a_newborn_that_nobody_adopts_is_ended():
    with head_start("2") as born:
        assert born.process.is_alive()
    assert not born.process.is_alive() and born.process.exitcode < 0


def test_the_newborn_becomes_the_first_worker_with_the_threads_that_it_shall_have(tmp_path):
    born = give_birth("worker-1", variables_for(77))
    run(tmp_path, toy("environment=1&seconds=0.2"), born)
    assert born.adopted and born.process.pid in pids(tmp_path)
    seen = [json.loads(line) for line in (tmp_path / "environment.log").read_text().splitlines()]
    assert {entry["OMP_NUM_THREADS"] for entry in seen} == {str(max(1, usable_cores() // 2))}
    assert os.environ.get("OMP_NUM_THREADS") != "77"


def run(folder, raw, born):
    options = SweepOptions(folder, task="sweep_standin", workers=2)
    return runner.run_sweep(parse_spec(raw, default_name="test"), options, Lines(), born)


def described(depths):
    candidates = [Candidate(f"trial-{number}", {"freeze_depth": depth}) for number, depth in enumerate(depths)]
    facts = {candidate.trial_id: Description({
        "trial_id": candidate.trial_id, "setting_id": "", "prefix_id": "one",
        "prefix_boundaries": [depth] if (depth := candidate.values["freeze_depth"]) else []})
        for candidate in candidates}
    return [candidate.values["freeze_depth"] for candidate in near_each_other(candidates, facts)]


@pytest.mark.parametrize(("depths", "order"), [
    ([0, 6, 3, 0, 0, 3], [0, 3, 0, 0, 3, 6]),
    ([6, 3, 6], [3, 6, 6]),
    ([0, 0], [0, 0]),
    ([2, 0], [0, 2]),
])
def test_one_trial_fills_while_the_first_one_trains(depths, order):
    assert described(depths) == order


def test_the_trial_that_fills_is_handed_out_right_after_the_first_one_without_a_prefix(tmp_path):
    sweep(tmp_path, toy("prefix=1"), workers=1)
    store = RecordStore(tmp_path)
    trials = [line.split()[0] for line in (tmp_path / "starts.log").read_text().splitlines()]
    assert [store.load_complete(trial).config["freeze_depth"] for trial in trials] == [0, 2, 0, 0, 2, 2]


class Noted(SpareTime):
    """Keeps how many trials were not done when it was offered a worker."""

    def __init__(self, folder):
        self.folder, self.offers, self.ended = folder, [], False

    def offer(self, worker):
        self.offers.append(3 - len(RecordStore(self.folder).trial_ids()))

    def end(self):
        self.ended = True


def test_spare_time_is_a_worker_s_while_others_train(tmp_path, monkeypatch):
    noted = Noted(tmp_path)
    monkeypatch.setattr(runner, "spare_time", lambda *_: noted)
    assert sweep(tmp_path, toy("seconds=0.4", depths=[0]), workers=2).exit_code == 0
    assert noted.ended and noted.offers and set(noted.offers) <= {1, 2}  # of which one is being published


def test_one_worker_has_no_spare_time(tmp_path, monkeypatch):
    noted = Noted(tmp_path)
    monkeypatch.setattr(runner, "spare_time", lambda *_: noted)
    assert sweep(tmp_path, toy(depths=[0])).exit_code == 0
    assert noted.ended and not noted.offers


def test_tuning_leaves_no_spare_time_where_trials_are_to_be_confirmed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "spare_time", lambda plan, *_: asked.append(plan.study_name) or SpareTime())
    assert sweep(tmp_path, toy(), confirm=1).exit_code == 0
    assert len(asked) == 1 and "-confirm-" in asked[0]


class FakeTeam:
    def __init__(self, *workers):
        self.workers = list(workers)

    def remove(self, worker):
        self.workers.remove(worker)


def fake_worker():
    worker = SimpleNamespace(ready=True, sent=[])
    worker.send = lambda kind, content: worker.sent.append((kind, content))
    return worker


def test_the_probe_is_asked_for_once_and_kept(tmp_path):
    first, second, view = fake_worker(), fake_worker(), Lines()
    spare = ProbeInSpareTime(tmp_path, FakeTeam(first, second), view)
    spare.offer(first)
    spare.offer(second)
    assert (first.sent, second.sent, first.ready) == ([("probe", tmp_path)], [], False)  # it takes no trial meanwhile
    spare.hear(Event(second, "ready"))
    spare.hear(Event(first, "probed", ("{}\n", None)))
    assert first.ready and (tmp_path / "probe.json").read_text() == "{}\n" and not view.lines
    spare.end()
    assert spare._team.workers == [first, second]
    spare.offer(first)
    ProbeInSpareTime(tmp_path, FakeTeam(first), view).offer(first)  # there is one already
    assert len(first.sent) == 1


def test_a_sweep_does_not_wait_for_the_probe(tmp_path):
    worker, other = fake_worker(), fake_worker()
    spare = ProbeInSpareTime(tmp_path, FakeTeam(worker, other), Lines())
    spare.offer(worker)
    spare.end()
    assert spare._team.workers == [other] and not list(tmp_path.iterdir())


def test_a_probe_that_cannot_be_made_is_said(tmp_path):
    worker, view = fake_worker(), Lines()
    spare = ProbeInSpareTime(tmp_path, FakeTeam(worker), view)
    spare.offer(worker)
    spare.hear(Event(worker, "probed", (None, "no room")))
    assert view.lines == ["no layer probe: no room"] and worker.ready and not list(Path(tmp_path).iterdir())
