"""Hostile configuration: whatever comes in, a valid configuration or one clean error comes out, and nothing runs."""

from __future__ import annotations

import os
import pickle
import shutil
import string
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config import KNOBS, TrialConfig
from finetune.errors import ConfigError, FinetuneError
from finetune.models import load_backbone
from finetune.sweep.spec.schema import load_spec
from finetune.sweep.spec.yaml_file import parse_yaml
from finetune.train import parse_argv
from finetune.training.checkpoint import Checkpoints

HOSTILE = ["../../etc/passwd", "; touch pwned", "$(touch pwned)", "`touch pwned`", "a\nb", "\x1b[31m", "\x00", "\u202e",
           "<script>alert(1)</script>", "!!python/object/apply:os.system ['true']", "%(x)s", "{0.__class__}", "'" * 50,
           "__import__('os').system('true')", "[1, 2", "{'a': 1", "1e999", "nan", "-0", "0x10", "1_000", "١٢", " 4 "]
scalars = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(HOSTILE)
           | st.binary(max_size=4))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["beta1", "beta2", "x", "value"]), inner, max_size=3), max_leaves=6)


@pytest.mark.fault("input", "any value for any knob (fuzz)", "a valid configuration or a clean error")
@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*KNOBS, "optimizer"]) | st.text(max_size=10) | st.sampled_from(HOSTILE), values,
                       max_size=4))
def test_any_knobs_give_a_configuration_or_a_clean_error(raw):
    try:
        config = TrialConfig.from_mapping(raw)
    except ConfigError as error:
        assert error.problems and "Traceback" not in str(error)
        assert all(line.isprintable() for line in str(error).splitlines())
        return
    assert TrialConfig.from_mapping(config.model_dump()) == config
    for name in KNOBS:
        assert isinstance(config.get(name), str | int | float | bool | list | type(None))


@pytest.mark.fault("input", "any command line (fuzz)", "knobs and flags, or a clean error")
@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=12) | st.sampled_from(HOSTILE)
                | st.builds("--{}={}".format, st.sampled_from(sorted(KNOBS)), st.text(max_size=8)), max_size=5))
def test_any_command_line_gives_knobs_or_a_clean_error(argv):
    try:
        knobs, _ = parse_argv(argv)
        TrialConfig.from_mapping(knobs)
    except FinetuneError as error:
        assert error.exit_code == 2


@pytest.mark.fault("input", "any text as YAML (fuzz)", "plain values or a clean error")
@settings(max_examples=400, deadline=None)
@given(st.text(alphabet=string.printable + "\x00\x1b\u202eé☃", max_size=80)
       | st.lists(st.sampled_from(["a: ", "&x ", "*x", "- ", "!!python/name:os.system ", "[", "]", "{", "}", "\n", "  ",
                                   "method: grid", "<<: *x", "? ", "|", ">", "'", '"', "#", "--- "]),
                  max_size=25).map("".join))
def test_any_text_as_yaml_gives_plain_values_or_a_clean_error(text):
    try:
        content = parse_yaml(text, "fuzz.yaml")
    except ConfigError:
        return
    assert yaml.safe_dump(content) is not None
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        try:
            load_spec(Path(file.name))
        except ConfigError as error:
            assert error.problems


class Runs:
    """Unpickling it leaves a file behind."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.fault("input", "a model whose weights are pickled", "refused with what to do; nothing is unpickled")
def test_a_pickled_model_is_refused(tmp_path, tiny_bert_dir):
    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(Runs(tmp_path / "ran"), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickle can run any code"):
        load_backbone(TrialConfig(model_name_or_path=str(folder)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault("input", "a pickle in the place of a checkpoint", "skipped with a sentence; nothing is unpickled")
@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_pickle_in_a_checkpoint_is_not_opened(tmp_path, name):
    folder = tmp_path / "checkpoints" / "t" / "step-00000001-epoch-0001"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    found, skipped = Checkpoints(tmp_path, "t").newest()
    assert found is None and len(skipped) == 1 and not (tmp_path / "ran").exists()


@pytest.mark.fault("input", "a model that wants trust_remote_code", "refused, never asked on stdin")
def test_a_model_with_its_own_code_is_refused(tmp_path, tiny_bert_dir):
    import json

    folder = shutil.copytree(tiny_bert_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    with pytest.raises(ConfigError, match="trust_remote_code = False.*its own code"):
        load_backbone(TrialConfig(model_name_or_path=str(folder)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault("input", "shell syntax in a value on the command line", "text like any other")
def test_shell_syntax_is_text(tmp_path):
    done = subprocess.run([sys.executable, "-m", "finetune", "train", f"--output_dir={tmp_path}",
                           f"--model_name_or_path=$(touch {tmp_path}/pwned); touch {tmp_path}/pwned"],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"})
    assert done.returncode in (2, 5) and "Traceback" not in done.stderr and not (tmp_path / "pwned").exists()
