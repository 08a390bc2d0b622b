"""A trained model on disk: what changed as a delta on its base, or the whole as a folder that transformers loads."""
