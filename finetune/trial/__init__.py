"""One trial, from configuration to record. Names are imported on first use: a view needs no torch."""

from finetune.lazy import lazy_names

__getattr__ = lazy_names(__name__, {
    "TrialOutcome": "state", "run_trial": "recipe",
    "ResolvedTrial": "resolve", "resolve_trial": "resolve",
    "prepare_trial": "build", "build_classifier": "build", "encode_splits": "build", "audit": "build",
})
