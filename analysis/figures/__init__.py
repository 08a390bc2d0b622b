"""Pictures: computed first, then drawn."""
