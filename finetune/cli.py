"""The `finetune` command: finds the subcommand's module, turns errors into one sentence and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from finetune import __version__
from finetune.errors import FinetuneError

SUBCOMMANDS = {
    "train": ("finetune.train", "train one trial"),
    "sweep": ("finetune.commands.sweep", "run all trials of a W&B sweep file on this machine, no account needed"),
    "status": ("finetune.commands.status", "show the state of a sweep's directory"),
    "report": ("analysis.command", "figures, tables and report.html from a sweep's records"),
    "layers": ("finetune.commands.layers", "show a model's parts and what a freeze depth or strategy trains"),
    "predict": ("finetune.commands.predict", "labels for new texts from a trained model"),
    "export": ("finetune.commands.export", "write a trial's whole model, as transformers loads it"),
    "cache": ("finetune.commands.cache", "show or clear what is kept to be reused: activations of frozen layers"),
    "data": ("finetune.commands.data", "list and inspect data sets"),
    "probe": ("finetune.commands.probe", "what a linear probe on every frozen depth reaches, for a sweep's report"),
    "doctor": ("finetune.commands.doctor", "check this machine, an output directory and the cache, and say what to do"),
    "new": ("finetune.commands.new", "write a sweep file by answering questions"),
    "sync": ("finetune.commands.sync", "bring an offline sweep to W&B"),
}


def usage() -> str:
    lines = ["usage: finetune COMMAND [options]", "", "How many layers can I freeze, and what does it cost me?", ""]
    lines += [f"  {name:8} {doc}" for name, (_, doc) in SUBCOMMANDS.items()]
    return "\n".join([*lines, "", "finetune COMMAND --help shows a command's options."])


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    try:
        return run(argv[0], argv[1:])
    except FinetuneError as error:
        print(f"finetune {argv[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `finetune data | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(name: str, argv: list[str]) -> int:
    from finetune.errors import ConfigError, did_you_mean

    if name not in SUBCOMMANDS:
        raise ConfigError(f"no such command; there are {', '.join(SUBCOMMANDS)}{did_you_mean(name, SUBCOMMANDS)}")
    module = importlib.import_module(SUBCOMMANDS[name][0])
    if name == "train":
        return module.run(argv)
    return module.main(parser_of(name).parse_args(argv))


def parser_of(name: str) -> argparse.ArgumentParser:
    """The options of every command but `train`, whose options are the knobs."""
    from finetune.errors import EXIT_CODES

    parser = argparse.ArgumentParser(prog=f"finetune {name}", description=SUBCOMMANDS[name][1], epilog=EXIT_CODES,
                                     allow_abbrev=False)
    importlib.import_module(SUBCOMMANDS[name][0]).configure(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
