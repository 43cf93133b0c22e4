"""The published numbers of promptable models, read from numbers.yaml: each has a source, and a score a protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from distill.config.named_data import parse_split_name
from distill.data.catalogue import Split, load_dataset
from distill.errors import DistillError, did_you_mean
from distill.outside import Name, convert, read_yaml

NUMBERS = Path(__file__).with_name("numbers.yaml")
RESTORE = "restore the file, which is a part of the package"
UNITS = {"ap": "%", "miou": "%", "parameters": "M", "macs": "G", "throughput": "photos/s", "latency": "ms"}
WORDS = {"ap": "AP", "miou": "mIoU", "parameters": "parameters", "macs": "MACs"}
MOST = {"ap": 100, "miou": 100}  # percent; the other measures have no upper bound
MULTIMASK_WORDS: dict[str | None, str] = {"single": "single", "best": "best of three", None: "not stated"}

Address = Annotated[str, Meta(pattern=r"^https://\S+$")]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a number was published: the document with the table, and its address.

    second_hand: True if the number was read in a document that quotes the source.
    """

    title: Name
    url: Address
    second_hand: bool = False

    def __str__(self) -> str:
        return self.title + (" (read second-hand)" if self.second_hand else "")


class Protocol(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a published score came about, and what comes nearest to it here.

    image_set: a split of the catalogue, such as coco2017/val, or words.
    prompt, multimask: None where the source does not say.
    boxes: the name of the results JSON if the boxes are published, or words.
    recipe, options: of `distill evaluate`; an empty recipe if none of ours comes near.
    differs: what is different even so.
    """

    title: Name
    image_set: Name
    prompt: Literal["box", "point", "pair", "detection"] | None = None
    num_clicks: Annotated[int, Meta(ge=1)] | None = None
    multimask: Literal["single", "best"] | None = None
    boxes: str = ""
    recipe: str = ""
    options: tuple[str, ...] = ()
    differs: str = ""

    @property
    def split(self) -> Split | None:
        """The photos as a split of the catalogue, or None if they are none of its sets."""
        name = parse_split_name(self.image_set)
        return None if name is None else load_dataset(name.dataset).split(name.split)

    @property
    def protocol_name(self) -> str:
        """The name of the recipe's protocol, such as efficientvit_sam/coco_box."""
        return self.recipe.removeprefix("eval/")

    @property
    def publisher(self) -> str:
        """Whose rules the recipe follows, such as efficientvit_sam. Empty if they are ours."""
        return self.protocol_name.rpartition("/")[0]

    @property
    def mask(self) -> str:
        """How the mask is chosen, in words."""
        return MULTIMASK_WORDS[self.multimask]

    def __str__(self) -> str:
        return f"{self.title}, mask {self.mask}, {self.image_set}"


class Score(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published score in percent. protocol, source: keys of the file."""

    measure: Literal["ap", "miou"]
    value: Decimal
    protocol: Name
    source: Name


class Count(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published number of parameters in millions, or of multiply-adds for one photo in billions.

    of: the part that was counted. note: why our count differs.
    """

    measure: Literal["parameters", "macs"]
    of: Literal["encoder", "model", "not stated"]
    value: Decimal
    source: Name
    note: str = ""


class Speed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published throughput in photos a second, or a latency in milliseconds, with what it was measured on."""

    measure: Literal["throughput", "latency"]
    value: Decimal
    device: Name
    precision: Name
    conditions: Name
    source: Name


class PublishedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model with its published numbers.

    student: its name in the registry, if it can be built here. weights: the released file. prepare: a command that
    makes `weights` from released files. why: what is known of differences between its sources.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9_]+$")]
    title: Name
    student: str | None = None
    weights: str | None = None
    prepare: str = ""
    why: str = ""
    scores: tuple[Score, ...] = ()
    counts: tuple[Count, ...] = ()
    speeds: tuple[Speed, ...] = ()

    @property
    def values(self) -> Iterator[Score | Count | Speed]:
        """All numbers of the model: scores, then counts, then speeds."""
        yield from self.scores
        yield from self.counts
        yield from self.speeds

    def count(self, measure: str, of: str) -> Count | None:
        """Return the first count of a measure and a part, or None."""
        return next((count for count in self.counts if (count.measure, count.of) == (measure, of)), None)


class PublishedNumbers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is published: sources and protocols by key, and the models in the order of the tables."""

    sources: dict[str, Source]
    protocols: dict[str, Protocol]
    models: tuple[PublishedModel, ...]

    def find(self, pattern: str) -> list[PublishedModel]:
        """Return the models whose names match a pattern, or contain it if it has no wildcard.

        Raises:
            DistillError: no model matches; the error lists the near names.
        """
        by_name = {model.name: model for model in self.models}
        if pattern in by_name:
            return [by_name[pattern]]
        wild = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
        found = [model for name, model in by_name.items() if fnmatch(name, wild)]
        if not found:
            raise DistillError(f"no published numbers of '{pattern}'. {did_you_mean(pattern, by_name)}")
        return found

    def model(self, name: str) -> PublishedModel:
        """Return the model of a name. Raises DistillError, which lists the near names."""
        by_name = {model.name: model for model in self.models}
        if name not in by_name:
            raise DistillError(f"no published numbers of '{name}'. {did_you_mean(name, by_name)}")
        return by_name[name]


@cache
def published_numbers() -> PublishedNumbers:
    """Read the numbers that ship with the package. Raises DistillError if the file is damaged."""
    return read_numbers(NUMBERS)


def read_numbers(path: Path) -> PublishedNumbers:
    """Read a file of published numbers.

    Raises:
        DistillError: it cannot be read, is not of this form, names a model twice, has a value out of range, or
            names an unknown source or protocol.
    """
    content = read_yaml(path, "published numbers", RESTORE, raises=DistillError)
    numbers = convert(content, PublishedNumbers, str(path), RESTORE, raises=DistillError)
    names = [model.name for model in numbers.models]
    for model in numbers.models:
        if names.count(model.name) > 1:
            raise DistillError(f"{path}: two models are called '{model.name}'; {RESTORE}")
        for value in model.values:
            if not 0 < value.value <= MOST.get(value.measure, math.inf):
                raise DistillError(f"{path}: {model.name}: {value.measure} {value.value} is out of range; {RESTORE}")
            if value.source not in numbers.sources:
                raise DistillError(f"{path}: {model.name}: no source '{value.source}'; {RESTORE}")
            if isinstance(value, Score) and value.protocol not in numbers.protocols:
                raise DistillError(f"{path}: {model.name}: no protocol '{value.protocol}'; {RESTORE}")
    return numbers
