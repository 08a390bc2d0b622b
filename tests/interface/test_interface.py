"""`import finetune`: light, typed, its examples true, its errors the commands' own."""

from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import finetune
from finetune.commands.knobs import knob_types
from finetune.interface.given import plain_value

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "results" / "rotten_tomatoes"
MODULES = ("finetune", "finetune.interface.trials", "finetune.interface.sweeps", "finetune.interface.reports",
           "finetune.interface.looking", "finetune.interface.probing")


def python(*code: str, **options):
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, **options)


def test_importing_it_loads_nothing_heavy():
    code = "import finetune, sys; dir(finetune); print({'torch', 'pandas', 'numpy', 'wandb'} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"


def test_every_public_name_is_there_and_in_the_stub():
    stub = (ROOT / "finetune" / "__init__.pyi").read_text()
    for name in finetune.__all__:
        assert getattr(finetune, name).__doc__ and f"import {name} as {name}\n" in stub
    with pytest.raises(AttributeError, match="no attribute 'run_trail'"):
        finetune.run_trail  # noqa: B018


def test_the_knobs_that_type_checkers_see_are_the_declared_ones():
    path = ROOT / "finetune" / "interface" / "knobs.py"
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(knob_types(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == knob_types()


@pytest.mark.slow
def test_a_type_checker_sees_the_knobs(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent("""\
        import finetune
        finetune.run_trial(freeze_depth=4, pooling="cls", optimizer={"beta2": 0.98}).metrics
        finetune.run_trial(freeze_dept=4)
        finetune.run_trial(pooling="first")
        finetune.make_report("runs/q").answer.upper()
        finetune.run_sweep("quickstart", set={"train_size": 100}).report().curves
        """))
    done = python("-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", "--cache-dir", str(tmp_path),
                  "mine.py", cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)})
    wrong = [line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line]
    assert wrong == ["3", "4", "6"], done.stdout + done.stderr
    assert 'did you mean "freeze_depth"' in done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_do_what_they_say(module, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "examples"  # one for all: a trial is trained once
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    if not (folder / "runs" / "example").exists():
        (folder / "runs" / "example").symlink_to(KEPT)
    monkeypatch.chdir(folder)
    ran = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert ran.attempted and not ran.failed


def test_values_as_programs_hold_them():
    given = {"a": np.int64(4), "b": Path("x") / "y", "c": range(3), "d": (np.float32(0.5), "t"), "e": np.arange(2)}
    assert plain_value(given) == {"a": 4, "b": "x/y", "c": [0, 1, 2], "d": [0.5, "t"], "e": [0, 1]}


@pytest.mark.parametrize(("call", "error", "says"), [
    (lambda: finetune.run_trial(freeze_depth=-2, learnin_rate=1), finetune.ConfigError, "learnin_rate = 1: no such"),
    (lambda: finetune.run_trial(freeze_depth=4, strategy="full"), finetune.ConfigError, "freeze_depth"),
    (lambda: finetune.run_trial(freeze_depth=7, train_size=64), finetune.ConfigError, "freeze_depth = 7"),
    (lambda: finetune.run_trial(progres=False), finetune.ConfigError, "did you mean progress"),
    (lambda: finetune.run_sweep("quickstart", set=["seed=1"]), finetune.ConfigError, "a dict of knobs and values"),
    (lambda: finetune.run_sweep("quickstart", output_dir=3), finetune.ConfigError, "output_dir = 3: allowed: a path"),
    (lambda: finetune.run_sweep("quickstart", name=3), finetune.ConfigError, "name = 3: allowed: text"),
    (lambda: finetune.run_sweep("quikstart"), finetune.ConfigError, "did you mean quickstart"),
    (lambda: finetune.run_sweep(3), finetune.ConfigError, "a dict in W&B's form"),
    (lambda: finetune.run_sweep("quickstart", confirm="3", workers=0), finetune.ConfigError, "confirm = '3'"),
    (lambda: finetune.run_sweep("quickstart", trial_timeout="soon"), finetune.ConfigError, "trial_timeout = 'soon'"),
    (lambda: finetune.run_sweep("quickstart", set={"train_sise": 3}), finetune.ConfigError, "train_sise"),
    (lambda: finetune.make_report(), finetune.ConfigError, "give the directory"),
    (lambda: finetune.make_report("nowhere"), finetune.ConfigError, "no such directory"),
    (lambda: finetune.make_report(KEPT, margin=1), finetune.ConfigError, "--margin = 1"),
    (lambda: finetune.make_report(KEPT, margin="0.01"), finetune.ConfigError, "--margin = '0.01'"),
    (lambda: finetune.make_report(KEPT, by="sed"), finetune.ConfigError, "did you mean seed"),
    (lambda: finetune.make_report(KEPT, population="all"), finetune.ConfigError, "new_text | this_test_set"),
    (lambda: finetune.predict("nowhere", ["a"]), finetune.ConfigError, "nowhere does not exist"),
    (lambda: finetune.predict("nowhere", "a text"), finetune.ConfigError, "a list of texts"),
    (lambda: finetune.predict(3, ["a"]), finetune.ConfigError, "model = 3: allowed: the record of a trial, or"),
    (lambda: finetune.predict("nowhere", pd.DataFrame({"text": ["a"]})), finetune.ConfigError, "a list of texts"),
    (lambda: finetune.predict("nowhere", None), finetune.ConfigError, "a list of texts"),
    (lambda: finetune.predict("nowhere", ["a", None]), finetune.DataError, "texts line 2: None is neither a text"),
    (lambda: finetune.inspect_model(audti=True), finetune.ConfigError, "did you mean audit"),
    (lambda: finetune.inspect_model("/no/model"), finetune.FinetuneError, "/no/model"),
])
def test_errors_are_sentences(call, error, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value) and not list(tmp_path.rglob("record.json"))


def test_a_trial_from_python_is_the_command_s(tiny_bert_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    knobs = {"model_name_or_path": tiny_bert_dir, "freeze_depth": np.int64(2), "train_size": 64, "evaluation_size": 32,
             "num_train_epochs": 1, "max_length": 32, "output_dir": tmp_path / "a"}
    record = finetune.run_trial(**knobs)
    flags = [f"--{name}={value}" for name, value in {**knobs, "output_dir": tmp_path / "b"}.items()]
    done = python("-m", "finetune", "train", *flags)
    assert done.returncode == 0, done.stderr
    (other,) = (tmp_path / "b" / "trials").iterdir()
    assert other.name == record.trial_id
    assert finetune.run_trial(**knobs).checksum == record.checksum  # not trained again
    texts = ["a joy", "a bore, and long"]
    assert finetune.predict(record, texts).equals(finetune.predict(tmp_path / "b" / "trials" / other.name, texts))
    with pytest.raises(finetune.DataError, match="reads 1 texts per row"):
        finetune.predict(record, [("a", "b")])
    with pytest.raises(finetune.DataError, match="texts line 2"):
        finetune.predict(record, ["a", " "])
    assert repr(record).startswith(f"<TrialRecord {record.trial_id[:12]}: complete, prefix:2, seed 1, best epoch 1")


def test_a_failed_trial_raises_and_its_record_is_there(tiny_bert_dir, tmp_path):
    with pytest.raises(finetune.TrialFailed) as caught:
        finetune.run_trial(model_name_or_path=tiny_bert_dir, train_size=64, evaluation_size=32, max_length=32,
                           learning_rate=10, max_grad_norm=0, head_learning_rate=10, num_train_epochs=30,
                           lr_scheduler_type="constant", mixed_precision="bf16", weight_decay=10,
                           output_dir=tmp_path, progress=False)
    assert caught.value.kind == "non-finite" and caught.value.record.state == "failed"


def test_the_report_is_the_command_s(tmp_path):
    control = KEPT.parent / "null-a"
    report = finetune.make_report(control)
    done = python("-m", "finetune", "report", str(control), "--output_dir", str(tmp_path / "command"))
    assert done.stdout.startswith(report.answer + "\n")
    page = report.save(tmp_path / "call")
    files = {path.relative_to(page.parent) for path in page.parent.rglob("*") if path.is_file()}
    assert files == {p.relative_to(tmp_path / "command") for p in (tmp_path / "command").rglob("*") if p.is_file()}
    assert (tmp_path / "call/summary.json").read_text() == (tmp_path / "command/summary.json").read_text()


def test_what_a_report_holds():
    report = finetune.make_report(KEPT)
    assert isinstance(report.curve, pd.DataFrame) and len(report.curve) == 8 and len(report.trials) == 140
    assert (report.comparisons["b"] == "full fine-tuning").all() and report.warnings
    html = report._repr_html_()
    assert report.answer.split(":")[0] in html and html.count("<svg") == 1 and len(html) < 100_000


def test_a_figure_is_ones_own_and_leaves_pyplot_alone():
    code = ("import matplotlib; matplotlib.use('agg'); import finetune;"
            f"r = finetune.make_report({str(KEPT)!r}); f = r.figure('curve'); f.axes[0].set_title('mine');"
            "assert r.figure('curve').axes[0].get_title() != 'mine';"
            "print(matplotlib.get_backend(), f._repr_png_()[:4])")
    done = python("-c", code)
    assert done.stdout == "agg b'\\x89PNG'\n", done.stderr


def test_data_as_tables(tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b,label\n" + "".join(
        f"left {i},right {i},{'yes' if i % 2 else 'no'}\n" for i in range(60)))
    data = finetune.load_data(tmp_path / "pairs.csv", text_column=["a", "b"], validation_size=0.2)
    assert data.labels == ["no", "yes"] and list(data.splits["train"].columns) == ["a", "b", "label", "id"]
    assert sum(map(len, data.splits.values())) == 60 and data.describe()["rows"].sum() == 60
    assert any("carved" in note for note in data.notes)


def test_a_model_as_a_table(tiny_bert_dir):
    layers = finetune.inspect_model(tiny_bert_dir, freeze_depth=3, audit=True)
    assert list(layers.index) == ["embeddings", "layer.0", "layer.1", "layer.2", "layer.3", "top", "head"]
    assert (layers["trainable"] > 0).tolist() == [False] * 4 + [True, False, True]
    assert layers["trainable"].sum() == layers.attrs["trainable_parameters"]
    assert layers.attrs["audit"]["deepest_trainable_layer"] == 3
