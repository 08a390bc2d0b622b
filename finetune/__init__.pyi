# What type checkers and editors see of `import finetune`: at run time these names are imported on first use.
from finetune.errors import ConfigError as ConfigError
from finetune.errors import DataError as DataError
from finetune.errors import EnvironmentProblem as EnvironmentProblem
from finetune.errors import FinetuneError as FinetuneError
from finetune.errors import TrialFailed as TrialFailed
from finetune.interface.looking import Data as Data
from finetune.interface.looking import inspect_model as inspect_model
from finetune.interface.looking import load_data as load_data
from finetune.interface.probing import LayerProbes as LayerProbes
from finetune.interface.probing import probe_layers as probe_layers
from finetune.interface.reports import Report as Report
from finetune.interface.reports import make_report as make_report
from finetune.interface.sweeps import SweepResult as SweepResult
from finetune.interface.sweeps import run_sweep as run_sweep
from finetune.interface.trials import predict as predict
from finetune.interface.trials import run_trial as run_trial
from finetune.results import TrialRecord as TrialRecord

__version__: str
__all__: list[str]
