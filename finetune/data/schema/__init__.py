"""Which columns hold text and label, which rows can be used, what the labels mean."""
