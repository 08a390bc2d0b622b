"""Train, validation and test: found by name, or made from the rows."""
