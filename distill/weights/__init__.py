"""The weights that ship with the package, each beside a card."""
