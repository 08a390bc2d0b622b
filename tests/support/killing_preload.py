"""What a trial imports on its way, imported once in the server that the trials of tests/support/killing.py are forked from."""

import datasets  # noqa: F401
import pandas  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
from transformers import AutoModel, AutoTokenizer, BertModel, BertTokenizerFast  # noqa: F401

import finetune.prefix.reuse  # noqa: F401
import finetune.trial  # noqa: F401

torch.set_num_threads(1)
