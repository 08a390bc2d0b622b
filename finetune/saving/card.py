"""The model card: data, strategy, metrics, and how they were measured."""

from __future__ import annotations

from finetune.saving.manifest import KeptModel

CARD = """---
base_model: {base}
library_name: transformers
pipeline_tag: text-classification
tags: [stellar-finetuning]
---

# {title}

{what} trained from `{base}` (revision {revision}, sha256 {digest}) by [stellar-finetuning].

## What trained

Strategy `{strategy}`: {trainable:,} of {total:,} parameters ({share:.1%}). {epochs} epochs, the best one on validation
by `{metric}` (epoch {best}) is kept. Seed {seed}, learning rate {learning_rate} (head {head_learning_rate}), batch size
{batch_size}, at most {max_length} tokens per text, pooling `{pooling}`.

## Data

`{data}`, fingerprint {fingerprint}. Rows: {rows}. {labels}

## Results

| metric | validation | test |
|---|---|---|
{metrics}

Measured by the trial {trial}: validation chose the epoch, so its figures are optimistic; test was looked at once, with
that epoch's weights. One trial is one seed: another seed gives other figures, and `finetune report` says how different.

## Use

{use}

## Limits

The figures hold for texts like those of the data set and for nothing else. What the base model has learnt, its biases
included, is in this model too; its licence and the data's apply.
"""
USE_FULL = """```
finetune predict FOLDER FILE        labels and probabilities for the texts of a file
```

The backbone alone: `transformers.{cls}.from_pretrained("FOLDER")`. The head is in `head.safetensors`."""
USE_DELTA = """These are only the tensors that differ from the base. `finetune predict FOLDER FILE` puts them together
itself; `finetune export FOLDER TARGET` writes the whole model, as transformers loads it."""


def model_card(manifest: KeptModel, class_name: str) -> str:
    """Markdown, with the hub's header. `class_name`: of the backbone."""
    config, data = manifest.config, manifest.data
    total, trainable = manifest.parameters["total"], manifest.parameters["trainable"]
    names = [name for name, value in manifest.metrics.get("validation", {}).items() if isinstance(value, int | float)]
    labels = f"Labels: {', '.join(manifest.label_names)}." if manifest.label_names else "The target is a number."
    loader = class_name if class_name.endswith("EncoderModel") else "AutoModel"
    return CARD.format(
        base=manifest.base.name, revision=manifest.base.revision or "unknown", digest=manifest.base.digest[:16],
        title=f"{manifest.base.name.rpartition('/')[2]} on {data['name']}",
        what={"classification": "A text classifier", "regression": "A regression on text",
              "multilabel": "A multi-label text classifier"}[manifest.task],
        strategy=manifest.strategy, trainable=trainable, total=total, share=trainable / total,
        epochs=config["num_train_epochs"], metric=manifest.metric, best=manifest.best_epoch, seed=config["seed"],
        learning_rate=config["learning_rate"], head_learning_rate=config["head_learning_rate"],
        batch_size=config["per_device_train_batch_size"] * config["gradient_accumulation_steps"],
        max_length=manifest.max_length, pooling=manifest.pooling,
        data=data["name"], fingerprint=data["fingerprint"][:16],
        rows=", ".join(f"{split} {rows}" for split, rows in data["rows"].items()), labels=labels,
        metrics="\n".join(f"| {name} | {_shown(manifest, 'validation', name)} | {_shown(manifest, 'test', name)} |"
                          for name in names),
        trial=manifest.trial_id[:12], use=USE_FULL.format(cls=loader) if manifest.kind == "full" else USE_DELTA,
    )


def _shown(manifest: KeptModel, split: str, name: str) -> str:
    value = manifest.metrics.get(split, {}).get(name)
    return "" if value is None else f"{value:.4f}"
