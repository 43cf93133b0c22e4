"""The files in a folder of an exported model. This module loads no torch."""

from __future__ import annotations

from pathlib import Path

ENCODER_FILE, DECODER_FILE, DESCRIPTION_FILE = "encoder.onnx", "decoder.onnx", "model.json"
SINGLE_DECODER_FILE = "decoder_single.onnx"  # a faster one for prompts without a mask; a folder may lack it
FILES = (ENCODER_FILE, DECODER_FILE, DESCRIPTION_FILE)


def holds_export(folder: Path) -> bool:
    """Return whether a folder holds all files of an exported model."""
    return all((folder / name).is_file() for name in FILES)
