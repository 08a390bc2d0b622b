"""Fine-tune pretrained transformers with part of the layers frozen, and compare the depths."""

__version__ = "0.1.0"
