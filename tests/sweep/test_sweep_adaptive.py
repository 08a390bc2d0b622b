"""`finetune sweep --adaptive`: the same decisions whoever trains what, and whatever is killed."""

import json
import random
import time
from collections import Counter

import pytest
from tiny import save_tiny_bert

import finetune
import sweeps
from finetune.commands.sweep import closing, options_from
from finetune.errors import ConfigError, EnvironmentProblem
from finetune.results import RecordStore
from finetune.sweep.adaptive.prepare import prepared
from finetune.sweep.adaptive.words import look_text
from finetune.sweep.estimate import dry_run
from finetune.sweep.plan import SweepOptions
from finetune.sweep.spec.schema import parse_spec
from finetune.sweep.view.live import PlainView
from finetune.sweep.view.status import state_of, text_of
from sweeps import ADAPTIVE, decisions, start


def changed(data=None, **parameters):
    more = {**({"dataset_name": {"value": data}} if data else {}), **parameters}
    return {**ADAPTIVE, "parameters": {**ADAPTIVE["parameters"], **more}}


def sweep(folder, raw=ADAPTIVE, **options):
    return sweeps.sweep(folder, raw, **{"workers": 1, "adaptive": True, **options})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One worker, nothing killed, nothing trained ahead."""
    folder = tmp_path_factory.mktemp("adaptive")
    return folder, sweep(folder)


def test_it_names_the_knee_with_fewer_trials_than_the_grid(alone):
    folder, ending = alone
    section = json.loads((folder / "sweep.json").read_text())["adaptive"]
    assert section["named"] == 6 and section["done"] and section == {**section, **ending.adaptive}
    assert [d["freeze_depth"] for d in section["decisions"]] == [6, 6, 6, 9, 7]  # the bisection of 1 … 12
    assert [d["state"] for d in section["decisions"]][2:] == ["safe", "unsafe", "unsafe"]
    assert section["trained_ahead_unused"] == 0 and ending.boards[0].complete < 13 * (3 * 2 + 10) / 3
    fresh, trials = section["seeds"], list(RecordStore(folder))
    assert len(fresh) == 20 and not set(fresh) & {1, 2}
    for record in trials:
        assert record.protocol["phase"] == ("tune" if record.config["seed"] in (1, 2) else "confirm")
    looked = Counter(r.config["freeze_depth"] for r in trials if r.protocol["phase"] == "confirm")
    assert looked == {0: 10, 6: 10, 9: 5, 7: 5}  # the reference's seeds are shared
    assert "chosen for prefix:6" in closing(ending, folder)


def test_what_it_is_deciding_is_said_and_kept_for_status(alone):
    folder, ending = alone
    said = "\n".join(ending.lines)
    assert "depth 6 of 12: loses 0.0, at most 1.6 after 5 seeds; 2 more" in said
    assert "full fine-tuning: tuning among 3 settings" in said and "depth 9 of 12: 5 fresh seeds" in said
    text = text_of(state_of(folder))
    assert "the deepest depth shown to lose at most 1.0 points is depth 6 of 12" in text and "too deep" in text


def test_decisions_do_not_depend_on_what_is_trained_ahead(alone, tmp_path):
    ending = sweep(tmp_path, workers=3)
    assert decisions(tmp_path) == decisions(alone[0])
    starts = Counter(line.split()[0] for line in (tmp_path / "starts.log").read_text().splitlines())
    assert set(starts.values()) == {1}
    asked = {i for ids in json.loads((tmp_path / "sweep.json").read_text())["trials"].values() for i in ids}
    assert ending.adaptive["trained_ahead_unused"] == len(set(RecordStore(tmp_path).trial_ids()) - asked)


def test_killed_again_and_again_it_ends_with_the_same_decisions(alone, tmp_path):
    rng, raw = random.Random(3), changed("toy?layers=12&test=1000&knee=6&seconds=0.05")
    for _ in range(3):
        process = start(tmp_path, raw, adaptive=True)
        time.sleep(rng.uniform(2.0, 4.0))
        process.kill()
        process.wait()
    ending = sweep(tmp_path, raw, workers=2)
    # The data set's name is another one, and so are the settings' digests; what is decided is the same.
    assert decisions(tmp_path) == decisions(alone[0]) and ending.exit_code == 0


def test_a_failed_seed_is_left_out_and_its_depth_not_called_safe(tmp_path):
    ending = sweep(tmp_path, changed("toy?layers=12&test=1000&knee=6&fail=4", freeze_depth={"values": [0, 2]}),
                   retries=0)
    last = ending.adaptive["decisions"][-1]
    assert (last["lost"], last["state"], ending.adaptive["named"]) == (1, "futile", None) and ending.exit_code == 3
    assert "not called safe, since 1 of them has no result" in "\n".join(ending.lines)


def test_without_a_tuned_reference_there_is_no_verdict(tmp_path):
    with pytest.raises(EnvironmentProblem, match="no verdict: full fine-tuning has no complete tuning trial"):
        sweep(tmp_path, changed("toy?layers=12&test=1000&nan=1", seed={"value": 1}), retries=0)


def test_predictions_that_are_missing_have_their_sentence(tmp_path):
    with pytest.raises(EnvironmentProblem, match="has no predictions of the test rows, by which --adaptive decides"):
        sweep(tmp_path, changed("toy?layers=12"))


def test_full_fine_tuning_is_added_where_the_file_lacks_it():
    spec = prepared(parse_spec(changed(freeze_depth={"values": [4, 8]}), default_name="x"),
                    SweepOptions(None, adaptive=True, margin=0.02))
    grids = {parameter.name: list(parameter.grid()) for parameter in spec.parameters}
    assert grids["freeze_depth"] == [0, 4, 8] and grids["margin"] == [0.02]


@pytest.mark.parametrize(("raw", "given", "said"), [
    (changed(freeze_depth={"value": 0}), {}, "freeze_depth = [0]: --adaptive needs its candidates"),
    (ADAPTIVE, {"confirm": 5}, "--confirm = 5: not with --adaptive"),
    (ADAPTIVE, {"margin": 1.5}, "--margin = 1.5: allowed: a fraction above 0 and below 1"),
    (ADAPTIVE, {"max_seeds": 4}, "--max_seeds = 4: allowed: an integer >= 5"),
    (ADAPTIVE, {"adaptive": False, "max_seeds": 9}, "--max_seeds = 9: acts on nothing without --adaptive"),
    ({**ADAPTIVE, "method": "random", "run_cap": 3}, {}, "method = 'random': allowed with --adaptive: grid"),
    ({**ADAPTIVE, "early_terminate": {"type": "hyperband", "min_iter": 1}}, {},
     "early_terminate = 'hyperband': not with"),
    (changed(strategy={"values": ["full", "lp_ft:1"]}), {}, "strategy = ['full', 'lp_ft:1']: not with --adaptive"),
])
def test_wrong_input_has_its_sentence(raw, given, said, tmp_path):
    asked = {"adaptive": True, "confirm": 0, "search_seed": 0, "retries": 0, "workers": "auto", "prefix_budget": None,
             "storage": None, "output_dir": tmp_path, **given}
    with pytest.raises(ConfigError) as caught:
        options_from(asked, parse_spec(raw, default_name="x"), "x", dashes="--")
    assert said in str(caught.value)


def test_more_than_one_question_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="train_size = '20, 40': allowed with --adaptive: one value"):
        sweep(tmp_path, changed(train_size={"values": [20, 40]}))


def test_a_depth_without_any_result_is_undecided():
    from analysis.statistics.sequential import without_result

    assert look_text(3, without_result(), 6, "accuracy") == (
        "depth 3 of 6: undecided, since none of its tuning trials has a result")


def test_a_dry_run_counts_what_it_takes_beside_the_grid(tmp_path):
    parameters = {"dataset_name": {"value": "toy"}, "freeze_depth": {"values": [0, 1, 2, 3, 4]},
                  "seed": {"values": [1, 2]}, "learning_rate": {"value": 1e-3}, "num_train_epochs": {"value": 1}}
    forecast = dry_run(parse_spec({"method": "grid", "parameters": parameters}, default_name="toy"),
                       SweepOptions(tmp_path / "runs", workers=1, adaptive=True, task="sweep_standin"), PlainView())
    numbers = forecast.adaptive
    assert numbers["least"] < numbers["expected"] == forecast.trials < numbers["most"] and numbers["grid"] == 5 * 12
    assert f"adaptive, about {numbers['expected']} trials" in forecast.text() and forecast.seconds > 0


@pytest.mark.slow
def test_twelve_real_layers_from_python(tmp_path):
    model = save_tiny_bert(tmp_path / "model", layers=12, width=16)
    asked = {"method": "grid", "name": "twelve", "parameters": {
        "model_name_or_path": {"value": str(model)}, "freeze_depth": {"values": list(range(13))},
        "learning_rate": {"value": 1e-3}, "seed": {"value": 1}, "train_size": {"value": 32},
        "subset_seed": {"value": 0}, "evaluation_size": {"value": 200}, "num_train_epochs": {"value": 1},
        "max_length": {"value": 8},
        "save_model": {"value": False}}}
    options = {"adaptive": True, "max_seeds": 7, "margin": 0.3, "workers": 1, "progress": False}
    first = finetune.run_sweep(asked, output_dir=tmp_path / "out", **options)
    assert first.adaptive["named"] == 12
    assert [d["freeze_depth"] for d in first.adaptive["decisions"]] == [6, 9, 11, 12]
    again = finetune.run_sweep(asked, output_dir=tmp_path / "out", **options)
    assert again.adaptive == first.adaptive
    assert "depth 12 of 12" in first.text
