"""A kept model, put together again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finetune.config import TrialConfig
from finetune.errors import EnvironmentProblem
from finetune.freezing import resolve_strategy
from finetune.freezing.prepare import prepare_backbone
from finetune.models.backbone import Backbone, load_backbone
from finetune.models.head import TOKENS, Classifier, Head
from finetune.models.poolers import strip_unused_pooler
from finetune.saving.manifest import DELTA, HEAD, KeptModel, find_kept


@dataclass(frozen=True)
class LoadedModel:
    classifier: Classifier  # in eval mode
    backbone: Backbone  # the base of a delta; of a full model its own
    manifest: KeptModel


def load_kept(path: Path) -> LoadedModel:
    """The classifier in a trial's folder or in one that `finetune export` wrote.

    Raises ConfigError when there is none, EnvironmentProblem when files are damaged or the base is not the same.
    """
    folder, manifest = find_kept(path)
    return _from_delta(folder, manifest) if manifest.kind == "delta" else _from_full(folder, manifest)


def _from_delta(folder: Path, manifest: KeptModel) -> LoadedModel:
    config = TrialConfig.from_mapping({
        **manifest.config, "pooling": None if manifest.pooling == TOKENS else manifest.pooling})
    if manifest.base.source == "package":  # its revision is the package's, which find_model would ask the hub for
        config = config.replace(model_revision=None)
    backbone = load_backbone(config)
    if backbone.digest != manifest.base.digest:
        raise EnvironmentProblem(f"{folder} is a delta on {manifest.base.name} with the digest "
                                 f"{manifest.base.digest[:12]}, and what is here under that name has "
                                 f"{backbone.digest[:12]}: its weights, config or tokenizer are others")
    stack = prepare_backbone(backbone, config, resolve_strategy(config, backbone.num_layers))
    classifier = Classifier(stack.model, _head(manifest, backbone.width), manifest.pooling)
    classifier.read_one_token(backbone)
    _fill(classifier, load_file(folder / DELTA), folder)
    return LoadedModel(classifier.eval(), backbone, manifest)


def _from_full(folder: Path, manifest: KeptModel) -> LoadedModel:
    config = TrialConfig.from_mapping({
        "model_name_or_path": str(folder), "trust_remote_code": manifest.config["trust_remote_code"],
        "attn_implementation": manifest.config["attn_implementation"]})
    backbone = load_backbone(config)
    model = backbone.fresh_model()
    strip_unused_pooler(model, manifest.pooling)
    classifier = Classifier(model, _head(manifest, backbone.width), manifest.pooling)
    classifier.read_one_token(backbone)
    _fill(classifier.head, load_file(folder / HEAD), folder)
    return LoadedModel(classifier.eval(), backbone, manifest)


def _head(manifest: KeptModel, width: int) -> Head:
    shape = manifest.head
    return Head(width, shape.size, shape.outputs, 0.0, torch.Generator(), tuple(shape.units))


@torch.no_grad()
def _fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    parameters = dict(module.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise EnvironmentProblem(f"{folder} holds {name}, which does not fit the model; was it written by another "
                                     "version of transformers or peft?")
        parameters[name].copy_(tensor)
