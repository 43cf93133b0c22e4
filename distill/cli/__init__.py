"""What a person runs: one file for each command of `distill`."""
