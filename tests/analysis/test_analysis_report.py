"""The report's files: what they say is what was measured, and text from data is inert in them."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from records import TaggedWorld, World, make_trial, publish, sweep_trials
from reports import EVIL, Page, trials_of

from analysis.figures.plots_cost import spent
from analysis.load.records import load_directory
from analysis.report.report import make_curves, make_report, write_report
from finetune.cli import main as cli
from finetune.errors import ConfigError

WITHOUT_TORCH = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate", "wandb", "optuna", "datasets"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refused())
from finetune.cli import main
raise SystemExit(main(sys.argv[1:]))
"""
MARKUP = "{{ 7*7 }} |*c* $d$ \\input{x} & 9%"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    publish(folder, trials_of(World(rows=150)))
    return write_report([str(folder)])


def figure_of(report, name):
    """Drawn when it is asked for: most of a report's time."""
    return next(figure for figure in report.figures if figure.name == name).svg


def page_of(report):
    return Page((report.folder / "report.html").read_text())


def test_the_page_says_what_summary_json_says(written):
    summary = json.loads((written.folder / "summary.json").read_text())
    page = page_of(written)
    assert json.loads(page.texts["summary"]) == summary
    assert page.texts["answer"] == summary["headline"] and page.texts["details"] == " ".join(summary["details"])
    shown = {float(value): text for value, text in page.cells if value and re.fullmatch(r"-?[\d.e-]+", value)}
    for entry in summary["curve"]:
        for name in ("estimate", "low", "high"):
            assert shown[entry[name]] == f"{100 * entry[name]:.1f}"
    for warning in summary["warnings"]:
        assert warning["text"] in page.texts["warnings"]


def test_summary_keeps_its_contract(written):
    summary = written.summary
    assert {"sweep", "dataset", "model", "train_size", "metric", "split", "seeds", "curve", "deepest_safe_freeze",
            "interval_method", "population", "n_seeds", "n_examples", "detectable_margin", "comparisons", "pareto",
            "warnings"} <= set(summary)
    assert {"freeze_depth", "strategy", "learning_rate", "head_size", "estimate", "low", "high", "values",
            "trainable_parameters", "train_seconds", "peak_memory_bytes"} <= set(summary["curve"][0])
    assert summary["split"] == "test" and summary["seeds"] == [3, 4, 5, 6, 7, 8] and summary["n_examples"] == 150
    for entry in summary["curve"]:
        assert entry["estimate"] == pytest.approx(np.mean(list(entry["values"].values())))
    assert [entry["freeze_depth"] for entry in summary["curve"]] == [0, 2, 6]


def test_every_document_is_there(written):
    found = {str(path.relative_to(written.folder)) for path in written.folder.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "summary.json", "tables/trials.csv", "tables/trials.parquet",
            "tables/epochs.csv", "tables/epochs.parquet", "tables/examples.parquet", "tables/examples.csv.gz",
            "tables/curve.tex", "tables/comparisons.tex", "figures/curve.svg", "figures/differences.svg",
            "figures/pareto-train-seconds.svg", "figures/pareto-peak-memory-bytes.svg",
            "figures/pareto-trainable-share.svg", "figures/equal-compute.svg",
            "figures/grid-learning_rate.svg", "figures/learning.svg", "figures/classes.svg",
            "figures/budget.svg"} <= found


def test_equal_compute_is_the_best_epoch_so_far_against_time(tmp_path):
    world, best = World(rows=60), {2: 1, 3: 3}
    publish(tmp_path, [make_trial(world, freeze_depth=depth, seed=seed, best_epoch=best[seed])
                       for depth in (0, 2) for seed in (2, 3)])
    (curve,) = make_curves(load_directory(tmp_path))
    full, frozen = spent(curve)
    assert (full.seconds, frozen.seconds) == ([30, 60, 90], [35, 65, 95])  # 5 s for its prefix
    level = np.mean([trial.record.metrics["validation"]["accuracy"] for trial in curve.points[0].trials])
    np.testing.assert_allclose(full.best, level - np.array([0.04, 0.02, 0.0]) / 2)  # one seed is there from the start


def test_tables_are_tidy_and_equal_in_both_formats(written):
    folder = written.folder / "tables"
    trials, epochs = (pd.read_parquet(folder / f"{name}.parquet") for name in ("trials", "epochs"))
    for name, table in (("trials", trials), ("epochs", epochs)):
        csv = pd.read_csv(folder / f"{name}.csv")
        pd.testing.assert_frame_equal(csv, table.where(table.notna(), np.nan).astype(csv.dtypes), check_dtype=False)
    examples = pd.read_parquet(folder / "examples.parquet")
    again = pd.read_csv(folder / "examples.csv.gz")
    assert len(trials) == 28 and len(epochs) == 28 * 3 and len(examples) == len(again) == 28 * 150
    accuracy = examples.groupby("trial_id", observed=True)["score"].mean()
    by_id = trials.set_index("trial_id")["test_accuracy"]
    assert accuracy.loc[by_id.index].to_numpy() == pytest.approx(by_id.to_numpy(), abs=1e-6)
    frozen = trials[trials.freeze_depth == 6]
    assert frozen.learning_rate.isna().all() and trials[trials.freeze_depth == 2].learning_rate.notna().all()


def test_figures_are_svg_that_follow_light_and_dark_and_fetch_nothing(written):
    for path in (written.folder / "figures").glob("*.svg"):
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "currentColor" in text and "prefers-color-scheme:dark" in text and "<script" not in text
        assert not re.findall(r'(?:href|src)="(?!#)', text) and "@import" not in text and "url(http" not in text


def test_the_page_is_self_contained(written):
    page = page_of(written)
    for tag, attributes in page.attributes:
        assert tag not in ("img", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "default-src 'none'" in (written.folder / "report.html").read_text()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Labels, sweep, data set, notes and error texts are markup."""
    folder = tmp_path_factory.mktemp("hostile")
    world = World(rows=150, classes=3)
    world.names = [EVIL, MARKUP, "\x1b[31m\u202eevil"]
    record = {"environment": {"device": EVIL, "threads": 2}}
    trials = trials_of(world, sweep=f"sweep {EVIL}", dataset_name=f"data{EVIL}", record=record)
    for entry, _ in trials:
        entry.data["notes"] = [f"note {EVIL} {MARKUP}"]
    publish(folder, trials)
    return write_report([str(folder)])


@pytest.mark.fault("input", "script and markup in labels, texts and names", "inert in report.html and SVG")
def test_text_from_data_is_inert_in_html_and_svg(hostile, written):
    text = (hostile.folder / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == page_of(written).tags.count("script")
    assert not [name for _, attributes in page.attributes for name in attributes if name.startswith("on")]
    assert json.loads(page.texts["summary"]) == hostile.summary
    assert "{{ 7*7 }}" in page.texts["figure-classes"]
    for path in (hostile.folder / "figures").glob("*.svg"):
        tree = ElementTree.fromstring(path.read_text())
        assert not [e for e in tree.iter() if e.tag.endswith("script")]
        assert "\x1b" not in path.read_text() and "\u202e" not in path.read_text()


@pytest.mark.fault("input", "markup in labels and names", "inert in Markdown and LaTeX")
def test_text_from_data_is_inert_in_markdown_and_latex(hostile):
    markdown = (hostile.folder / "report.md").read_text()
    assert EVIL not in markdown and re.search(r"(?<!\\)<script", markdown) is None
    for path in (hostile.folder / "tables").glob("*.tex"):
        body = path.read_text()
        assert "\\input{" not in body
        for line in body.splitlines():
            if line.endswith(r"\\"):  # as many columns as the head
                assert len(re.findall(r"(?<!\\)&", line)) == len(re.findall(r"(?<!\\)&", body.splitlines()[3]))


def test_two_machines_of_one_sweep_are_merged_and_two_sweeps_overlaid(tmp_path):
    world = World(rows=60)
    trials = sweep_trials(world, depths=(0, 2), seeds=range(1, 6))
    publish(tmp_path / "a", trials[:6])
    publish(tmp_path / "b", trials[5:])
    publish(tmp_path / "c", sweep_trials(world, depths=(0, 2), seeds=range(1, 6), sweep="other", head_size=8))
    merged = make_report([str(tmp_path / "a"), str(tmp_path / "b")])
    assert merged.folder == tmp_path / "a" / "report" and len(merged.curves) == 1
    assert merged.summary["n_seeds"] == 5 and not merged.summary["warnings"]
    overlaid = write_report([str(tmp_path / name) for name in "abc"])
    assert overlaid.folder == tmp_path / "a" / "report-overlay"
    assert overlaid.summary["sweep"] == ["demo", "other"] and overlaid.summary["curves"] == ["demo", "other"]
    across = [c for c in overlaid.summary["comparisons"] if "(other)" in c["a"] and "(demo)" in c["b"]]
    assert [c["a"] for c in across] == ["full fine-tuning (other)", "depth 2 (other)"]
    assert (overlaid.folder / "figures" / "curve.svg").exists()


def test_training_sizes_have_their_own_pictures(tmp_path):
    world, sizes = World(rows=60), (100, 200, 400)
    for size in sizes:
        record = {"data": {"fingerprint": world.fingerprint, "label_names": world.names, "rejected": 0,
                           "rows": {"train": size, "validation": 60, "test": 60}}}
        publish(tmp_path, sweep_trials(world, depths=(0, 2, 6), seeds=(1, 2, 3), train_size=size, record=record))
    report = make_report([str(tmp_path)])
    assert len(report.curves) == len(sizes)
    assert all("<svg" in figure_of(report, name) for name in ("curve", "train-size", "train-size-grid"))


def test_more_curves_than_colours_become_panels(tmp_path):
    world = World(rows=40)
    for head in range(9):
        publish(tmp_path, sweep_trials(world, depths=(0, 2), seeds=(1,), head_size=head))
    report = make_report([str(tmp_path)], by=["head_size"])
    assert len(report.curves) == 9 and figure_of(report, "curve").count("head_size") >= 9


def test_head_sizes_have_a_heatmap(tmp_path):
    world = World(rows=40)
    for head in (0, 64):
        publish(tmp_path, sweep_trials(world, depths=(0, 2), seeds=(1, 2), head_size=head))
    assert "<svg" in figure_of(make_report([str(tmp_path)]), "grid-head_size")


def test_a_probe_beside_the_curve(tmp_path):
    publish(tmp_path, sweep_trials(World(rows=40), depths=(0, 2)))
    probe = {"metric": "accuracy", "split": "test", "points": [{"freeze_depth": 0, "value": 0.6},
                                                               {"freeze_depth": 2, "value": 0.7}]}
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    assert "linear probe on 2 frozen layers (test): 70.0%" in figure_of(make_report([str(tmp_path)]), "probe")
    (tmp_path / "probe.json").write_text("{")
    assert "probe" not in {figure.name for figure in make_report([str(tmp_path)]).figures}


@pytest.mark.parametrize(("task", "classes"), [("regression", 2), ("multilabel", 2), ("classification", 30)])
def test_other_tasks_make_a_whole_report(tmp_path, task, classes):
    publish(tmp_path, sweep_trials(World(rows=60, task=task, classes=classes), depths=(0, 2)))
    report = write_report([str(tmp_path)])
    assert (report.folder / "report.html").exists()
    assert ("classes" in {figure.name for figure in report.figures}) == (task != "regression")


def test_the_command(tmp_path, capsys):
    publish(tmp_path, sweep_trials(World(rows=60), depths=(0, 2)))
    assert cli(["report", str(tmp_path), "--margin", "0.05", "--population", "this_test_set", "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["population"] == "this_test_set" and summary["deepest_safe_freeze"][0]["margin"] == 0.05
    assert "warning: margin 0.05 was chosen after the run" in err


@pytest.mark.parametrize(("arguments", "said"), [
    (["{tmp}/nowhere"], "no such directory"), (["{tmp}"], "no trial records in"),
    (["{tmp}", "--margin", "1.5"], "--margin = 1.5"), (["{tmp}", "--by", "hed_size"], "did you mean head_size"),
    (["{tmp}", "--by", "seed"], "any knob but what is compared anyway")])
def test_bad_input_is_one_sentence_and_exit_2(tmp_path, capsys, arguments, said):
    assert cli(["report", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_a_metric_that_the_records_do_not_have_is_refused(tmp_path, capsys):
    publish(tmp_path, sweep_trials(World(rows=60), depths=(0, 2)))
    assert cli(["report", str(tmp_path), "--metric", "pearson"]) == 2
    assert "allowed: " in capsys.readouterr().err


def test_the_margin_is_that_of_the_trials_that_testify(tmp_path):
    """One that was named between tuning and confirming was named before anybody saw a fresh seed."""
    world = World(rows=60)
    tuning = [make_trial(world, freeze_depth=d, learning_rate=rate, seed=s, skill=1.5, margin=0.01, phase="tune")
              for d in (0, 2) for rate in (2e-5, 5e-5) for s in (1, 2)]
    fresh = [make_trial(world, freeze_depth=d, learning_rate=rate, seed=s, skill=1.5, margin=margin, phase="confirm")
             for d, rate in ((0, 5e-5), (2, 5e-5)) for s, margin in ((11, 0.05), (12, 0.05), (13, 0.05))]
    publish(tmp_path / "a", tuning + fresh)
    summary = make_report([str(tmp_path / "a")]).summary
    assert summary["deepest_safe_freeze"][0]["margin"] == 0.05
    assert "margin" not in {warning["kind"] for warning in summary["warnings"]}
    later = [make_trial(world, freeze_depth=d, learning_rate=5e-5, seed=14, skill=1.5, margin=0.2, phase="confirm")
             for d in (0, 2)]
    publish(tmp_path / "a", later)
    summary = make_report([str(tmp_path / "a")]).summary
    told = [warning["text"] for warning in summary["warnings"] if warning["kind"] == "margin"]
    assert summary["deepest_safe_freeze"][0]["margin"] == 0.05
    assert told == ["the trials were run with different margins (0.05, 0.2); the smallest counts"]


def test_nothing_complete_says_so(tmp_path):
    publish(tmp_path, [make_trial(World(rows=20), state="failed")])
    with pytest.raises(ConfigError, match="no complete trial among 1 records"):
        write_report([str(tmp_path)])


def test_a_second_report_needs_no_torch_and_forgets_the_first_ones_figures(written):
    """The whole command in a process where torch cannot be imported."""
    stale = written.folder / "figures" / "stale.svg"
    stale.write_text("<svg/>")
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "report", str(written.folder.parent)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout and not stale.exists()


def test_what_is_kept_is_small_and_rebuilds_the_report(written, tmp_path):
    from analysis.archive import keep

    assert keep(written.folder.parent, tmp_path) == 28
    assert make_report([str(tmp_path)]).summary == written.summary
    assert len(list(tmp_path.rglob("predictions.npz"))) == 18
    assert set(np.load(next(tmp_path.rglob("predictions.npz")))) == {"test_logits", "test_labels", "test_ids"}


def test_records_alone_may_be_kept_and_give_the_same_estimates(written, tmp_path):
    from analysis.archive import keep

    assert keep(written.folder.parent, tmp_path, predictions="none") == 28 and not list(tmp_path.rglob("*.npz"))
    report = make_report([str(tmp_path)])
    assert report.summary["population"] == "this_test_set"
    assert [point["estimate"] for point in report.summary["curve"]] == pytest.approx(
        [point["estimate"] for point in written.summary["curve"]])


def test_of_logits_the_predicted_class_may_be_kept_and_gives_the_same_report(written, tmp_path):
    from analysis.archive import keep

    assert keep(written.folder.parent, tmp_path, predictions="classes") == 28
    assert make_report([str(tmp_path)]).summary == written.summary
    predicted = np.load(next(tmp_path.rglob("predictions.npz")))
    assert set(np.unique(predicted["test_logits"])) == {0.0, -np.inf} and predicted["test_logits"].dtype == np.float16
    publish(tmp_path / "tags", sweep_trials(TaggedWorld(40), depths=(0, 2), seeds=(1, 2, 3)))
    with pytest.raises(ConfigError, match="--predicted_classes = 'token_classification'.*no single class per row"):
        keep(tmp_path / "tags", tmp_path / "kept", predictions="classes")


def test_of_tags_only_the_counts_per_sentence_are_kept(tmp_path):
    from analysis.archive import keep

    run, kept = tmp_path / "run", tmp_path / "kept"
    publish(run, sweep_trials(TaggedWorld(40), depths=(0, 2), seeds=(1, 2, 3)))
    assert keep(run, kept) == 6
    again = write_report([str(kept)])
    assert again.summary == write_report([str(run)]).summary
    drawn = (again.folder / "figures" / "curve.svg").read_text()
    assert "baseline: all O" in drawn and "majority" not in drawn
    assert set(np.load(next(kept.rglob("predictions.npz")))) == {"test_counts", "test_ids"}


def test_a_figure_to_leave_out_that_no_record_has_is_refused(tmp_path):
    from analysis.archive import keep

    publish(tmp_path / "run", trials_of(World(rows=20))[:1])
    with pytest.raises(ConfigError, match="--leave_out = 'train_secnds'.*did you mean train_seconds"):
        keep(tmp_path / "run", tmp_path / "kept", ["train_secnds"])


def test_identical_settings_on_other_seeds_differ_in_nothing(tmp_path):
    world = World(rows=200)
    for name, seeds in (("null-a", range(1, 9)), ("null-b", range(11, 19))):
        publish(tmp_path / name, sweep_trials(world, depths=(0, 2), seeds=seeds, sweep=name, skill=lambda depth: 1.5))
    summary = make_report([str(tmp_path / "null-a"), str(tmp_path / "null-b")]).summary
    assert "The same depth differs between no two curves beyond chance (2 comparisons" in summary["details"][0]
    assert all("seeds not paired" in c["note"] for c in summary["comparisons"] if "(null-b)" in c["a"]
               and "(null-a)" in c["b"])
    publish(tmp_path / "null-b", sweep_trials(world, depths=(0, 2), seeds=range(11, 19), sweep="null-b",
                                              skill=lambda depth: 0.5))
    summary = make_report([str(tmp_path / "null-a"), str(tmp_path / "null-b")]).summary
    assert summary["details"][0].startswith("Between curves 2 differences in points beyond chance")
