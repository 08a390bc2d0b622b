"""Runs a sweep of the stand-in task as a process of its own, for tests that kill it: DIR YAML OPTIONS-AS-JSON."""

import json
import sys
from pathlib import Path

import yaml

from finetune.errors import FinetuneError
from finetune.sweep.plan import SweepOptions
from finetune.sweep.runner import run_sweep
from finetune.sweep.spec.schema import parse_spec
from finetune.sweep.view.live import PlainView


def main() -> int:
    spec = parse_spec(yaml.safe_load(sys.argv[2]), default_name="driven")
    options = SweepOptions(Path(sys.argv[1]), **{"task": "sweep_standin", "workers": 2, **json.loads(sys.argv[3])})
    try:
        return run_sweep(spec, options, PlainView()).exit_code
    except FinetuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
