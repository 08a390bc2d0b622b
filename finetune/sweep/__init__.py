"""Sweeps: W&B's YAML, an embedded search engine, and the workers that run its trials."""
