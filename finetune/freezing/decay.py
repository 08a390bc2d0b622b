"""Layer-wise learning-rate decay."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.models.layers import LayerStack


def layer_scales(stack: LayerStack, layer_decay: float) -> dict[str, float]:
    """The factor on `learning_rate` per backbone parameter, by its Classifier name.

    top and the last layer 1, each layer below `layer_decay` times the one above, the embeddings layer_decay^L.
    """
    from finetune.freezing.plan import BACKBONE_PREFIX

    top = stack.num_layers - 1
    exponents = {part: max(top - index, 0) for index, part in enumerate(stack.parts, start=-1)}
    return {BACKBONE_PREFIX + name: layer_decay ** exponents[part] for name, part in stack.part_of.items()}
