"""Which parameters train when: strategies make plans, the audit proves that they hold. Imports no torch by itself."""

from finetune.lazy import lazy_names

__getattr__ = lazy_names(__name__, {
    "FreezePlan": "plan", "Moment": "strategies", "Strategy": "strategies", "resolve_strategy": "strategies",
    "AuditReport": "audit", "audit_gradients": "audit", "audit_loss": "audit", "check_frozen": "audit",
    "frozen_digests": "audit",
    "layer_scales": "decay", "part_gradient_norms": "audit",
    "checkpoint_layers": "prepare", "prepare_backbone": "prepare", "reinit_layers": "prepare",
})
