"""Which parameters train when: strategies make plans, the audit proves that they hold. Imports no torch by itself."""

from importlib import import_module
from typing import Any

_HOME = {
    "FreezePlan": "plan", "Moment": "strategies", "Strategy": "strategies", "resolve_strategy": "strategies",
    "AuditReport": "audit", "audit_gradients": "audit", "audit_loss": "audit", "check_frozen": "audit",
    "frozen_digests": "audit",
    "layer_scales": "decay", "part_gradient_norms": "audit",
    "checkpoint_layers": "prepare", "prepare_backbone": "prepare", "reinit_layers": "prepare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
