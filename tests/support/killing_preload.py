"""What a trial imports on its way, imported once in the server that killing.py forks its trials from."""

import datasets  # noqa: F401
import pandas  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
from transformers import AutoModel, AutoTokenizer, BertModel, BertTokenizerFast  # noqa: F401

import finetune.prefix.reuse  # noqa: F401
import finetune.trial.recipe  # noqa: F401

torch.set_num_threads(1)
