"""The model card: data, strategy, metrics, and how they were measured."""

from __future__ import annotations

from finetune.data.task_data import TAGGED
from finetune.saving.manifest import KeptModel

CARD = """---
base_model: {base}
library_name: transformers
pipeline_tag: {pipeline}
tags: [stellar-finetuning]
---

# {title}

{what} trained from `{base}` (revision {revision}, sha256 {digest}) by [stellar-finetuning].

## What trained

Strategy `{strategy}`: {trainable:,} of {total:,} parameters ({share:.1%}). {epochs}, the best one on validation
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

Or with transformers alone, one text at a time:

```python
import torch
from safetensors.torch import load_file
from transformers import {cls}, AutoTokenizer

folder = "FOLDER"
tokenizer, backbone = AutoTokenizer.from_pretrained(folder), {cls}.from_pretrained(folder).eval()
head = load_file(f"{{folder}}/head.safetensors")
inputs = tokenizer({texts}, truncation=True, max_length={max_length}, return_tensors="pt")
with torch.inference_mode():
    output = backbone(**inputs)
    x = {pooled}
{head}
print({answer})
```"""
USE_TAGS = """```
finetune predict FOLDER FILE        entities or tags for the sentences of a file
```

Or with transformers alone, one sentence at a time, its words in a list; a word's tag is read on its first subword:

```python
import torch
{imports}

folder = "FOLDER"
tokenizer, model = AutoTokenizer.from_pretrained(folder), {cls}.from_pretrained(folder).eval()
words = ["a", "sentence"]
inputs = tokenizer(words, is_split_into_words=True, truncation=True, max_length={max_length}, return_tensors="pt")
with torch.inference_mode():
{scores}
first = {{word: place for place, word in reversed(list(enumerate(inputs.word_ids()))) if word is not None}}
print([(word, {names}[x[first[number]].argmax()]) for number, word in enumerate(words) if number in first])
```"""
TOKEN_CLASS = "ForTokenClassification"
USE_DELTA = """These are only the tensors that differ from the base. `finetune predict FOLDER FILE` puts them together
itself; `finetune export FOLDER TARGET` writes the whole model, as transformers loads it."""


def model_card(manifest: KeptModel, class_name: str) -> str:
    """Markdown, with the hub's header. `class_name`: of the backbone, or of transformers' own token classifier."""
    config, data = manifest.config, manifest.data
    total, trainable = manifest.parameters["total"], manifest.parameters["trainable"]
    names = [name for name, value in manifest.metrics.get("validation", {}).items() if isinstance(value, int | float)]
    labels = f"Labels: {', '.join(manifest.label_names)}." if manifest.label_names else "The target is a number."
    return CARD.format(
        base=manifest.base.name, revision=manifest.base.revision or "unknown", digest=manifest.base.digest[:16],
        title=f"{manifest.base.name.rpartition('/')[2]} on {data['name']}",
        pipeline="token-classification" if manifest.task == TAGGED else "text-classification",
        what={"classification": "A text classifier", "regression": "A regression on text",
              "multilabel": "A multi-label text classifier",
              "token_classification": "A token classifier (one tag per word, on its first subword)"}[manifest.task],
        strategy=manifest.strategy, trainable=trainable, total=total, share=trainable / total,
        epochs=f"{config['num_train_epochs']} epoch{'s' * (config['num_train_epochs'] != 1)}",
        metric=manifest.metric, best=manifest.best_epoch, seed=config["seed"],
        learning_rate=config["learning_rate"], head_learning_rate=config["head_learning_rate"],
        batch_size=config["per_device_train_batch_size"] * config["gradient_accumulation_steps"],
        max_length=manifest.max_length, pooling=manifest.pooling,
        data=data["name"], fingerprint=data["fingerprint"][:16],
        rows=", ".join(f"{split} {rows}" for split, rows in data["rows"].items()), labels=labels,
        metrics="\n".join(f"| {name} | {_shown(manifest, 'validation', name)} | {_shown(manifest, 'test', name)} |"
                          for name in names),
        trial=manifest.trial_id[:12], use=_recipe(manifest, class_name) if manifest.kind == "full" else USE_DELTA,
    )


def _recipe(manifest: KeptModel, class_name: str) -> str:
    """USE_FULL's lines for this pooling, head and task. Of one text, without padding, pooling is this simple."""
    linear = '    x = x @ head["linears.{0}.weight"].T + head["linears.{0}.bias"]'
    lines = [linear.format(0), "    x = x.relu()", linear.format(1)] if manifest.head.size else [linear.format(0)]
    head = "\n".join(lines)
    if manifest.task == TAGGED:
        return _recipe_of_tags(manifest, class_name, head)
    mean, deviation = manifest.head.units
    names = manifest.label_names
    return USE_FULL.format(
        cls=_auto_class(class_name), max_length=manifest.max_length, head=head,
        texts=", ".join(repr(f"a {name}") for name in manifest.text_columns),
        pooled={"mean": "output.last_hidden_state.mean(1)", "cls": "output.last_hidden_state[:, 0]",
                   "last": "output.last_hidden_state[:, -1]", "pooler": "output.pooler_output"}[manifest.pooling],
        answer={"classification": f"dict(zip({names}, x.softmax(-1)[0].tolist()))",
                   "multilabel": f"dict(zip({names}, x.sigmoid()[0].tolist()))",
                   "regression": f"x.item() * {deviation} + {mean}"}[manifest.task],
    )


def _recipe_of_tags(manifest: KeptModel, class_name: str, head: str) -> str:
    whole = class_name.endswith(TOKEN_CLASS)
    cls = f"AutoModel{TOKEN_CLASS}" if whole else _auto_class(class_name)
    return USE_TAGS.format(
        cls=cls, max_length=manifest.max_length, names=manifest.label_names,
        imports=f"from transformers import {cls}, AutoTokenizer" if whole else (
            f"from safetensors.torch import load_file\nfrom transformers import {cls}, AutoTokenizer"),
        scores="    x = model(**inputs).logits[0]" if whole else (
            '    head = load_file(f"{folder}/head.safetensors")\n'
            f"    x = model(**inputs).last_hidden_state[0]\n{head}"),
    )


def _auto_class(class_name: str) -> str:
    return class_name if class_name.endswith("EncoderModel") else "AutoModel"


def _shown(manifest: KeptModel, split: str, name: str) -> str:
    value = manifest.metrics.get(split, {}).get(name)
    return "" if value is None else f"{value:.4f}"
