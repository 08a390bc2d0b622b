"""Loading a backbone from each of its places, and every refusal."""

from finetune.config import TrialConfig
from finetune.models import load_backbone


def test_a_folder_is_loaded_once_and_copied_pristine(tiny_bert_dir):
    config = TrialConfig.from_mapping({"model_name_or_path": str(tiny_bert_dir)})
    backbone = load_backbone(config)
    assert (backbone.source, backbone.num_layers, backbone.width, backbone.max_tokens) == ("path", 4, 32, 64)
    assert load_backbone(config) is backbone
    copied = backbone.fresh_model()
    copied.embeddings.word_embeddings.weight.data.zero_()
    assert backbone.fresh_model().embeddings.word_embeddings.weight.abs().sum() > 0
