"""`finetune sweep` with another task module: what the ladder runs. SPEC OUTPUT_DIR TASK."""

from __future__ import annotations

import sys
from pathlib import Path

from finetune.sweep.plan import SweepOptions
from finetune.sweep.runner import run_sweep
from finetune.sweep.spec.schema import load_spec
from finetune.sweep.view.live import open_view

if __name__ == "__main__":
    spec = load_spec(Path(sys.argv[1]), [])
    view = open_view()
    try:
        sys.exit(run_sweep(spec, SweepOptions(output_dir=Path(sys.argv[2]), task=sys.argv[3]), view).exit_code)
    finally:
        view.close()
