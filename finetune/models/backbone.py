"""A pretrained backbone: its weights are read once per process, every trial gets a pristine copy."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
import transformers
from torch import nn

from finetune.config import TrialConfig
from finetune.errors import ConfigError, EnvironmentProblem, Problem
from finetune.models.discovery import discover_stack
from finetune.models.layers import TOP, LayerStack
from finetune.models.one_token import cuttable_modules
from finetune.models.sources import ModelFiles, Source, find_model
from finetune.models.tokenizers import embedding_count, max_tokens, read_tokenizer, require_fit


@dataclass(frozen=True)
class Backbone:
    """What `load_backbone` found. Treat `pristine` as read-only; train what `fresh_model` returns."""

    name: str
    source: Source
    revision: str | None  # the hub's commit, also when none was asked for
    digest: str  # sha256 over weights, config and tokenizer
    tokenizer: Any
    pristine: nn.Module
    stack: LayerStack  # of `pristine`; `stack.rebind` and `stack.bind` give a copy's
    has_pretrained_pooler: bool
    max_tokens: int | None  # the longest input, None where positions are relative

    @property
    def num_layers(self) -> int:
        return self.stack.num_layers

    @property
    def width(self) -> int:
        return self.stack.width

    @cached_property
    def cuttable(self) -> tuple[str, ...]:
        """See cuttable_modules: tried once, and only where a pooling reads one token."""
        return cuttable_modules(self.stack)

    @property
    def padding_side(self) -> str:
        """The tokenizer's, but right for a decoder: its tokens then neither see padding nor count their position from
        it (GPT-2 does), and the last real token is found by the mask."""
        return "right" if self.stack.causal else self.tokenizer.padding_side

    def fresh_model(self, shared: Iterable[str] = ()) -> nn.Module:
        """A copy with the pretrained weights, float32; independent but for the bytes of the parameters `shared`.

        Share what no optimizer will ever see: it is neither copied nor held twice.
        """
        own = self.parameters
        memo = {id(own[name]): nn.Parameter(own[name].data, requires_grad=False) for name in shared}
        return copy.deepcopy(self.pristine, memo)

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Of `pristine`, by name."""
        return dict(self.pristine.named_parameters())

    @cached_property
    def _on_devices(self) -> dict[tuple[int, torch.device], torch.Tensor]:
        """By where a parameter of `pristine` lies, and device: its one copy there."""
        return {}

    def move(self, model: nn.Module, device: torch.device) -> None:
        """`model.to(device)`, where what `fresh_model` shares is shared again: it goes there once per process."""
        if device.type != "cpu":
            shared = {parameter.data_ptr(): parameter.data for parameter in self.parameters.values()}
            for parameter in model.parameters():
                place = parameter.data_ptr()
                if place in shared and not parameter.requires_grad:
                    parameter.data = self._copy_on(device, shared[place])
        model.to(device)

    @torch.no_grad()
    def put_back(self, model: nn.Module, device: torch.device) -> None:
        """Write the pretrained values where those of `model`, a copy on `device`, lie now. What it shares stays."""
        shared, own = self.own_places(device), self.parameters
        for name, parameter in model.named_parameters():
            if parameter.data_ptr() not in shared:
                parameter.copy_(own[name] if device.type == "cpu" else self._copy_on(device, own[name]))
        buffers = dict(self.pristine.named_buffers())
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])

    def _copy_on(self, device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
        key = (tensor.data_ptr(), device)
        if key not in self._on_devices:
            self._on_devices[key] = tensor.to(device)
        return self._on_devices[key]

    def own_places(self, device: torch.device) -> set[int]:
        """Where on a device the bytes lie that all models of this process share."""
        if device.type == "cpu":
            return {parameter.data_ptr() for parameter in self.parameters.values()}
        # Addresses are unique among all cards of a process, and "cuda" and "cuda:0" are one card by two names.
        return {tensor.data_ptr() for tensor in self._on_devices.values() if tensor.device.type == device.type}


def load_backbone(config: TrialConfig) -> Backbone:
    """Find, check and read the backbone that `config` names; the same object again for the same name in one process.

    Raises ConfigError (refused: remote code, pickled weights, no stack of layers) or EnvironmentProblem (not found).
    """
    return _load(config.model_name_or_path, config.model_revision, config.attn_implementation,
                 config.trust_remote_code)


def forget_backbones() -> None:
    """Read the files again the next time: somebody has written into a frozen parameter, which trials share."""
    _load.cache_clear()


@lru_cache(maxsize=2)
def _load(name: str, revision: str | None, attention: str | None, trust: bool) -> Backbone:
    config = TrialConfig(model_name_or_path=name, model_revision=revision, attn_implementation=attention,
                         trust_remote_code=trust)
    files = find_model(config)
    model_config = _read_config(files, config)
    with without_progress_bars():
        model, missing = _read_weights(files, model_config, config)
        tokenizer = read_tokenizer(files.folder, name, trust_remote_code=trust)
    require_fit(tokenizer, embedding_count(model), name)
    fixed = frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    stack = replace(discover_stack(model), fixed=fixed)
    _require_weights(name, stack, missing)
    return Backbone(
        name=name, source=files.source, revision=files.revision, digest=files.digest(with_code=trust),
        tokenizer=tokenizer, pristine=model, stack=stack,
        has_pretrained_pooler=getattr(model, "pooler", None) is not None and not missing,
        max_tokens=max_tokens(tokenizer, model),
    )


def _read_config(files: ModelFiles, config: TrialConfig) -> transformers.PretrainedConfig:
    raw, _ = transformers.PretrainedConfig.get_config_dict(files.folder)
    known = raw.get("model_type") in transformers.CONFIG_MAPPING
    if not known and "auto_map" in raw and not config.trust_remote_code:
        raise ConfigError([Problem("trust_remote_code", False, f"{config.model_name_or_path} comes with its own "
                                   "code, which would run with your rights; read it, then set trust_remote_code")])
    if not known and "auto_map" not in raw:
        raise ConfigError([Problem("model_name_or_path", config.model_name_or_path, "this version of transformers "
                                   f"({transformers.__version__}) knows no model_type {raw.get('model_type')!r}")])
    return transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=config.trust_remote_code)


def _read_weights(
    files: ModelFiles, model_config: transformers.PretrainedConfig, config: TrialConfig
) -> tuple[nn.Module, set[str]]:
    """The model in float32 and the names of the parameters that the files do not hold."""
    kernel = {"attn_implementation": config.attn_implementation} if config.attn_implementation else {}
    files.weight_files()
    try:
        model, loading = _model_class(model_config).from_pretrained(
            files.folder, config=model_config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=config.trust_remote_code, output_loading_info=True, **kernel,
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        if kernel and "attn" in reason.lower():
            raise ConfigError([Problem("attn_implementation", config.attn_implementation, reason)]) from error
        raise EnvironmentProblem(f"the files of {config.model_name_or_path} in {files.folder} cannot be read: "
                                 f"{reason}") from error
    model.config.use_cache = False  # a classifier reads every token once: a decoder's key-value cache is waste
    return model.eval(), set(loading["missing_keys"])


def _model_class(model_config: transformers.PretrainedConfig) -> Any:
    """AutoModel, or the encoder-only class that the folder was saved from: AutoModel would add a random decoder."""
    names = model_config.architectures or []
    saved_from = getattr(transformers, names[0], None) if names else None
    return saved_from if saved_from and names[0].endswith("EncoderModel") else transformers.AutoModel


def _require_weights(name: str, stack: LayerStack, missing: set[str]) -> None:
    """Only the pooler may be missing: a checkpoint made for another task leaves it out."""
    lacking = sorted(missing - set(stack.parts[TOP]))
    if lacking:
        raise EnvironmentProblem(f"the files of {name} hold no weights for {lacking[0]} (and {len(lacking) - 1} "
                                 "more): it would start from random numbers")


@contextmanager
def without_progress_bars() -> Iterator[None]:
    shown = transformers.utils.logging.is_progress_bar_enabled()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        if shown:
            transformers.utils.logging.enable_progress_bar()
