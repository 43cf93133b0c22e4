"""Public sets, as data: YAML files that `distill datasets` lists."""
