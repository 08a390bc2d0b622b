"""`finetune export --push_to_hub` with huggingface_hub's client, against a hub on the loopback interface."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.config import TrialConfig
from finetune.results import RecordStore
from finetune.trial import run_trial

pytestmark = pytest.mark.timeout(600)  # against a hang only: one process exports several times


class Hub(BaseHTTPRequestHandler):
    """What creating a model repository and one commit need; every file comes inside the commit."""

    def do_GET(self):
        if self.path.startswith("/api/models/"):
            name = self.path.removeprefix("/api/models/")
            if name not in self.server.repositories:
                return self.answer({"error": "Repository not found"}, 404)
            return self.answer({"id": name, "private": self.server.repositories[name]["private"], "siblings": []})
        return self.answer({"name": "tester", "type": "user"})

    def do_HEAD(self):
        self.answer({})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            if asked.get("organization") == "others":
                return self.answer({"error": "You don't have the rights to create a model under others"}, 403)
            name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
            if name in server.repositories:
                return self.answer({"error": "You already created this model repo", "url": f"{self.root}/{name}"}, 409)
            server.repositories[name] = {
                "private": asked.get("private") or asked.get("visibility") == "private", "files": {}}
            return self.answer({"url": f"{self.root}/{name}", "name": name})
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    server.repositories[name]["files"][line["value"]["path"]] = content
            return self.answer({"commitUrl": f"{self.root}/{name}/commit/1", "commitOid": "1" * 40})
        return self.answer({"warnings": [], "errors": []})

    @property
    def root(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, content, status=200):
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def kept(tiny_bert_dir, tmp_path_factory):
    """The folder of a trial whose model was kept."""
    root = tmp_path_factory.mktemp("kept")
    outcome = run_trial(TrialConfig.from_mapping({
        "model_name_or_path": str(tiny_bert_dir), "train_size": 16, "evaluation_size": 8, "num_train_epochs": 1,
        "max_length": 16, "freeze_depth": 2, "output_dir": str(root)}))
    store = RecordStore(root)
    store.publish(outcome.record, outcome.predictions)
    return store.folder(outcome.record.trial_id)


REFUSED = {
    ("others/model", "hf_good"): "the hub refuses: .*don't have the rights",
    ("bad name", "hf_good"): "--push_to_hub = 'bad name': allowed: USER/NAME",
    ("tester/model", "hf_bad"): "the hub refuses: Invalid username or password",
    ("tester/model", ""): "needs a token",
}

# One process for all calls: each imports torch, and the client takes the hub's address when it is imported.
CALLS = """
import contextlib, io, json, os, sys
from finetune.cli import main
told = []
for arguments, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(["export", *arguments])
    told.append([code, out.getvalue(), err.getvalue()])
print("TOLD" + json.dumps(told))
"""


def export(hub, home, calls, **extra):
    """[code, stdout, stderr] of each call, (arguments, token)."""
    environment = {key: value for key, value in os.environ.items()
                   if not key.lower().endswith("_proxy") and key != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
                    "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", **extra}
    done = subprocess.run([sys.executable, "-c", CALLS, json.dumps(calls)], capture_output=True, text=True,
                          env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("TOLD")[2])


@pytest.fixture(scope="module")
def told(hub, kept, tmp_path_factory):
    """What each call says, by its repository and token; the first one's folder is `whole`."""
    home = tmp_path_factory.mktemp("home")
    hub.repositories["tester/public"] = {"private": False, "files": {}}
    asked = {("tester/my-model", "hf_good"): [str(home / "whole"), "--private"],
             ("tester/public", "hf_good"): ["--private"], **{call: [] for call in REFUSED}}
    calls = [([str(kept), *arguments, "--push_to_hub", repository], token)
             for (repository, token), arguments in asked.items()]
    return dict(zip(asked, export(hub, home, calls), strict=True)) | {"whole": home / "whole"}


def test_a_model_goes_to_the_hub_with_its_card(hub, told):
    code, out, err = told["tester/my-model", "hf_good"]
    assert code == 0, err
    repository = hub.repositories["tester/my-model"]
    assert repository["private"] is True and "tester/my-model" in out
    written = {path.name: path.read_bytes() for path in told["whole"].iterdir()}
    assert repository["files"] == written and b"base_model:" in written["README.md"]
    assert "model.safetensors" in written


def test_a_public_repository_does_not_get_what_shall_be_private(hub, told):
    code, _, err = told["tester/public", "hf_good"]
    assert code == 2 and "there already, and public" in err, err
    assert not hub.repositories["tester/public"]["files"]


def is_refused(hub, repository, said, code, err):
    assert code in (2, 5) and re.search(said, err), err
    assert "Traceback" not in err and repository not in hub.repositories


@pytest.mark.parametrize("call", REFUSED, ids=" ".join)
def test_what_the_hub_refuses_is_one_sentence(hub, told, call):
    code, _, err = told[call]
    is_refused(hub, call[0], REFUSED[call], code, err)


def test_without_network_it_is_one_sentence_too(hub, kept, tmp_path):
    call = [str(kept), "--push_to_hub", "tester/model"], "hf_good"
    ((code, _, err),) = export(hub, tmp_path, [call], HF_HUB_OFFLINE="1")
    is_refused(hub, "tester/model", "cannot be reached", code, err)


@pytest.mark.parametrize(("arguments", "said"), [([], "TARGET is missing"), (["there", "--private"], "--private says")])
def test_what_does_not_go_together(kept, capsys, arguments, said):
    assert main(["export", str(kept), *arguments]) == 2
    assert said in capsys.readouterr().err
