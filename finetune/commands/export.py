"""`finetune export TRIAL TARGET`: a kept model as a whole folder, as transformers loads it; on the hub too."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from finetune.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Puts the tensors that a trial kept on their base model and writes backbone, tokenizer and head to TARGET: "
        "AutoModel.from_pretrained loads the backbone, `finetune predict` uses it all. A token classifier with a "
        "linear head is loaded by AutoModelForTokenClassification too, where transformers has that class of the model."
    )
    parser.add_argument("folder", metavar="TRIAL", type=Path, help="a trial's folder, OUTPUT_DIR/trials/<trial_id>")
    parser.add_argument("target", metavar="TARGET", type=Path, nargs="?",
                        help="the folder to write; it must not exist yet; may be left out with --push_to_hub")
    parser.add_argument("--push_to_hub", metavar="REPO", help="upload it, model card included, to this repository of "
                        "the Hugging Face hub (USER/NAME), which is made where it is not there yet")
    parser.add_argument("--private", action="store_true", help="a repository that is made is private")


def main(args: argparse.Namespace) -> int:
    if args.target is None and args.push_to_hub is None:
        raise ConfigError("TARGET is missing: the folder to write (or --push_to_hub REPO)")
    if args.private and args.push_to_hub is None:
        raise ConfigError("--private says how a repository is made, and goes with --push_to_hub REPO")
    if args.target is not None and args.target.exists():
        raise ConfigError(f"{args.target} is already there; choose another TARGET or remove it")
    if args.push_to_hub is None:
        _export(args.folder, args.target)
        print(args.target)
        return 0
    from finetune.saving.push import check_repository, push

    check_repository(args.push_to_hub)
    with tempfile.TemporaryDirectory(prefix="finetune-export-") as scratch:
        target = args.target or Path(scratch) / "model"
        _export(args.folder, target)
        print(push(target, args.push_to_hub, private=args.private))
    return 0


def _export(folder: Path, target: Path) -> None:
    from finetune.saving.read import load_kept
    from finetune.saving.write import save_full

    loaded = load_kept(folder)
    written = save_full(loaded.classifier, loaded.backbone, loaded.manifest, target)
    print(f"{written['bytes'] / 1e6:.1f} MB: backbone, tokenizer, head and model card", file=sys.stderr)
