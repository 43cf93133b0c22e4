"""Knowledge distillation of Segment Anything into small promptable models.

`import distill` is cheap: a public name loads its module, and torch with it, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.models.automatic_masks import AutomaticMaskGenerator
    from distill.models.checkpoint import load_model
    from distill.models.predictor import Predictor
    from distill.models.sam import build_model
    from distill.models.teacher import load_teacher

__version__ = "0.1.0"
__all__ = ["AutomaticMaskGenerator", "Predictor", "__version__", "build_model", "load_model", "load_teacher"]

_MODULES = {
    "AutomaticMaskGenerator": "distill.models.automatic_masks",
    "Predictor": "distill.models.predictor",
    "build_model": "distill.models.sam",
    "load_model": "distill.models.checkpoint",
    "load_teacher": "distill.models.teacher",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    """List the public names before they are imported, too."""
    return sorted({*globals(), *__all__})
