"""load_task_data: from a folder or file to three checked splits, or one sentence that says what is wrong."""

import json
import os
import zipfile

import numpy as np
import pytest

from finetune.config import TrialConfig
from finetune.data import load_task_data
from finetune.data.load import clear_memory
from finetune.errors import ConfigError, DataError, EnvironmentProblem


@pytest.fixture(autouse=True)
def _fresh():
    clear_memory()


def load(path, **knobs):
    return load_task_data(TrialConfig.from_mapping({"dataset_name": str(path), **knobs}))


def rows(n, start=0, label=lambda i: i % 2):
    return [{"text": f"text number {start + i}", "label": label(i)} for i in range(n)]


def write(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


def test_the_bundled_set():
    data = load("rotten_tomatoes_mini")
    assert sizes(data) == {"train": 4000, "validation": 1000, "test": 2000}
    assert (data.task, data.label_names, data.num_outputs) == ("classification", ["negative", "positive"], 2)
    assert data.splits["train"].ids[17] == "train:17"
    assert data.splits["train"].labels.dtype == np.int64
    assert not data.rejected
    assert not data.notes


@pytest.mark.parametrize(("train", "validation", "test"), [
    ("train", "validation", "test"), ("training", "dev", "testing"), ("Train", "val", "Test"),
    ("trainset", "devset", "testdata"), ("train", "eval", "test"),
    ("train-00000-of-00001", "valid-00000-of-00001", "test-00000-of-00001"), ("my_train", "my_dev", "my_test"),
])
def test_splits_are_recognised_by_their_names(tmp_path, train, validation, test):
    write(tmp_path, **{train: rows(20), validation: rows(6, 100), test: rows(8, 200)})
    data = load(tmp_path)
    assert sizes(data) == {"train": 20, "validation": 6, "test": 8}
    assert data.splits["test"].texts[0] == ("text number 200",)


def test_splits_in_folders_and_shards(tmp_path):
    write(tmp_path / "data" / "train", part0=rows(10), part1=rows(10, 10))
    write(tmp_path / "data", **{"test-00000-of-00002": rows(5, 100), "test-00001-of-00002": rows(5, 105)})
    data = load(tmp_path, validation_size=4)
    assert sizes(data) == {"train": 16, "validation": 4, "test": 10}
    assert len(set(data.splits["test"].ids)) == 10


def test_an_exact_name_beats_a_name_that_contains_it(tmp_path):
    write(tmp_path, train=rows(20), dev=rows(4, 50), dev_ids=rows(9, 60), test=rows(6, 80))
    data = load(tmp_path)
    assert sizes(data)["validation"] == 4
    assert "dev_ids.jsonl is not used" in data.notes


def test_two_files_for_one_split_are_an_error(tmp_path):
    write(tmp_path, train=rows(20), test_a=rows(5), test_b=rows(5))
    with pytest.raises(DataError, match="test split: test_a.jsonl, test_b.jsonl"):
        load(tmp_path)


def test_files_whose_names_say_nothing_are_an_error_that_lists_them(tmp_path):
    write(tmp_path, alpha=rows(20), beta=rows(5))
    with pytest.raises(DataError, match="no file's name says its split.*alpha.jsonl, beta.jsonl"):
        load(tmp_path)


def test_a_single_file_is_carved_with_notes(tmp_path):
    write(tmp_path, anything=rows(100))
    for place in (tmp_path, tmp_path / "anything.jsonl"):
        data = load(place, test_size=0.2, validation_size=10)
        assert sizes(data) == {"train": 70, "validation": 10, "test": 20}
        carved = [note.split(" carved")[0] for note in data.notes if "carved" in note]
        assert carved == ["test split", "validation split"]


def test_the_split_depends_on_split_seed_alone(tmp_path):
    path = write(tmp_path, train=rows(100))
    knobs = ({"seed": 1}, {"seed": 2}, {"split_seed": 1})
    one, same, other = (load(path, **chosen).splits["test"].ids.tolist() for chosen in knobs)
    assert one == same != other


def test_splits_inside_one_json_file(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps({"train": rows(20), "dev": rows(4, 50), "test": rows(6, 80)}))
    for place in (tmp_path, tmp_path / "all.json"):
        assert sizes(load(place)) == {"train": 20, "validation": 4, "test": 6}


def test_several_sets_in_one_folder_are_configurations(tmp_path):
    write(tmp_path / "mrpc", train=rows(20), dev=rows(4, 50), test=rows(6, 80))
    write(tmp_path / "cola", train=rows(30), dev=rows(4, 50), test=rows(6, 80))
    assert sizes(load(tmp_path, dataset_config_name="cola"))["train"] == 30
    with pytest.raises(DataError, match="choose one with dataset_config_name: cola, mrpc"):
        load(tmp_path)
    with pytest.raises(DataError, match="configurations are cola, mrpc; did you mean mrpc"):
        load(tmp_path, dataset_config_name="mprc")


def test_an_unlabelled_test_split_is_replaced_by_one_from_train(tmp_path):
    for label in (lambda i: -1, lambda i: None, lambda i: ""):
        write(tmp_path, train=rows(100), validation=rows(10, 200), test=rows(30, 300, label))
        data = load(tmp_path)
        assert sizes(data) == {"train": 80, "validation": 10, "test": 20}
        assert any("test split has no labels (30 rows)" in note for note in data.notes)
        assert set(data.splits["test"].ids) <= {f"train:{i}" for i in range(100)}


def test_a_test_split_without_a_label_column_is_unlabelled(tmp_path):
    write(tmp_path, train=rows(100), test=[{"text": "no label here"}] * 5)
    assert sizes(load(tmp_path)) == {"train": 70, "validation": 10, "test": 20}


def test_minus_one_is_a_class_when_it_is_one(tmp_path):
    data = load(write(tmp_path, train=rows(90, label=lambda i: i % 3 - 1)))
    assert data.label_names == ["-1", "0", "1"]
    assert data.splits["train"].labels.min() == 0


def test_minus_one_among_named_classes_is_no_label(tmp_path):
    write(tmp_path, train=rows(90, label=lambda i: -1 if i == 7 else i % 2))
    (tmp_path / "info.json").write_text(json.dumps({"label_names": ["no", "yes"]}))
    data = load(tmp_path)
    assert data.label_names == ["no", "yes"]
    assert [str(row) for row in data.rejected] == ["train.jsonl line 8: the label is -1 (not published)"]


@pytest.mark.parametrize(("labels", "names"), [
    (["ham", "spam"], ["ham", "spam"]), ([" b", "a "], ["a", "b"]), ([True, False], ["False", "True"]),
    ([3, 1, 2, 10], ["1", "2", "3", "10"]), (["1", "2"], ["1", "2"]), ([1.0, 2.0, 3.0], ["1", "2", "3"]),
    (["NA", "null"], ["NA", "null"]), ([f"c{i:03}" for i in range(300)], [f"c{i:03}" for i in range(300)]),
])
def test_classes(tmp_path, labels, names):
    data = load(write(tmp_path, train=rows(1200, label=lambda i: labels[i % len(labels)])))
    assert (data.task, data.label_names, data.num_outputs) == ("classification", names, len(names))
    train = data.splits["train"]
    for i in range(20):
        row = int(train.ids[i].split(":")[1])
        original = labels[row % len(labels)]
        original = int(original) if isinstance(original, float) else original
        assert names[train.labels[i]] == str(original).strip()


@pytest.mark.parametrize("label", [
    lambda i: i / 7, lambda i: f"{i / 7:.3f}", lambda i: 2.5 if i == 50 else float(i % 5),
])
def test_numbers_with_fractions_are_a_regression(tmp_path, label):
    data = load(write(tmp_path, train=rows(100, label=label)))
    assert (data.task, data.label_names, data.num_outputs) == ("regression", None, 1)
    assert data.splits["train"].labels.dtype == np.float32
    row = int(data.splits["train"].ids[3].split(":")[1])
    assert data.splits["train"].labels[3] == np.float32(label(row))


def test_whole_numbers_are_scores_when_the_knob_says_so(tmp_path):
    path = write(tmp_path, train=rows(100, label=lambda i: i % 5))
    assert load(path).task == "classification"
    assert load(path, task="regression").task == "regression"


def test_many_whole_numbers_with_gaps_are_scores_and_the_data_says_it(tmp_path):
    data = load(write(tmp_path, train=rows(200, label=lambda i: (i % 40) ** 2)))
    assert data.task == "regression"
    assert any("set task: classification" in note for note in data.notes)


def test_lists_are_multilabel(tmp_path):
    names = ["a", "b", "c"]
    for label in (lambda i: [names[i % 3], names[(i + 1) % 3]] if i % 4 else [], lambda i: f"{[names[i % 3]]}"):
        data = load(write(tmp_path, train=rows(60, label=label)))
        assert (data.task, data.label_names) == ("multilabel", names)
        row = int(data.splits["train"].ids[0].split(":")[1])
        truth = label(row)
        assert [name for name, flag in zip(names, data.splits["train"].labels[0], strict=True) if flag] == sorted(
            eval(truth) if isinstance(truth, str) else truth)


def test_lists_of_numbers_take_the_names_of_info_json(tmp_path):
    write(tmp_path, train=rows(60, label=lambda i: [i % 3]))
    (tmp_path / "info.json").write_text(json.dumps({"label_names": ["x", "y", "z", "never"]}))
    data = load(tmp_path)
    assert (data.task, data.num_outputs, data.label_names[3]) == ("multilabel", 4, "never")


def test_several_columns_of_zero_and_one_are_multilabel(tmp_path):
    lines = ["id,comment_text,toxic,insult", *(f"{i},some words number {i},{i % 2},{i % 3 // 2}" for i in range(60))]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    data = load(tmp_path)
    assert (data.task, data.label_names, data.label_column) == ("multilabel", ["toxic", "insult"], "toxic, insult")
    row = int(data.splits["train"].ids[0].split(":")[1])
    assert data.splits["train"].labels[0].tolist() == [row % 2, row % 3 // 2]
    assert load(tmp_path, label_column="toxic").task == "classification"


def test_pairs(tmp_path):
    pairs = [{"s1": f"one {i}", "s2": f"two {i}", "label": i % 2} for i in range(40)]
    data = load(write(tmp_path, train=pairs))
    assert data.text_columns == ("s1", "s2")
    assert all(len(row) == 2 for split in data.splits.values() for row in split.texts)
    assert load(tmp_path, text_column="s2").text_columns == ("s2",)


def test_rows_that_cannot_be_used_are_reported_with_line_and_reason(tmp_path):
    content = rows(30)
    content[3]["text"] = "   "
    content[4]["text"] = None
    content[5]["text"] = ["a", "list"]
    content[6]["label"] = None
    content[7]["label"] = " "
    content[8]["text"] = 1984
    write(tmp_path, train=content, test=rows(10, 100))
    data = load(tmp_path, validation_size=4)
    assert [str(row) for row in data.rejected] == [
        "train.jsonl line 4: 'text' is empty", "train.jsonl line 5: 'text' is missing",
        "train.jsonl line 6: 'text' is not text but ['a', 'list']", "train.jsonl line 7: the label is missing",
        "train.jsonl line 8: the label is missing",
    ]
    assert sum(sizes(data).values()) == 35
    assert ("1984",) in data.splits["train"].texts + data.splits["validation"].texts


def test_the_text_na_stays_text(tmp_path):
    words = ["NA", "null", "None", "nan", "N/A", "", *(f"word {i}" for i in range(20))]
    lines = ["text,label", *(f"{word},{'NA' if i % 2 else 'null'}" for i, word in enumerate(words))]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    data = load(tmp_path, validation_size=2, test_size=2)
    assert {row[0] for split in data.splits.values() for row in split.texts} == {*words} - {""}
    assert [str(row) for row in data.rejected] == ["train.csv line 7: 'text' is empty"]
    assert data.label_names == ["NA", "null"]


def test_text_that_runs_into_unnamed_columns_is_joined(tmp_path):
    lines = ["v1,v2,,,", *(f"{'ham' if i % 2 else 'spam'},caf\u00e9 {i},\u00a35 off, now," for i in range(40))]
    (tmp_path / "spam.csv").write_bytes("\n".join(lines).encode("cp1252"))
    data = load(tmp_path / "spam.csv")
    assert data.label_names == ["ham", "spam"]
    assert ("caf\u00e9 7,\u00a35 off, now",) in [row for split in data.splits.values() for row in split.texts]
    assert any("cp1252" in note for note in data.notes)
    assert any("runs on" in note for note in data.notes)


@pytest.mark.parametrize(("content", "message"), [
    (rows(40, label=lambda i: "only"), "one class only"),
    ([{"text": " ", "label": i % 2} for i in range(40)], "no row can be used.*'text' is empty"),
    (rows(40, label=lambda i: None), "no column looks like a label|cannot be used; .*the label is missing"),
    (rows(40, label=lambda i: float("nan") if i == 9 else i / 3), "line 10: label nan is not a finite number"),
    (rows(40, label=lambda i: float("inf") if i == 9 else i / 3), "line 10: label inf is not a finite number"),
    (rows(40, label=lambda i: 1e300 if i == 9 else i / 3), "line 10: label 1e.300 is not a finite number"),
    (rows(40, label=lambda i: "n/a" if i == 9 else f"{i / 3}"), "line 10: label 'n/a' is not a number"),
    (rows(400, label=lambda i: f"free text {i}"), "looks like free text"),
    (rows(40, label=lambda i: {"a": 1}), "no column looks like a label.*'label.a'"),
    (rows(40, label=lambda i: [{"a": 1}]), "line 1: label .* holds"),
    (rows(40, label=lambda i: [1] if i else 3), "line 2: label .1. is a list"),
])
def test_labels_that_make_no_task_are_refused_with_their_line(tmp_path, content, message):
    write(tmp_path, train=content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_unparsable_targets_are_refused_when_regression_is_asked_for(tmp_path):
    write(tmp_path, train=rows(40, label=lambda i: "good" if i == 5 else i))
    with pytest.raises(DataError, match="train.jsonl line 6: label 'good' is not a finite number"):
        load(tmp_path, task="regression")


def test_a_label_that_train_never_has_is_refused(tmp_path):
    write(tmp_path, train=rows(40), test=rows(10, 100, lambda i: i % 3))
    with pytest.raises(DataError, match="label '2' occurs in test .row test:2. but never in train"):
        load(tmp_path)


def test_a_folder_without_train_is_refused(tmp_path):
    write(tmp_path, test=rows(10), validation=rows(10))
    with pytest.raises(DataError, match="no train split; there are 'validation', 'test'|no train split"):
        load(tmp_path)


def test_size_knobs_that_do_not_fit_are_configuration_errors(tmp_path):
    write(tmp_path, train=rows(40))
    with pytest.raises(ConfigError, match="test_size = 500"):
        load(tmp_path, test_size=500)


@pytest.mark.parametrize("name", ["./nothing", "nothing.csv", "a/b/c", "/no/such/folder", "~/no/such/thing"])
def test_a_path_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        load(name)


def test_a_mistyped_path_gets_the_nearest(tmp_path):
    write(tmp_path, train=rows(40))
    with pytest.raises(DataError, match="did you mean train.jsonl"):
        load(tmp_path / "trian.jsonl")


@pytest.mark.parametrize("name", ["not a hub id", "../up", "a\\b", "-x", "org/na me"])
def test_names_that_cannot_be_hub_ids_ask_nobody(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        load(name)


def test_a_hub_set_that_is_not_here_offline_says_what_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="cannot be reached.*rotten_tomatoes_mini") as caught:
        load("rotten_tomatoes")
    assert caught.value.exit_code == 5
    assert "did you mean rotten_tomatoes_mini" in str(caught.value)


def test_a_data_set_is_read_once_until_its_file_changes(tmp_path):
    path = write(tmp_path, train=rows(40))
    first = load(path)
    assert load(path, learning_rate=1e-4, seed=9) is first
    write(tmp_path, train=rows(50))
    assert sum(sizes(load(path)).values()) == 50


@pytest.mark.fault("input", "a data folder with links that lead out of it", "not followed")
def test_links_that_lead_out_of_the_folder_are_not_read(tmp_path):
    write(tmp_path / "outside", secret=rows(40))
    inside = write(tmp_path / "inside", train=rows(60, 100))
    os.symlink(tmp_path / "outside" / "secret.jsonl", inside / "test.jsonl")
    os.symlink(tmp_path / "outside", inside / "validation")
    data = load(inside)
    assert sum(sizes(data).values()) == 60
    assert any(note.startswith("test.jsonl is not used: it leads out of the folder") for note in data.notes)


def test_links_inside_a_hub_snapshot_are_read(tmp_path):
    blobs = write(tmp_path / "blobs", abc=rows(40))
    snapshot = tmp_path / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    os.symlink(blobs / "abc.jsonl", snapshot / "train.jsonl")
    assert sum(sizes(load(snapshot)).values()) == 40


@pytest.mark.fault("input", "archives in a data folder, with paths that lead out of it", "not opened; refused by name")
def test_archives_are_not_opened(tmp_path):
    inside = write(tmp_path / "inside", train=rows(60))
    with zipfile.ZipFile(inside / "test.zip", "w") as archive:
        archive.writestr("../../escaped.jsonl", json.dumps(rows(1)[0]))
        archive.writestr("test.jsonl", "".join(json.dumps(row) + "\n" for row in rows(40)))
    before = sorted(tmp_path.rglob("*"))
    assert sum(sizes(load(inside)).values()) == 60
    with pytest.raises(DataError, match=r"test\.zip: \.zip is not a data format"):
        load(inside / "test.zip")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.fault("input", "pipes and odd names in a data folder", "inert, never waited for")
def test_pipes_and_odd_names_are_inert(tmp_path):
    write(tmp_path, train=rows(40))
    os.mkfifo(tmp_path / "test.jsonl")
    (tmp_path / "\x1b[31mevil\n[bold].jsonl").write_text("")
    data = load(tmp_path)
    assert sum(sizes(data).values()) == 40
    assert not any("\x1b" in note or "\n" in note for note in data.notes)
    assert len([note for note in data.notes if "is not used" in note]) == 2


@pytest.mark.fault("input", "text that is no valid Unicode", "cleaned before the tokenizer")
def test_unpaired_surrogates_do_not_reach_the_tokenizer(tmp_path):
    content = rows(40)
    content[0]["text"] = "broken \ud800 emoji"
    data = load(write(tmp_path, train=content), test_size=2, validation_size=2)
    texts = [row[0] for split in data.splits.values() for row in split.texts]
    assert "broken \ufffd emoji" in texts


@pytest.mark.parametrize("info", ["[1, 2]", "{bad", '{"label_names": 3, "text_keys": "t"}', '{"text_keys": ["gone"]}'])
def test_an_info_file_of_another_kind_does_no_harm(tmp_path, info):
    write(tmp_path, train=rows(40))
    (tmp_path / "info.json").write_text(info)
    assert load(tmp_path).text_columns == ("text",)


def test_what_save_to_disk_wrote(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_list(rows(60), features=features)
    other = datasets.Dataset.from_list(rows(20, 100), features=features)
    datasets.DatasetDict({"train": made, "test": other}).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert data.label_names == ["no", "yes"]
    assert sizes(data) == {"train": 54, "validation": 6, "test": 20}


def test_a_missing_part_of_a_split_is_noted(tmp_path):
    write(tmp_path, **{"train-00000-of-00003": rows(40), "train-00002-of-00003": rows(40, 100), "test": rows(10, 500)})
    assert "1 of 3 parts of train are not there" in load(tmp_path).notes


def test_mnlis_second_validation_split_is_not_the_validation_split(tmp_path):
    write(tmp_path, train=rows(40), dev_matched=rows(6, 100), dev_mismatched=rows(8, 200), test=rows(10, 300))
    data = load(tmp_path)
    assert sizes(data)["validation"] == 6
    assert "dev_mismatched.jsonl is not used" in data.notes


def test_glues_cola_as_it_is_downloaded(tmp_path):
    """Train has no header, test has one, other columns and no labels; GLUE counts Matthews."""
    folder = tmp_path / "glue_data" / "CoLA"
    folder.mkdir(parents=True)
    lines = "".join(f"gj04\t{row % 2}\t\tthe sentence number {row}\n" for row in range(60))
    (folder / "train.tsv").write_text(lines)
    (folder / "dev.tsv").write_text(lines.replace("number", "no."))
    (folder / "test.tsv").write_text("index\tsentence\n" + "".join(f"{row}\tunknown {row}\n" for row in range(9)))
    data = load(folder)
    assert all(text.startswith("the sentence number") for (text,) in data.splits["train"].texts)
    assert (sizes(data)["validation"], data.label_column, data.glue_metric) == (60, "column_2", "matthews")
    assert any("test split has no labels (9 rows)" in note for note in data.notes)
    assert load(write(tmp_path / "cola", train=rows(60))).glue_metric is None


def test_rows_on_which_annotators_did_not_agree_are_rejected(tmp_path):
    content = [{"premise": f"a b {i}", "hypothesis": "c d", "gold_label": ["yes", "no", "-"][i % 3]} for i in range(60)]
    data = load(write(tmp_path, train=content))
    assert data.label_names == ["no", "yes"]
    assert len(data.rejected) == 20
    assert data.rejected[0].reason == "the label is '-' (the annotators did not agree)"


@pytest.mark.parametrize(("content", "message"), [
    (rows(5), "there are 5 usable rows to make splits from; at least 6 are needed"),
    (rows(60, label=lambda i: i), "60 different values in 60 rows.*id"),
    (rows(60, label=lambda i: f"{i},5"), "numbers with a decimal comma .'0,5'.; write a point"),
])
def test_labels_and_rows_that_cannot_be_split_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, train=content))


def test_a_constant_target_is_refused(tmp_path):
    with pytest.raises(DataError, match="every training target is 1.5"):
        load(write(tmp_path, train=rows(40, label=lambda i: 1.5)), task="regression")


def test_labels_that_differ_in_capitals_are_noted(tmp_path):
    data = load(write(tmp_path, train=rows(60, label=lambda i: ["Spam", "spam", "ham"][i % 3])))
    assert "labels that differ in capitals only are different classes: 'Spam', 'spam'" in data.notes


def test_a_label_of_multilabel_rows_that_train_never_has_is_noted(tmp_path):
    write(tmp_path, train=rows(40, label=lambda i: [["a"], ["a", "b"]][i % 2]),
          test=rows(10, 100, label=lambda i: ["a", "z"]))
    data = load(tmp_path)
    assert data.label_names == ["a", "b", "z"]
    assert "1 labels occur in validation or test but never in train: 'z'" in data.notes


def test_a_label_that_cannot_be_written_is_rejected(tmp_path):
    content = rows(40)
    content[3]["label"] = "\ud800"
    data = load(write(tmp_path, train=[{**row, "label": str(row["label"])} for row in content]))
    assert data.label_names == ["0", "1"]
    assert "bytes that are no text" in data.rejected[0].reason
