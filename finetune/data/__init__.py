"""Data sets: found, checked, split, encoded. Importing this imports neither torch nor transformers nor datasets."""

from finetune.data.encoding.encoding import EncodedSplit, encode_split, padding_id
from finetune.data.load import load_task_data
from finetune.data.splits.splits import limit_evaluation, subset_train
from finetune.data.task_data import RejectedRow, Split, TaskData

__all__ = [
    "EncodedSplit", "RejectedRow", "Split", "TaskData", "encode_split", "limit_evaluation", "load_task_data",
    "padding_id", "subset_train",
]
