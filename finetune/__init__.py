"""Fine-tune pretrained transformers with part of the layers frozen, and compare the depths.

>>> import finetune
>>> sorted(finetune.__all__)[:3]
['ConfigError', 'Data', 'DataError']
"""

from finetune.lazy import lazy_names

__version__ = "0.1.0"

_HOME = {
    "run_trial": "interface.trials", "predict": "interface.trials",
    "run_sweep": "interface.sweeps", "SweepResult": "interface.sweeps",
    "make_report": "interface.reports", "Report": "interface.reports",
    "load_data": "interface.looking", "Data": "interface.looking", "inspect_model": "interface.looking",
    "probe_layers": "interface.probing", "LayerProbes": "interface.probing",
    "TrialRecord": "results", "FinetuneError": "errors", "ConfigError": "errors", "DataError": "errors",
    "EnvironmentProblem": "errors", "TrialFailed": "errors",
}
__all__ = [*_HOME]  # noqa: PLE0604
__getattr__ = lazy_names(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
