"""The knobs as keywords, for type checkers and editors; generated (`UPDATE_DOCS=1`)."""

from __future__ import annotations

from os import PathLike
from typing import Literal, TypedDict


class OptimizerKnobs(TypedDict, total=False):
    beta1: float
    """AdamW's decay of the first moment. Default: 0.9."""
    beta2: float
    """AdamW's decay of the second moment. Default: 0.999."""
    epsilon: float
    """AdamW's epsilon. Default: 1e-08."""


class Knobs(TypedDict, total=False):
    freeze_depth: int | None
    """-1 freezes the embeddings, 0 nothing, k >= 1 the embeddings and the first k layers, L the whole backbone.
    Default: None."""
    strategy: str | None
    """The rule that says which parameters train in which epoch, e.g. full, prefix:4, head_only, lp_ft:1; excludes
    freeze_depth; neither means full. Default: None."""
    layer_decay: float
    """Layer-wise learning-rate decay: the factor from each layer to the one below; 1 is none. Default: 1.0."""
    reinit_layers: int
    """Re-initialise the top n layers before training (Zhang et al. 2021). Default: 0."""
    frozen_dropout: bool
    """Leave dropout on in frozen modules, to measure what it does; forbids reuse. Default: False."""
    head_size: int
    """Hidden width of the classifier; 0 is a single linear layer. Default: 0."""
    head_dropout: float
    """Dropout before each linear layer of the head. Default: 0.1."""
    pooling: Literal["mean", "cls", "pooler", "last"] | None
    """How token vectors become one: mean over real tokens, first token, the pretrained pooler, or the last real
    token; default: last for decoders, mean for encoders."""
    learning_rate: float
    """Peak learning rate of the backbone's trainable part; acts on nothing when all of it is frozen. Default:
    5e-05."""
    head_learning_rate: float
    """Peak learning rate of the head; a frozen backbone needs a larger one. Default: 0.001."""
    weight_decay: float
    """AdamW's decoupled weight decay, not applied to biases and norms. Default: 0.01."""
    num_train_epochs: int
    """Passes over the training rows. Default: 3."""
    per_device_train_batch_size: int
    """Training rows per process and step. Default: 16."""
    gradient_accumulation_steps: int
    """Micro-batches per optimizer step. Default: 1."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"]
    """Shape of the learning rate after warm-up. Default: linear."""
    warmup_ratio: float
    """Share of the steps in which the learning rate rises. Default: 0.1."""
    max_grad_norm: float
    """Gradients are clipped to this norm; 0 turns clipping off. Default: 1.0."""
    class_weights: Literal["none", "balanced"]
    """Weigh the training loss by inverse class frequency (multi-label: positives by negatives per positive).
    Default: none."""
    metric_for_best_model: str | None
    """Validation metric that picks the epoch; default: the task's own."""
    seed: int
    """Sets head initialisation, data order and dropout, each with its own stream. Default: 1."""
    split_seed: int
    """Decides which rows are in which split, where a split has to be made. Default: 0."""
    subset_seed: int | None
    """Decides which rows train_size keeps; default: seed."""
    dataset_name: str | PathLike[str]
    """A hub id, the bundled rotten_tomatoes_mini or wnut17_mini, or a path to a folder or file (csv, tsv, jsonl,
    json, parquet). Default: rotten_tomatoes_mini."""
    dataset_config_name: str | None
    """Configuration of a hub data set, e.g. mrpc of glue. Default: None."""
    dataset_revision: str | None
    """Branch, tag or commit of a hub data set. Default: None."""
    text_column: str | list[str] | None
    """Column with the text, or two columns (a pair); default: found."""
    label_column: str | list[str] | None
    """Column with the label, or several 0/1 columns (multi-label); default: found."""
    task: Literal["auto", "classification", "regression", "multilabel", "token_classification"]
    """What is predicted; auto reads it off the labels. Default: auto."""
    validation_size: int | float
    """Rows (a count) or share of the training rows for a validation split that has to be made. Default: 0.1."""
    test_size: int | float
    """Rows (a count) or share of the training rows for a test split that has to be made. Default: 0.2."""
    train_size: int | float | None
    """Keep this many training rows (a count) or this share; smaller subsets lie inside larger ones. Default:
    None."""
    evaluation_size: int | None
    """Keep at most this many validation and at most this many test rows (a fixed choice); default: all."""
    max_length: int
    """Tokens per row; longer rows are truncated, pairs longest first. Default: 128."""
    model_name_or_path: str | PathLike[str]
    """A hub id or the path of a folder. Default: sentence-transformers/all-MiniLM-L6-v2."""
    model_revision: str | None
    """Branch, tag or commit of the model on the hub. Default: None."""
    attn_implementation: Literal["eager", "sdpa"] | None
    """Attention kernel; default: what transformers picks."""
    trust_remote_code: bool
    """Run code that comes with the model (never for data sets); without it such a model is refused. Default:
    False."""
    per_device_eval_batch_size: int
    """Evaluation rows per process and step. Default: 64."""
    mixed_precision: Literal["no", "bf16", "fp16", "auto"]
    """Number format of the forward pass; auto: bf16 where the device computes it fast, else no; recorded as what it
    became. Default: no."""
    retry_in_float32: bool
    """Train a trial whose numbers are not finite in bf16 or fp16 once more in float32; the record says so. Default:
    False."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass to save memory. Default: False."""
    auto_micro_batch: bool
    """On out-of-memory halve the micro-batch and keep the effective batch; recorded. Default: False."""
    prefix_cache: bool
    """Compute the frozen prefix once and reuse it. Default: True."""
    cuda_graphs: Literal["auto", "true", "false"]
    """Record training steps on a GPU and replay them: auto where that can be done and the trial is long enough,
    true whenever it can be done. Default: auto."""
    checkpointing_steps: int | None
    """Checkpoint every so many optimizer steps, besides every epoch. Default: None."""
    output_dir: str | PathLike[str] | None
    """Where results are written; default: runs/<sweep id, or single>."""
    save_model: bool | Literal["delta"]
    """Keep the best epoch's model beside the record: delta the tensors that differ from the base, True the whole as
    a folder that AutoModel.from_pretrained loads, False nothing. Default: delta."""
    report_to: str | list[str] | None
    """Trackers: wandb, tensorboard, mlflow, trackio, several (a list, or with commas between), or none; default:
    wandb where this machine is logged in."""
    upload_predictions: bool
    """Send record and predictions to W&B as an artifact. Default: True."""
    wandb_project: str | None
    """W&B project; default: W&B's own rules, else stellar-finetuning."""
    wandb_entity: str | None
    """W&B user or team. Default: None."""
    preemptible: bool
    """On SIGTERM mark the W&B run as preempting, so that an agent requeues and continues it. Default: False."""
    margin: float
    """Loss of the metric that the report's verdict tolerates; decide it before the sweep. Default: 0.01."""
    optimizer: OptimizerKnobs
