"""What was published, as data: YAML files that `distill recipes` lists."""
