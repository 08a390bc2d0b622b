"""Hub data sets, served on loopback by a small stand-in for the hub's file and search endpoints."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40
CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: plain/train.csv}
  - {split: validation, path: plain/dev.csv}
  - {split: test, path: plain/test.csv}
- config_name: other
  data_files: other/train.csv
---
"""


def rows(n, label, word="word"):
    return "text,label\n" + "".join(f"{'NA' if i == 3 else f'{word} {i}'},{label(i)}\n" for i in range(n))


REPOSITORIES = {
    "org/tiny": {
        "README.md": CARD, "plain/train.csv": rows(60, lambda i: i % 2),
        "plain/dev.csv": rows(10, lambda i: i % 2, "dev"), "plain/test.csv": rows(20, lambda i: -1, "test"),
        "other/train.csv": rows(40, lambda i: "xy"[i % 2]),
    },
    "org/scripted": {"README.md": "hello", "scripted.py": "open('/tmp/finetune-ran-a-script', 'w')"},
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, content):
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/":
            return self.answer(200)
        if path == "/api/datasets":
            return self.json([{"id": name, "_id": name} for name in REPOSITORIES])
        for name, files in REPOSITORIES.items():
            if path.startswith(f"/api/datasets/{name}/tree/"):
                return self.json([{"type": "file", "path": file, "size": len(text), "oid": oid(text)}
                                  for file, text in files.items()])
            if path.startswith(f"/api/datasets/{name}"):
                return self.json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})
            if path.startswith(f"/datasets/{name}/resolve/"):
                text = files.get(path.removeprefix(f"/datasets/{name}/resolve/").split("/", 1)[1])
                if text is None:
                    return self.answer(404, X_Error_Code="EntryNotFound")
                return self.answer(200, text.encode(), ETag=f'"{oid(text)}"')
        return self.answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


def oid(text):
    return hashlib.sha1(text.encode()).hexdigest()


CLIENT = """
import json, sys, time
from finetune.config import TrialConfig
from finetune.data import load_task_data
from finetune.data.sources import hub
from finetune.data.sources.catalog import cached_datasets
from finetune.errors import FinetuneError

def load(**knobs):
    data = load_task_data(TrialConfig.from_mapping(knobs))
    return {"rows": {name: len(split) for name, split in data.splits.items()}, "names": data.label_names,
            "notes": data.notes, "rejected": len(data.rejected), "fingerprint": data.fingerprint,
            "texts": sorted(text for split in data.splits.values() for (text,) in split.texts)[:2]}

def attempt(action):
    began = time.monotonic()
    try:
        result = action()
    except FinetuneError as error:
        result = [type(error).__name__, error.exit_code, str(error)]
    return {"result": result, "seconds": time.monotonic() - began}

print(json.dumps({
    "plain": attempt(lambda: load(dataset_name="org/tiny", dataset_config_name="plain")),
    "other": attempt(lambda: load(dataset_name="org/tiny", dataset_config_name="other")),
    "no configuration": attempt(lambda: load(dataset_name="org/tiny")),
    "wrong configuration": attempt(lambda: load(dataset_name="org/tiny", dataset_config_name="plian")),
    "wrong name": attempt(lambda: load(dataset_name="org/tinny")),
    "script": attempt(lambda: load(dataset_name="org/scripted")),
    "configurations": attempt(lambda: hub.hub_configurations("org/tiny")),
    "search": attempt(lambda: hub.search_hub("tiny")),
    "cached": cached_datasets(),
}))
"""


def ask(home, endpoint):
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", CLIENT]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(with the hub, without it) for the same questions and the same cache."""
    home = tmp_path_factory.mktemp("hf")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    online = ask(home, endpoint)
    server.shutdown()
    server.server_close()
    return online, ask(home, endpoint)


def test_a_hub_set_is_loaded_checked_and_split(answers):
    plain = answers[0]["plain"]["result"]
    assert plain["rows"] == {"train": 48, "validation": 10, "test": 12}
    assert plain["rejected"] == 0
    assert plain["texts"][0] == "NA"
    assert any("no labels (20 rows)" in note for note in plain["notes"])
    assert answers[0]["other"]["result"]["names"] == ["x", "y"]


def test_configurations_and_names_that_are_not_there_get_the_nearest(answers):
    online = answers[0]
    assert online["configurations"]["result"] == ["plain", "other"]
    for question, words in {
        "no configuration": "choose a configuration with dataset_config_name: plain, other",
        "wrong configuration": "the configurations of org/tiny are plain, other; did you mean plain?",
        "wrong name": "did you mean org/tiny?",
    }.items():
        kind, code, message = online[question]["result"]
        assert (kind, code) == ("DataError", 4)
        assert words in message


@pytest.mark.fault("input", "a data set that comes with a script", "refused; the script does not run")
def test_no_data_set_script_runs(answers):
    kind, _, message = answers[0]["script"]["result"]
    assert kind == "DataError"
    assert "scripts are no longer supported" in message
    assert not Path("/tmp/finetune-ran-a-script").exists()


def test_search_and_the_list_of_cached_sets(answers):
    assert answers[0]["search"]["result"] == list(REPOSITORIES)
    assert answers[0]["cached"]["org/tiny"] == ["other", "plain"]


def test_offline_a_loaded_set_is_the_same_and_its_note_says_where_it_is_from(answers):
    online, offline = answers
    for question in ("plain", "other"):
        assert offline[question]["result"]["fingerprint"] == online[question]["result"]["fingerprint"]
        assert any("local copy" in note for note in offline[question]["result"]["notes"])
    assert sorted(offline["configurations"]["result"]) == ["other", "plain"]
    assert "did you mean plain" in offline["wrong configuration"]["result"][2]


def test_offline_everything_else_ends_within_seconds_and_says_what_to_do(answers):
    offline = answers[1]
    for question in ("wrong name", "script", "search"):
        kind, code, message = offline[question]["result"]
        assert (kind, code) == ("EnvironmentProblem", 5)
        assert "cannot be reached" in message
        assert offline[question]["seconds"] < 10
    assert "available offline: rotten_tomatoes_mini, wnut17_mini, org/tiny" in offline["wrong name"]["result"][2]
