"""`finetune data [NAME [CONFIG]]`: which data sets there are, and what is in one."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from finetune.errors import ConfigError, FinetuneError

if TYPE_CHECKING:
    from finetune.config import TrialConfig

UNCUT = 1 << 24  # tokens: longer than any row
KNOBS = ("dataset_revision", "text_column", "label_column", "task", "split_seed", "validation_size", "test_size")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Without a name: the data sets that are on this machine. With one: its configurations, or its splits, columns, "
        "labels, lengths and defects. Exit code 4 says that a trial could not use it, and why."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="bundled name, path of a file or folder, or hub id")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="configuration of the data set, e.g. mrpc of glue")
    parser.add_argument("--search", metavar="TEXT", help="search the hub")
    parser.add_argument("--model", metavar="MODEL", help="measure lengths with this model's tokenizer; "
                                                         "default: the default model's")
    for knob in KNOBS:
        parser.add_argument(f"--{knob}", help=f"the knob of a trial; see finetune train --help (data: {knob})")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


def main(args: argparse.Namespace) -> int:
    from finetune.commands.views import datasets as show

    if args.search is not None:
        if args.name is not None:
            raise ConfigError("--search TEXT goes without a NAME")
        found = _search(args.search)
        show.found(found, args.search, as_json=args.json)
    elif args.name is None:
        from finetune.data.sources.catalog import listing

        show.listing(listing(), as_json=args.json)
    else:
        _inspect(args)
    return 0


def _search(text: str) -> list[str]:
    from finetune.data.sources.hub import search_hub

    return search_hub(text)


def _inspect(args: argparse.Namespace) -> None:
    from finetune.commands.views import datasets as show
    from finetune.config import TrialConfig
    from finetune.data.load import configurations_of, local_path

    knobs = {"dataset_name": args.name, "dataset_config_name": args.config, **{k: getattr(args, k) for k in KNOBS}}
    config = TrialConfig.from_mapping({name: value for name, value in knobs.items() if value is not None})
    available = configurations_of(config)
    if args.config is None and len(available) > 1:
        show.configurations(args.name, available, as_json=args.json)
        return
    if args.config is None and not args.json and local_path(args.name) is None:
        print(f"{args.name} has no configurations to choose from", file=sys.stderr)
    described = describe(config, args.model)
    if args.json:
        print(json.dumps(described, ensure_ascii=False, indent=1))
    else:
        show.profile(described)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """On a terminal, what is being done and for how many seconds, until it is done."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield


def describe(config: TrialConfig, model: str | None) -> dict[str, Any]:
    """The profile of a data set, with its columns and why they were chosen."""
    from finetune.commands.views.profile import profile
    from finetune.data.encoding.encoding import encode_split
    from finetune.data.encoding.words import words_unseen
    from finetune.data.load import assemble, choose_columns, open_source
    from finetune.data.recorded import unknown_notes
    from finetune.data.task_data import TAGGED

    with working("reading the data set"):
        source = open_source(config)
        columns = choose_columns(source, config)
        data = assemble(source, config)
    with working("loading the tokenizer"):
        tokenizer, reason = _tokenizer(config, model)
    if tokenizer is None:
        described = profile(data)
        described["notes"] = [*described["notes"], f"lengths are in words: {reason}"]
    else:
        with working("measuring lengths"):
            encoded = {name: encode_split(split, tokenizer, UNCUT) for name, split in data.splits.items()}
        described = profile(data, {name: split.lengths for name, split in encoded.items()})
        described["unknown_tokens"] = {name: split.unknown_share for name, split in encoded.items()}
        described["notes"] = [*described["notes"], *unknown_notes(encoded)]
        if data.task == TAGGED and config.max_length is not None:
            unseen = sum(words_unseen(split.words, tokenizer, config.max_length) for split in encoded.values())
            described["unseen_words"] = {config.max_length: unseen}
    described["columns"] = {"all": source.tables["train"].columns, "text": list(columns.text),
                            "label": list(columns.label), "reasons": columns.reasons}
    return described


def _tokenizer(config: TrialConfig, model: str | None) -> tuple[Any, str | None]:
    """(tokenizer, None), or (None, why not) for the default model. A model that was asked for must be there."""
    from finetune.models.sources import find_model

    try:
        files = find_model(config if model is None else config.replace(model_name_or_path=model))
    except FinetuneError as error:
        if model is not None:
            raise
        return None, str(error)
    import transformers

    from finetune.models.tokenizers import read_tokenizer, require_fit

    transformers.utils.logging.set_verbosity_error()
    name = model or config.model_name_or_path
    tokenizer = read_tokenizer(files.folder, name, trust_remote_code=False)
    stated = json.loads((files.folder / "config.json").read_bytes()).get("vocab_size")
    require_fit(tokenizer, stated if isinstance(stated, int) else None, name)  # what a trial would refuse
    return tokenizer, None
