"""Tracking with Weights & Biases: one run per trial, opened by the process that trains it.

Without an account everything works: WANDB_MODE=offline records runs for later, without a key W&B is off.
"""

from finetune.tracking.client import check_mode, in_sweep, speak_through
from finetune.tracking.others import trackers
from finetune.tracking.tracker import Tracker, refuse

__all__ = ["Tracker", "check_mode", "in_sweep", "refuse", "speak_through", "trackers"]
