"""Texts -> token ids, kept on disk, in batches."""
