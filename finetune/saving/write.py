"""Keep a trained model: the tensors that differ from the base, or the whole."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from finetune.data.encoding.words import with_prefix_space
from finetune.data.task_data import TAGGED
from finetune.files import sha256_file
from finetune.models.backbone import Backbone, without_progress_bars
from finetune.models.head import Classifier
from finetune.saving.card import model_card
from finetune.saving.folder import whole_folder
from finetune.saving.manifest import CARD, DELTA, HEAD, MANIFEST, KeptModel, manifest_text
from finetune.saving.token_classifier import as_token_classifier

SPARE_BYTES = 1 << 28  # a delta that nobody asked for does not fill a disk
BACKBONE = "backbone."


def save_delta(classifier: Classifier, backbone: Backbone, manifest: KeptModel, target: Path) -> dict[str, Any]:
    """Write what differs from the base, and the head -> what the record says about it.

    Raises EnvironmentProblem when the disk refuses.
    """
    tensors = changed_tensors(classifier, backbone)
    with whole_folder(target, "a model", durable="soon") as folder:
        save_file(tensors, folder / DELTA)
        _finish(folder, manifest, "delta", classifier.backbone, [DELTA])
    return {"kind": "delta", "folder": target.name, "tensors": len(tensors), "bytes": _size(tensors)}


def save_full(classifier: Classifier, backbone: Backbone, manifest: KeptModel, target: Path) -> dict[str, Any]:
    """Write backbone and tokenizer as `save_pretrained` does, and the head beside them -> what the record says.

    Adapters are merged into the weights that they stand beside, a pooler that was not used comes back from the base.
    A token classifier is written as transformers' own class where that computes the same (`as_token_classifier`).
    Raises EnvironmentProblem when the disk refuses.
    """
    model = whole_backbone(classifier, backbone)
    head = {name: _plain(p) for name, p in classifier.head.named_parameters()}
    with whole_folder(target, "a model") as folder, without_progress_bars():
        if manifest.label_names:
            model.config.id2label = dict(enumerate(manifest.label_names))
            model.config.label2id = {name: index for index, name in enumerate(manifest.label_names)}
        tokenizer = backbone.tokenizer
        if manifest.task == TAGGED:
            model = as_token_classifier(model, copy.deepcopy(classifier.head).cpu().eval()) or model
            tokenizer = with_prefix_space(tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_file(head, folder / HEAD)
        _finish(folder, manifest, "full", model, [path.name for path in folder.iterdir() if path.is_file()])
    return {"kind": "full", "folder": target.name, "bytes": sum(p.stat().st_size for p in target.iterdir())}


def _finish(folder: Path, manifest: KeptModel, kind: str, model: nn.Module, names: list[str]) -> None:
    files = {name: sha256_file(folder / name) for name in sorted(names)}
    manifest = manifest.model_copy(update={"kind": kind, "files": files})
    (folder / CARD).write_text(model_card(manifest, type(model).__name__), encoding="utf-8")
    (folder / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")


def changed_tensors(classifier: Classifier, backbone: Backbone) -> dict[str, Tensor]:
    """By Classifier name: the head, and what in the backbone is new or not what the base holds."""
    base = backbone.parameters
    unchanged = backbone.own_places(next(classifier.parameters()).device)
    changed = {}
    for name, parameter in classifier.named_parameters():
        if parameter.data_ptr() in unchanged:
            continue
        tensor = _plain(parameter)
        before = base.get(base_name(name.removeprefix(BACKBONE))) if name.startswith(BACKBONE) else None
        if before is None or not torch.equal(tensor, before):
            changed[name] = tensor
    return changed


def base_name(name: str) -> str:
    """The name that a parameter had before adapters were put beside it."""
    return name.replace(".base_layer.", ".")


def whole_backbone(classifier: Classifier, backbone: Backbone) -> nn.Module:
    """A copy of the trained backbone under the base's own names, its unused pooler and key-value cache included."""
    from finetune.freezing.lora import merge_lora

    trained = copy.deepcopy(classifier.backbone).cpu()
    if any(".lora_" in name for name, _ in trained.named_parameters()):
        merge_lora(trained)
    model = backbone.fresh_model()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            model.get_parameter(name).copy_(parameter)
    return model


def room_for_delta(classifier: Classifier, target: Path) -> bool:
    """Whether the disk keeps some room after a delta of this size at most."""
    place = next(folder for folder in [target, *target.parents] if folder.exists())
    most = sum(p.numel() * p.element_size() for p in classifier.parameters())
    return shutil.disk_usage(place).free > most + SPARE_BYTES


def _plain(tensor: Tensor) -> Tensor:
    """A copy on the host, in one piece."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _size(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
