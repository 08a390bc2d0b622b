"""`finetune export TRIAL TARGET`: a kept model as a whole folder, as transformers loads it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finetune.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Puts the tensors that a trial kept on their base model and writes backbone, tokenizer and head to TARGET: "
        "AutoModel.from_pretrained loads the backbone, `finetune predict` uses it all."
    )
    parser.add_argument("folder", metavar="TRIAL", type=Path, help="a trial's folder, OUTPUT_DIR/trials/<trial_id>")
    parser.add_argument("target", metavar="TARGET", type=Path, help="the folder to write; it must not exist yet")


def main(args: argparse.Namespace) -> int:
    if args.target.exists():
        raise ConfigError(f"{args.target} is already there; choose another TARGET or remove it")
    from finetune.saving.read import load_kept
    from finetune.saving.write import save_full

    loaded = load_kept(args.folder)
    written = save_full(loaded.classifier, loaded.backbone, loaded.manifest, args.target)
    print(f"{written['bytes'] / 1e6:.1f} MB: backbone, tokenizer, head and model card", file=sys.stderr)
    print(args.target)
    return 0
