"""Folders that other projects' programs load: their names, their inputs, and what they expect inside the graph."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import onnx

from distill.errors import DistillError
from distill.export.decoder import DecoderForm
from distill.export.onnx import ANY_SHAPE, Shapes
from distill.export.photo_input import PixelType, read_photos
from distill.export.trace import OPSET, save_graph
from distill.files import hash_file, write_text
from distill.models.sam import PromptableModel
from distill.runtimes.folder import DECODER_FILE, ENCODER_FILE

Layout: TypeAlias = Literal["distill", "segment-anything", "samexporter", "osam", "labelme", "x-anylabeling"]
CLIENT_FRAME = 1024  # the longest side to which samexporter and X-AnyLabeling scale photos and points
CLIENT_MASK = 256  # the side of the masks that every client of SAM sends
EMBEDDING = (256, 64)  # the channels and the grid that X-AnyLabeling asks for
PHOTO_OPSET = 18  # the first whose Resize averages as it reduces
ONE_PHOTO = Shapes(batch=1)
OSAM_FILE, LABELME_FILE, ANYLABELING_FILE = "distill_osam.py", "distill_labelme.py", "config.yaml"


@dataclass(frozen=True)
class ClientForm:
    """What a client asks of the files.

    pixels: the client's photos that the encoder takes; None for normalised pixels.
    encoder_input: the name of the encoder's input.
    names: of the encoder's and the decoder's file.
    """

    decoder: DecoderForm
    shapes: Shapes
    opset: int
    encoder_input: str = "pixels"
    pixels: PixelType | None = None
    names: tuple[str, str] = (ENCODER_FILE, DECODER_FILE)


def client_form(layout: Layout, model: PromptableModel) -> ClientForm:
    """Return what a layout's client asks of the files of a model.

    Raises:
        DistillError: the client cannot take such a model.
    """
    if layout == "distill":
        return ClientForm(DecoderForm(), ANY_SHAPE, OPSET)
    if layout == "segment-anything":
        return ClientForm(DecoderForm(photo_size=True), ANY_SHAPE, OPSET)
    frame = model.image_size if layout in ("osam", "labelme") else CLIENT_FRAME
    masks: Literal["single", "all"] = "all" if layout == "samexporter" else "single"
    decoder = DecoderForm(masks, photo_size=True, point_frame=frame, mask_side=CLIENT_MASK, mends_padding=True)
    if layout == "samexporter":
        names = ("model.encoder.onnx", "model.decoder.onnx")
        return ClientForm(decoder, ONE_PHOTO, PHOTO_OPSET, "input_image", "float32", names)
    if layout == "x-anylabeling":
        if (model.embedding_dim, model.embedding_size) != EMBEDDING:
            raise DistillError(
                f"--layout x-anylabeling: it takes embeddings of {EMBEDDING[0]} channels on a grid of {EMBEDDING[1]}, "
                f"and this model's have {model.embedding_dim} on {model.embedding_size}; take --layout osam"
            )
        return ClientForm(decoder, ONE_PHOTO, PHOTO_OPSET, "image", "uint8")
    return ClientForm(decoder, ONE_PHOTO, OPSET, "x")


def arrange(layout: Layout, folder: Path, model: PromptableModel) -> None:
    """Turn a folder of encoder.onnx and decoder.onnx, exported in the client's form, into what the client loads."""
    form = client_form(layout, model)
    encoder = onnx.load(folder / ENCODER_FILE)
    if form.pixels is not None:
        encoder = read_photos(encoder, model.image_size, form.encoder_input, form.pixels)
    elif form.encoder_input != "pixels":
        _rename_input(encoder, "pixels", form.encoder_input)
    save_graph(encoder, folder / ENCODER_FILE)
    for old, new in zip((ENCODER_FILE, DECODER_FILE), form.names, strict=True):
        (folder / old).rename(folder / new)
    if layout in ("osam", "labelme"):
        hashes = [f"sha256:{hash_file(folder / name)}" for name in form.names]
        write_text(folder / OSAM_FILE, OSAM_MODULE.format(encoder=hashes[0], decoder=hashes[1]), raises=DistillError)
    if layout == "labelme":
        write_text(folder / LABELME_FILE, LABELME_SCRIPT, raises=DistillError)
    if layout == "x-anylabeling":
        write_text(folder / ANYLABELING_FILE, _anylabeling_config(model), raises=DistillError)


def _rename_input(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
    for item in model.graph.input:
        if item.name == old:
            item.name = new


def _anylabeling_config(model: PromptableModel) -> str:
    label = json.dumps(f"distill: {model.spec.encoder}")
    lines = [
        "# X-AnyLabeling: Model > Load Custom Model, and choose this file.",
        "type: efficientvit_sam",
        "name: distill-student",
        "provider: distill",
        f"display_name: {label}",
        f"encoder_model_path: {ENCODER_FILE}",
        f"decoder_model_path: {DECODER_FILE}",
        f"target_size: {CLIENT_FRAME}",
        "",
    ]
    return "\n".join(lines)


OSAM_MODULE = '''"""Importing this file registers the model beside it in osam, as distill:latest.

    import distill_osam
    osam.apis.generate(osam.types.GenerateRequest(model="distill:latest", image=..., prompt=...))
"""

import pathlib

import osam
from osam._models.sam._models import Sam


class LocalFile(osam.types.Blob):
    """A file beside this one, in the place of a download."""

    @property
    def path(self):
        return str(pathlib.Path(__file__).parent / self.url)

    def pull(self, *args, **kwargs):
        pass

    def remove(self):
        raise OSError(f"{{self.path}} is not osam's: delete its folder")


class Distilled(Sam):
    name = "distill:latest"
    _blobs = {{
        "encoder": LocalFile("encoder.onnx", "{encoder}"),
        "decoder": LocalFile("decoder.onnx", "{decoder}"),
    }}


if all(model.name != Distilled.name for model in osam.apis.registered_model_types):
    osam.apis.registered_model_types.append(Distilled)
'''

LABELME_SCRIPT = '''"""Starts labelme with the model beside this file among its AI models.

    python distill_labelme.py PHOTOS
"""

import distill_osam
from labelme.widgets._ai_assisted_annotation_widget import AiAssistedAnnotationWidget

AiAssistedAnnotationWidget._available_models.insert(0, (distill_osam.Distilled.name, "distill"))

if __name__ == "__main__":
    from labelme.__main__ import main

    main()
'''
