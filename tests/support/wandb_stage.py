"""A stage for the real clients of W&B: a server on the loopback interface, a folder, a small model, a clean home."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from wandb_server import API_KEY, Run, WandbServer

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
DIRECT = ["${env}", "${interpreter}", "-m", "finetune.train", "${args}"]
LAUNCHED = ["accelerate", "launch", "--num_cpu_threads_per_process", "1", "-m", "finetune.train", "${args}"]
PATIENCE = 280.0  # seconds for anything that has to happen: the machine may be busy


class Stage:
    """What a test directs. Every process that it starts is ended with it."""

    def __init__(self, server: WandbServer, folder: Path, model: Path):
        self.server, self.folder, self.model = server, folder, model
        self.processes: list[subprocess.Popen] = []
        self.outputs: list[Path] = []

    def environment(self, **extra: str) -> dict[str, str]:
        path = os.pathsep.join([str(BIN), os.environ["PATH"]])
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return self.server.environment(self.folder, PATH=path, PYTHONPATH=python_path, OMP_NUM_THREADS="1",
                                       TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", **extra)

    def knobs(self, **changes: Any) -> dict[str, Any]:
        """A trial of a second."""
        return {"model_name_or_path": str(self.model), "train_size": 32, "evaluation_size": 16, "num_train_epochs": 2,
                "per_device_train_batch_size": 8, "max_length": 32, "prefix_cache": False, "head_learning_rate": 0.01,
                "output_dir": str(self.folder / "out"), **changes}

    def sweep_file(self, *, command: list[str] = DIRECT, top: dict[str, Any] | None = None, **parameters: Any) -> Path:
        """A sweep's YAML; a list among `parameters` is searched, a mapping stands as it is."""
        described = {name: _parameter(value) for name, value in self.knobs(**parameters).items()}
        content = {"program": "finetune.train", "command": command, "method": "grid", "name": "staged",
                   "metric": {"name": "validation/accuracy", "goal": "maximize"}, "parameters": described,
                   "project": "stage", **(top or {})}
        path = self.folder / "sweep.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def start(self, *command: str, **extra: str) -> subprocess.Popen:
        """A command in the background; its output goes to a file (see `output`)."""
        log = self.folder / f"output-{len(self.outputs)}.txt"
        self.outputs.append(log)
        with open(log, "wb") as file:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment(**extra), stdout=file,
                                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        process.log = log
        self.processes.append(process)
        return process

    def run(self, *command: str, **extra: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        process = self.start(*command, **extra)
        return process.wait(PATIENCE), process.log.read_text()

    def train(self, *flags: str, extra: dict[str, str] | None = None, **changes: Any) -> tuple[int, str]:
        arguments = [f"--{name}={value}" for name, value in self.knobs(**changes).items()]
        return self.run(sys.executable, "-m", "finetune.train", *arguments, *flags, **(extra or {}))

    def wandb_sweep(self, *arguments: str) -> str:
        """`wandb sweep …`; returns ENTITY/PROJECT/ID."""
        code, output = self.run("wandb", "sweep", *arguments)
        assert code == 0, output
        return re.search(r"wandb agent (\S+)", output).group(1)

    def agent(self, sweep: str, *arguments: str, **extra: str) -> subprocess.Popen:
        return self.start("wandb", "agent", *arguments, sweep, **extra)

    def runs(self) -> list[Run]:
        return list(self.server.state.runs.values())

    def finish(self, *agents: subprocess.Popen) -> None:
        """Wait until the agents end by themselves."""
        for agent in agents:
            code = agent.wait(PATIENCE)
            assert code == 0, agent.log.read_text()

    def texts(self) -> dict[str, str]:
        """Everything that was written, sent or shown: files of the stage and what the server was told."""
        found = {str(path): path.read_bytes().decode("utf-8", "replace")
                 for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()}
        for run in self.runs():
            found[f"run {run.name}"] = repr((run.config, run.summary, run.history, run.output, run.attributes))
        found |= {f"blob {key}": blob.decode("utf-8", "replace") for key, blob in self.server.state.blobs.items()}
        return found

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.left_behind():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def left_behind(self) -> list[psutil.Process]:
        """Trainers, launchers and wandb-core that belong to this stage and still live."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return (process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
                    and process.environ().get("HOME") == str(self.folder))
        return False


def _parameter(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"values" if isinstance(value, list) else "value": value}


@contextmanager
def stage(folder: Path, model: Path) -> Iterator[Stage]:
    with WandbServer() as server:
        director = Stage(server, folder, model)
        try:
            yield director
        finally:
            director.close()


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What `condition` gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"after {seconds:.0f} s still not: {what}")


def keys_in(texts: dict[str, str]) -> list[str]:
    """Where the API key stands, plain or as the client sends it."""
    import base64

    secrets = (API_KEY, base64.b64encode(f"api:{API_KEY}".encode()).decode())
    return [name for name, text in texts.items() if any(secret in text for secret in secrets)]
