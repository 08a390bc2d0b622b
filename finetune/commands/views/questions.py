"""The questions of `finetune new`, asked on a terminal with fuzzy pick lists. What was given as a flag is not asked."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.display import plain
from finetune.errors import FinetuneError

FOUND = "as found: "


def ask(given: Mapping[str, Any]) -> dict[str, Any]:
    """Answers to what `given` leaves open, in the order data set → configuration → columns → model → depths → seeds."""
    answers = dict(given)
    for name, question in (("dataset_name", _dataset), ("dataset_config_name", _configuration), ("text_column", _text),
                           ("label_column", _label), ("model_name_or_path", _model), ("freeze_depth", _depths),
                           ("seed", _seeds), ("name", _name)):
        if name not in answers:
            answer = question(answers)
            if answer is not None:
                answers[name] = answer
    return answers


def _fuzzy(message: str, choices: Sequence[str], default: str = "") -> str:
    """Free text, completed from `choices` as one types."""
    import questionary
    from prompt_toolkit.completion import FuzzyWordCompleter

    return questionary.autocomplete(
        message, list(choices), default=default, completer=FuzzyWordCompleter(list(choices), WORD=True),
        validate=lambda text: bool(text.strip()) or "type a name, or pick one",
    ).unsafe_ask().strip()


def _pick(message: str, choices: Sequence[str], default: str | None = None) -> str:
    """One of `choices`; typing filters them."""
    import questionary

    listed = [questionary.Choice(plain(choice), value=choice) for choice in choices]
    chosen = next((choice for choice in listed if choice.value == default), None)
    return questionary.select(message, listed, default=chosen, use_search_filter=True, use_jk_keys=False).unsafe_ask()


def _dataset(answers: Mapping[str, Any]) -> str:
    """Asked again, with the reason, until there is such a data set."""
    from finetune.data.sources.catalog import listing

    names = [entry["name"] for entry in listing()]
    while True:
        name = _fuzzy("Data set (a name, or the path of a file or folder):", names)
        problem = _problem({**answers, "dataset_name": name})
        if problem is None:
            return name
        print(problem, file=sys.stderr)


def _problem(answers: Mapping[str, Any]) -> str | None:
    """Why a data set cannot be used, as far as that can be told before its configuration is known."""
    from finetune.commands.data import working
    from finetune.config import TrialConfig
    from finetune.data.load import configurations_of

    try:
        with working("looking at the data set"):
            several = len(configurations_of(TrialConfig.from_mapping({"dataset_name": answers["dataset_name"]}))) > 1
            if not several:
                _columns(answers)
    except FinetuneError as error:
        return str(error)
    return None


def _configuration(answers: Mapping[str, Any]) -> str | None:
    from finetune.config import TrialConfig
    from finetune.data.load import configurations_of

    available = configurations_of(TrialConfig.from_mapping({"dataset_name": answers["dataset_name"]}))
    return _pick("Configuration:", available) if len(available) > 1 else None


def _columns(answers: Mapping[str, Any]) -> tuple[list[str], Any]:
    """(names of all columns, the columns that are chosen by default)."""
    from finetune.config import TrialConfig
    from finetune.data.load import choose_columns, open_source

    knobs = ("dataset_name", "dataset_config_name", "text_column", "label_column")
    config = TrialConfig.from_mapping({name: answers[name] for name in knobs if name in answers})
    source = open_source(config)
    return source.tables["train"].columns, choose_columns(source, config)


def _text(answers: Mapping[str, Any]) -> str | None:
    """None keeps what was found."""
    names, found = _columns(answers)
    keep = FOUND + " and ".join(found.text)
    chosen = _pick("Text column:", [keep, *names])
    if chosen == keep:
        return None
    alone = "(none: a single text)"
    pair = _pick("Second text column, for pairs:", [alone, *(name for name in names if name != chosen)])
    return chosen if pair == alone else repr([chosen, pair])


def _label(answers: Mapping[str, Any]) -> str | None:
    names, found = _columns(answers)
    keep = FOUND + ", ".join(found.label)
    chosen = _pick("Label column:", [keep, *names])
    return None if chosen == keep else chosen


def _model(answers: Mapping[str, Any]) -> str:
    from finetune.config import KNOBS

    usual = [KNOBS["model_name_or_path"].default, "google-bert/bert-base-uncased", "FacebookAI/roberta-base",
             "distilbert/distilbert-base-uncased", "microsoft/deberta-v3-base", "answerdotai/ModernBERT-base"]
    return _fuzzy("Model (a hub id or a folder):", usual, default=usual[0])


def _depths(answers: Mapping[str, Any]) -> str:
    from finetune.sweep.spec.draft import default_depths, layer_count

    layers = layer_count(answers["model_name_or_path"])
    default = "" if layers is None else str(default_depths(answers["model_name_or_path"]))
    known = f"the model has {layers} layers" if layers is not None else "the model is not here to count its layers"
    return _line(f"Freeze depths ({known}; -1 freezes the embeddings only):", default)


def _seeds(answers: Mapping[str, Any]) -> str:
    from finetune.sweep.spec.draft import DEFAULT_SEEDS

    return _line("Seeds (five or more give a verdict):", str(DEFAULT_SEEDS))


def _name(answers: Mapping[str, Any]) -> str:
    from finetune.sweep.spec.draft import default_name

    return _line("Name of the sweep:", default_name(answers))


def _line(message: str, default: str) -> str:
    import questionary

    question = questionary.text(message, default=default, validate=lambda text: bool(text.strip()) or "give a value")
    return question.unsafe_ask()
