"""`finetune sweep --adaptive`: the deepest safe depth without the whole grid."""
