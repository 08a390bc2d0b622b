"""`finetune layers MODEL`: a model's parts, and what a freeze depth or a strategy trains."""

from __future__ import annotations

import argparse
import json
from typing import Any

KNOBS = ("freeze_depth", "strategy", "num_train_epochs", "reinit_layers", "pooling", "model_revision",
         "attn_implementation", "trust_remote_code")
DATA_KNOBS = ("dataset_name", "dataset_config_name", "max_length")
SUMMARY_DEPTH = 4  # down to the attention and feed-forward modules of a layer


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The parts of a backbone in order (embeddings, layer.0 … layer.L-1, top) with their parameters, and which of "
        "them train; a sentence says why where a model cannot be frozen layer by layer. --audit proves it: one forward "
        "and one backward pass on real rows; exit code 1 when a gradient reached a frozen parameter."
    )
    parser.add_argument("model", metavar="MODEL", help="hub id or path of a folder, as model_name_or_path")
    for knob in (*KNOBS, *DATA_KNOBS):
        parser.add_argument(f"--{knob}", metavar="VALUE", help=_help(knob))
    parser.add_argument("--audit", action="store_true", help="check on rows of --dataset_name what gradients reach")
    parser.add_argument("--parts_only", action="store_true", help="without torchinfo's summary of the modules")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


def _help(knob: str) -> str:
    from finetune.config import KNOBS as DECLARED

    return DECLARED[knob].doc.replace("%", "%%")


def main(args: argparse.Namespace) -> int:
    from finetune.config import TrialConfig

    knobs = {name: value for name in (*KNOBS, *DATA_KNOBS) if (value := getattr(args, name)) is not None}
    config = TrialConfig.from_mapping({"model_name_or_path": args.model, **knobs})
    from finetune.commands.views.layers import describe_layers, show_layers

    described, classifier = describe_layers(config, audited=args.audit)
    if args.json:
        print(json.dumps(described, ensure_ascii=False, indent=1))
        return 0
    if not args.parts_only:
        print(_summary(classifier))
    show_layers(described)
    return 0


def _summary(classifier: Any) -> str:
    import torchinfo

    return str(torchinfo.summary(classifier, depth=SUMMARY_DEPTH, verbose=0, row_settings=("var_names",),
                                 col_names=("num_params", "params_percent", "trainable")))
