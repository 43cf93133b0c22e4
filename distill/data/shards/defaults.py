"""Defaults of shards that are built from photos, which a command's help shows without loading numpy."""

from __future__ import annotations

SAMPLES_PER_SHARD = 1000
MAX_BAD_SHARE = 0.01  # of photos that cannot be decoded
