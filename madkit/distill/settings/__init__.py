"""What a run may be told: the typed schema, shipped arms and recipes as YAML, and how they lie over each other."""
