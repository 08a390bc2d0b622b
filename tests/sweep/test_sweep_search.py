"""The study: every trial is queued once, handed out once, and comes back when its holder dies."""

import sqlite3

import pytest
from optuna.trial import TrialState

from finetune.errors import ConfigError, EnvironmentProblem
from finetune.sweep.search import search as search_module
from finetune.sweep.search.search import Search
from finetune.sweep.search.trials import Candidate, Outcome
from finetune.sweep.spec.points import grid_points, random_points
from finetune.sweep.spec.schema import parse_spec
from finetune.sweep.storages import DATABASE_FILE, STUDY_FILE, check_url, open_storage
from finetune.sweep.storages.sqlite import SQLiteStudy

GRID = {"method": "grid", "metric": {"name": "validation/accuracy", "goal": "maximize"}, "parameters": {
    "freeze_depth": {"values": [0, 2, 4]}, "seed": {"values": [1, 2]}, "text_column": {"values": ["a", ["a", "b"]]}}}
RANDOM = {**GRID, "run_cap": 30, "parameters": {
    "freeze_depth": {"min": 0, "max": 4},
    "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1}}}


def candidates_of(spec, points):
    return [Candidate(f"trial-{index}", point.values, point.u, "setting", "full") for index, point in enumerate(points)]


class Bench:
    """A search on a journal file, opened anew as a coordinator would after a crash."""

    def __init__(self, folder, raw=GRID):
        self.folder = folder
        self.spec = parse_spec(raw, default_name="bench")
        points = grid_points(self.spec, {}) if raw["method"] == "grid" else random_points(self.spec, 0, 5, {})
        self.candidates = candidates_of(self.spec, points)
        self.search = None

    def start(self, *, done=(), fill=None, retry_failed=True):
        if self.search is not None:
            self.search.storage.close()
        storage = open_storage(None, self.folder)
        self.search = Search(storage, self.spec, "bench", maximize=True)
        on_disk = {trial_id: Outcome("complete", 0.5, {1: 0.4, 2: 0.5}) for trial_id in done}
        self.search.fill(self.candidates if fill is None else fill, on_disk=on_disk, retry_failed=retry_failed)
        return self.search

    def drain(self):
        taken = []
        while (ticket := self.search.take()) is not None:
            taken.append(ticket.trial_id)
            self.search.complete(ticket, 0.5)
        return taken


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    if bench.search is not None:
        bench.search.storage.close()


def ids(bench):
    return [candidate.trial_id for candidate in bench.candidates]


def test_preferred_trials_come_first_wherever_they_wait(bench):
    search, everything = bench.start(), ids(bench)
    asked = []

    def last(waiting):
        asked.append(waiting)
        return everything[-1:]

    assert len(everything) > search_module.QUEUED_AT_ONCE, "the last one is not queued yet"
    assert search.take(last).trial_id == everything[-1]
    assert search.take(last).trial_id == everything[0], "it waits no more"
    assert search.take(lambda _: everything[2:3]).trial_id == everything[2]
    assert asked == [everything[0]] * 2
    assert bench.drain() == [trial_id for trial_id in everything[:-1] if trial_id not in (everything[0], everything[2])]


def test_every_candidate_is_handed_out_once_in_order(bench):
    bench.start()
    assert bench.drain() == ids(bench)
    bench.start(done=ids(bench))
    assert bench.drain() == []


def test_filling_goes_on_where_a_dead_coordinator_stopped(bench):
    bench.start(fill=bench.candidates[:5])
    bench.start()
    bench.start()
    assert sorted(bench.drain()) == sorted(ids(bench))


def test_the_first_trial_is_handed_out_before_all_are_queued(bench):
    search = bench.start()
    assert len(search.study.trials) < len(bench.candidates) == search.waiting()
    assert search.take().trial_id == ids(bench)[0]
    while search.fill_on():
        pass
    assert len(search.study.trials) == len(bench.candidates) == search.waiting() + 1
    assert [trial.user_attrs["trial_id"] for trial in search.study.trials] == ids(bench)


def test_a_coordinator_that_died_before_all_were_queued_loses_none(bench):
    ticket = bench.start().take()
    bench.search.fill_on()
    bench.search.complete(ticket, 0.5)
    bench.start(done=[ticket.trial_id])
    assert sorted(bench.drain()) == sorted(ids(bench)[1:])


def test_a_trial_of_a_dead_coordinator_comes_back_with_its_curve(bench):
    search = bench.start()
    ticket = search.take()
    search.report(ticket, 1, 0.3)
    search = bench.start()
    assert search.waiting() == len(bench.candidates)
    returned = next(t for t in search.study.trials if t.state == TrialState.WAITING and t.intermediate_values)
    assert returned.user_attrs["trial_id"] == ticket.trial_id and returned.intermediate_values == {1: 0.3}
    assert sorted(bench.drain()) == sorted(ids(bench))


def test_the_disk_decides_over_the_study(bench):
    bench.start()
    bench.drain()
    kept, lost = ids(bench)[:-1], ids(bench)[-1]
    bench.start(done=kept)  # the study calls the last one done, but its record is gone
    assert bench.drain() == [lost]


def test_what_is_on_disk_is_known_to_a_new_study(bench):
    done = ids(bench)[:3]
    search = bench.start(done=done)
    assert sorted(bench.drain()) == sorted(set(ids(bench)) - set(done))
    told = {t.user_attrs["trial_id"]: t for t in search.study.trials if t.user_attrs["trial_id"] in done}
    assert {t.value for t in told.values()} == {0.5}
    assert told[done[0]].intermediate_values == {1: 0.4, 2: 0.5}


def test_a_trial_that_failed_for_good_waits_for_the_next_start(bench):
    search = bench.start()
    failed = search.take()
    search.failed(failed, "out of memory")
    bench.drain()
    assert bench.start(done=set(ids(bench)) - {failed.trial_id}, retry_failed=False).waiting() == 0
    bench.start(done=set(ids(bench)) - {failed.trial_id})
    assert bench.drain() == [failed.trial_id]


def test_release_queues_a_trial_again(bench):
    search = bench.start()
    ticket = search.take()
    search.release(ticket)
    search.release(ticket)  # a second time changes nothing
    assert sorted(bench.drain()) == sorted(ids(bench))


def test_a_dashboard_sees_the_knobs(bench):
    trial = bench.start().study.trials[0]
    assert trial.params == {"freeze_depth": 0, "seed": 1, "text_column": "a"}
    assert bench.search.study.trials[1].params["text_column"] == "['a', 'b']"


def test_hyperband_stops_the_worse_trial_at_the_bracket(tmp_path):
    raw = {**GRID, "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 2}}
    bench = Bench(tmp_path, raw)
    search = bench.start()
    curves = [(0.1, 0.9), (0.5, 0.2), (0.1, 0.1)]
    verdicts = [[search.report(ticket, epoch, value) for epoch, value in enumerate(curve, start=1)]
                for ticket, curve in zip([search.take() for _ in curves], curves, strict=True)]
    # At iteration 2 the values are 0.9 0.2 0.1, the threshold sorted[int(3/2)] = 0.2; before it nothing stops.
    assert verdicts == [[False, False], [False, False], [False, True]]
    search.storage.close()


def test_bayes_draws_in_the_unit_cube_and_learns(tmp_path):
    bench = Bench(tmp_path, {**RANDOM, "method": "bayes"})
    search = bench.start()
    while search.waiting():
        search.complete(search.take(), 0.1)
    drawn = []
    for index in range(6):
        ticket = search.draw()
        assert set(ticket.u) == {"freeze_depth", "learning_rate"} and all(0 <= u <= 1 for u in ticket.u.values())
        search.resolved(ticket, f"drawn-{index}", "setting", "full")
        # Best where u of the learning rate is 0.8.
        search.complete(ticket, 1 - abs(ticket.u["learning_rate"] - 0.8))
        drawn.append(ticket)
    assert abs(drawn[-1].u["learning_rate"] - 0.8) < 0.1
    assert drawn[-1].values["learning_rate"] == pytest.approx(10 ** (-5 + 4 * drawn[-1].u["learning_rate"]), rel=1e-6)
    assert search.asked_for() == 5 + 6
    search = bench.start(done=[*ids(bench), *(f"drawn-{index}" for index in range(5))])
    ticket = search.take()  # drawn-5 has no record: it is run again although no list of candidates has it
    assert (ticket.trial_id, ticket.values) == ("drawn-5", drawn[-1].values)


def test_an_endless_random_search_never_draws_the_same_point_twice(tmp_path):
    bench = Bench(tmp_path, {**RANDOM, "method": "random"})
    search = bench.start(fill=[])
    first = [search.draw().values["learning_rate"] for _ in range(4)]
    search = bench.start(fill=[])
    second = [search.draw().values["learning_rate"] for _ in range(4)]
    assert len(set(first + second)) == 8


@pytest.mark.parametrize("damage", [b"", b"this is no journal", None])
def test_a_damaged_study_is_set_aside_and_rebuilt(bench, damage):
    bench.start()
    bench.drain()
    bench.search.storage.close()
    path = bench.folder / STUDY_FILE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    search = bench.start(done=ids(bench)[:4])
    assert sorted(bench.drain()) == sorted(ids(bench)[4:])
    assert len(search.storage.notes) == (damage == b"this is no journal")  # what is torn is skipped


def test_a_sweep_that_began_in_sqlite_goes_on_in_it(tmp_path):
    earlier = SQLiteStudy(tmp_path / DATABASE_FILE)
    earlier.close()
    bench = Bench(tmp_path)
    assert isinstance(bench.start().storage, SQLiteStudy) and not (tmp_path / STUDY_FILE).exists()
    bench.search.complete(bench.search.take(), 0.5)
    first = ids(bench)[0]
    assert sorted(bench.start(done=[first]).storage.notes) == [] and first not in bench.drain()
    bench.search.storage.close()


def test_another_program_s_database_is_not_touched(tmp_path):
    path = tmp_path / DATABASE_FILE
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    storage = open_storage(None, tmp_path)
    storage.close()
    (kept,) = tmp_path.glob("study.db.damaged.*")
    with sqlite3.connect(kept) as connection:
        assert connection.execute("SELECT count(*) FROM recipes").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize("url", ["sqlite:///study.db", "mysql://x", "redis://x", "journal:", "journal://host/x"])
def test_what_cannot_be_shared_is_refused(url):
    with pytest.raises(ConfigError, match="postgresql://"):
        check_url(url)


def test_an_unreachable_server_is_one_sentence_without_the_password(tmp_path):
    with pytest.raises(EnvironmentProblem) as error:
        open_storage("postgresql://me:secret@127.0.0.1:9/db", tmp_path, grace=0.2)
    assert "127.0.0.1:9" in str(error.value) and "secret" not in str(error.value)
