"""`finetune new`: the file it writes is one that `finetune sweep` and `wandb sweep` take, however it was answered."""

import json
import sys

import pytest
import yaml

from finetune.cli import main
from finetune.config import TrialConfig
from finetune.data.load import clear_memory
from finetune.sweep.spec.draft import default_depths


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    clear_memory()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": 4}))
    return tmp_path / "model"


@pytest.fixture
def pairs(tmp_path):
    rows = [{"left": f"one {i}", "right": f"two {i}", "target": i / 7} for i in range(60)]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs"


def new(*arguments):
    return main(["new", *map(str, arguments)])


def test_flags_alone_write_a_sweep_that_can_run(pairs, model, tmp_path, capsys):
    from finetune.sweep.spec.schema import load_spec

    assert new("--dataset_name", pairs, "--text_column", "['left', 'right']", "--model_name_or_path", model,
               "--learning_rate=1e-5,3e-05", "--freeze_depth=[-1, 0, 4]", "--seed=7") == 0
    path = tmp_path / capsys.readouterr().out.strip()
    assert path == tmp_path / "sweeps" / "pairs_model.yaml"
    spec = load_spec(path)
    assert (spec.method, spec.metric.name, spec.metric.goal) == ("grid", "validation/pearson", "maximize")
    written = yaml.safe_load(path.read_text())
    assert written["command"] == ["accelerate", "launch", "-m", "finetune.train", "${args}"]
    assert written["parameters"]["text_column"] == {"value": ["left", "right"]}
    assert written["parameters"]["learning_rate"] == {"values": [1e-5, 3e-5]}
    assert written["parameters"]["freeze_depth"] == {"values": [-1, 0, 4]}
    assert written["parameters"]["seed"] == {"value": 7}
    assert written["parameters"]["save_model"] == {"value": False}
    point = {name: body.get("value", body.get("values", [None])[0]) for name, body in written["parameters"].items()}
    TrialConfig.from_mapping(point)
    assert "6 trials" in path.read_text().splitlines()[1]


def test_what_was_guessed_is_said(tmp_path, model, capsys):
    lines = "".join(f"{['x', 'y'][row % 2]};das Paket {row} ist da;{'ABC'[row % 3]}\n" for row in range(40))
    (tmp_path / "a.csv").write_text("Art;Inhalt;Stufe\n" + lines)
    assert new("--dataset_name", "a.csv", "--model_name_or_path", model) == 0
    assert "note: the label column is guessed to be 'Art'; it could be 'Stufe'" in capsys.readouterr().err


def test_small_numbers_are_numbers_to_yaml(pairs, model, tmp_path):
    new("--dataset_name", pairs, "--model_name_or_path", model, "--learning_rate=1e-5", "--name", "x")
    assert "learning_rate: {value: 1.0e-05}" in (tmp_path / "sweeps" / "x.yaml").read_text()


def test_a_file_that_is_there_is_not_replaced_without_force(model, tmp_path, capsys):
    arguments = ["--model_name_or_path", model, "--name", "mine"]
    assert new(*arguments) == 0
    before = (tmp_path / "sweeps" / "mine.yaml").read_text()
    assert new(*arguments, "--seed=9") == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "sweeps" / "mine.yaml").read_text() == before
    assert new(*arguments, "--seed=9", "--force") == 0
    assert (tmp_path / "sweeps" / "mine.yaml").read_text() != before


def test_a_name_stays_in_its_folder(model, tmp_path, capsys):
    assert new("--model_name_or_path", model, "--name", "../../etc/\x1b[31mevil") == 0
    assert (tmp_path / capsys.readouterr().out.strip()).parent == tmp_path / "sweeps"


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--freeze_depth=5"], 2, "has 4 layers; allowed: -1 to 4"), (["--freeze_depth=-2"], 2, "freeze_depth = -2"),
    (["--freeze_depth=[]"], 2, "allowed: a list"), (["--seed=x"], 2, "seed = 'x'"),
    (["--dataset_name", "nothing.csv"], 4, "no such file"), (["--label_column", "lable"], 4, "did you mean label"),
    (["--learning_rate=1e9"], 2, "learning_rate"),
])
def test_mistakes_write_nothing(model, tmp_path, capsys, arguments, code, words):
    assert new("--model_name_or_path", model, *arguments) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "sweeps").exists()


def test_a_model_whose_layers_nobody_knows_needs_depths(tmp_path, capsys):
    assert new("--model_name_or_path", "org/unknown") == 2
    assert "give --freeze_depth" in capsys.readouterr().err
    assert new("--model_name_or_path", "org/unknown", "--freeze_depth=0,2") == 0


@pytest.mark.parametrize("layers", [1, 2, 4, 6, 12, 24, 28, 32])
def test_default_depths_are_few_and_hold_both_ends(tmp_path, layers):
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": layers}))
    depths = default_depths(str(tmp_path))
    assert depths == sorted(set(depths))
    assert (depths[0], depths[-1]) == (0, layers)
    assert len(depths) <= 8


def answered(keys, given):
    """What `ask` returns when these keys are pressed."""
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from finetune.commands.views.questions import ask

    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        return ask(given)


ENTER, DOWN, CLEAR = "\r", "\x1b[B", "\x15"


def test_answers_on_a_terminal(pairs, model):
    keys = [
        f"{pairs}{ENTER}",  # data set
        DOWN + ENTER, DOWN + ENTER,  # text column: not as found but the first; its pair: the next one
        ENTER,  # label: as found
        CLEAR + f"{model}{ENTER}", ENTER, CLEAR + "[1, 2]" + ENTER, ENTER,  # model, depths, seeds, name
    ]
    answers = answered("".join(keys), {})
    assert answers == {
        "dataset_name": str(pairs), "text_column": "['left', 'right']", "model_name_or_path": str(model),
        "freeze_depth": "[0, 1, 2, 3, 4]", "seed": "[1, 2]", "name": "pairs_model",
    }


def test_a_data_set_that_is_not_there_is_asked_again(pairs, model, capsys):
    given = {"text_column": "left", "label_column": "target", "name": "x", "model_name_or_path": str(model),
             "freeze_depth": "0", "seed": "1"}
    assert answered(f"{pairs.parent}/pears{ENTER}{pairs}{ENTER}", given)["dataset_name"] == str(pairs)
    assert "there is no such file or folder; did you mean pairs?" in capsys.readouterr().err


def test_what_was_given_as_a_flag_is_not_asked(pairs, model):
    given = {"dataset_name": str(pairs), "text_column": "left", "label_column": "target", "name": "x",
             "model_name_or_path": str(model), "freeze_depth": "0", "seed": "1"}
    assert answered("", given) == given


def test_a_configuration_is_picked_by_typing_a_part_of_it(tmp_path, model):
    for name in ("cola", "mrpc", "stsb"):
        (tmp_path / "glue" / name).mkdir(parents=True)
        (tmp_path / "glue" / name / "train.jsonl").write_text('{"text": "a b c", "label": 1}\n' * 9)
    given = {"dataset_name": str(tmp_path / "glue"), "model_name_or_path": str(model), "freeze_depth": "0", "seed": "1",
             "name": "x"}
    assert answered("rp" + ENTER + ENTER + ENTER, given)["dataset_config_name"] == "mrpc"


def test_an_interrupted_question_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt):
        answered("\x03", {})
