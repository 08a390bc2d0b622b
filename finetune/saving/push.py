"""`finetune export … --push_to_hub REPO`: an exported folder as a model repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from finetune.errors import ConfigError, EnvironmentProblem, Problem

KNOB = "--push_to_hub"


def check_repository(repository: str) -> None:
    """Before anything is written. Raises ConfigError for a name that the hub would refuse, EnvironmentProblem where
    nobody is logged in or the hub is out of reach."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id
    from huggingface_hub.utils._validators import HFValidationError

    from finetune.data.sources.hub import hub_is_reachable

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError([Problem(KNOB, repository, "allowed: USER/NAME or NAME, of letters, digits, - _ and ., at "
                                   "most 96 characters")]) from error
    if get_token() is None:
        raise EnvironmentProblem(f"{KNOB} needs a token of the hub with write access: `hf auth login`, or HF_TOKEN")
    if not hub_is_reachable():
        raise EnvironmentProblem(f"{KNOB}: the hub cannot be reached (or HF_HUB_OFFLINE is set); export to a folder "
                                 "now, and upload that later with `hf upload REPO FOLDER`")


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Create the repository where it is not there yet, and upload the folder as one commit; returns its address.

    Raises EnvironmentProblem, with the hub's reason, when it refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(address.repo_id).private:  # one that was there already stays as it is
            raise ConfigError([Problem("--private", repository, "this repository is there already, and public; choose "
                                       "another name, or make it private first")])
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Model of stellar-finetuning")
    except ConfigError:
        raise
    except Exception as error:  # whatever the client or the network raises
        reason = getattr(error, "server_message", None) or str(error).strip().partition("\n")[0]
        raise EnvironmentProblem(f"{KNOB} {repository}: the hub refuses: {reason[:200]}") from error
    return str(address)
