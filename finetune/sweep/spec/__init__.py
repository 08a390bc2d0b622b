"""W&B's sweep YAML: file, schema, parameters, distributions, points."""
