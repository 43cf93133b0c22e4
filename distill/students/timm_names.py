"""Student names of timm's backbones: their parts, and whether timm knows them. It imports neither timm nor torch.

timm/NAME[.TAG][@[FINEST-]COARSEST][+sam|+slim]; `distill.students.timm` says what each part does.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from distill.errors import DistillError, did_you_mean

TIMM_PREFIX = "timm/"
STRIDES = ("4", "8", "16", "32")
NAME = re.compile(r"(?P<backbone>[^@+]+)(@((?P<finest>\w+)-)?(?P<coarsest>\w+))?(\+(?P<neck>\w+))?")
# How timm's source declares a model, and lists the weights of one.
DECLARED = re.compile(r"@register_model\s*\n(?:@[^\n]*\n)*def (\w+)\(")
SAM_NECK, SLIM_NECK = "sam", "slim"
NO_WEIGHTS = "untrained"  # timm's tag of a model without released weights
LISTED = re.compile(r"""['"](\w+)\.(\w+)['"]\s*:""")


@dataclass(frozen=True)
class Choice:
    """The parts of a student name.

    backbone: NAME or NAME.TAG.
    finest, coarsest: strides of the levels; None if the name does not say.
    neck: "sam" for SAM's neck, "slim" for the slim pyramid, None for the pyramid.
    """

    backbone: str
    finest: int | None
    coarsest: int | None
    neck: str | None

    @property
    def has_tag(self) -> bool:
        """True if the name selects one of timm's pre-trained weights."""
        return "." in self.backbone

    @property
    def sam_neck(self) -> bool:
        """True for SAM's neck, which takes one level, False for a pyramid over several."""
        return self.neck == SAM_NECK


def parse_name(name: str) -> Choice:
    """Parse a student name that begins with timm/.

    Raises:
        DistillError: timm does not know the name or TAG, or the stride or neck is not one of those that exist.
    """
    found = NAME.fullmatch(name[len(TIMM_PREFIX) :])
    if found is None:
        raise DistillError(f"{name}: give timm/NAME, timm/NAME@16, timm/NAME@8-32, timm/NAME+sam or timm/NAME@16+slim")
    backbone, _, tag = found["backbone"].partition(".")
    known = known_models()
    if backbone not in known:
        raise DistillError(f"timm has no model '{backbone}'. {did_you_mean(backbone, known)}")
    tags = known[backbone]
    if tag and tags and tag not in tags:
        raise DistillError(f"timm has no weights '{tag}' of {backbone}. {did_you_mean(tag, tags)}")
    for stride in (found["finest"], found["coarsest"]):
        if stride and stride not in STRIDES:
            raise DistillError(f"{name}: '@{stride}' is no stride; give one of {', '.join('@' + s for s in STRIDES)}")
    if found["neck"] not in (None, SAM_NECK, SLIM_NECK):
        raise DistillError(f"{name}: '+{found['neck']}' is no neck; give +sam, +slim, or nothing for the pyramid")
    finest, coarsest = (int(stride) if stride else None for stride in (found["finest"], found["coarsest"]))
    return Choice(found["backbone"], finest, coarsest, found["neck"])


def known_models() -> dict[str, tuple[str, ...]]:
    """Return the tags of each model of timm, by its name: from timm if it is imported already, or from its source.

    The source differs in few tags from what timm then says: it lists none of some models, and one too many of nine,
    whose weights were not released.
    """
    timm = sys.modules.get("timm")
    if timm is None:
        return _declared_models()
    tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for full in timm.list_pretrained():
        name, _, tag = full.partition(".")
        tags.setdefault(name, []).append(tag)
    return {name: tuple(found) for name, found in tags.items()}


@cache
def _declared_models() -> dict[str, tuple[str, ...]]:
    """Read the names of timm's models and their tags from its source, which takes no import of torch."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise DistillError("a student timm/NAME needs the package timm, which is not installed: pip install timm")
    files = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    sources = [file.read_text(encoding="utf-8") for file in files]
    tags: dict[str, list[str]] = {name: [] for source in sources for name in DECLARED.findall(source)}
    for source in sources:
        for name, tag in LISTED.findall(source):
            if name in tags and tag != NO_WEIGHTS:
                tags[name].append(tag)
    return {name: tuple(found) for name, found in tags.items()}
