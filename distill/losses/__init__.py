"""Losses: tensors in, scalar tensors out."""
