"""How a student starts: with the teacher's decoder, from a model of ours, or from a file of another project."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from distill.config.names import FROM_TEACHER, TIMM_HUB
from distill.config.schema import StudentConfig
from distill.errors import CheckpointError
from distill.models.checkpoint import (
    DECODER_PARTS,
    ENCODER_PREFIX,
    find_weights,
    is_own,
    load_model,
    load_state_dict_strict,
    without_prefix,
)
from distill.models.foreign_checkpoint import listed, read_tensors
from distill.models.sam import PromptableModel, build_from_spec, spec_for
from distill.models.teacher import Teacher
from distill.students import check_student_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """The difference between an ImageNet classifier's file and the encoder that has its backbone.

    head: prefixes of the tensors in the file that the encoder does not have.
    new: prefixes of the encoder's tensors that the file does not have.
    prefix: what the encoder adds before the file's names.
    """

    head: tuple[str, ...]
    new: tuple[str, ...]
    prefix: str = ""


# Keyed by the module that builds the student. Names are those of the backbones' repositories; for NanoSAM, of timm.
CLASSIFIERS = {
    "distill.students.efficientvit": Classifier(head=("head.",), new=("neck.", "norm.")),
    "distill.students.tinyvit": Classifier(head=(), new=("neck.",)),  # the encoder keeps TinyViT's head
    "distill.students.repvit": Classifier(head=("classifier.",), new=("neck.", "fuse_stage2.", "fuse_stage3.")),
    "distill.students.nanosam": Classifier(head=("fc.",), new=("up_1.", "proj.", "pos_embedding"), prefix="backbone."),
}


def build_student(config: StudentConfig, teacher: Teacher) -> PromptableModel:
    """Build the student with which a stage starts.

    A model of ours in `init_from` is loaded as it is. Otherwise the student is new: it has the teacher's prompt encoder
    and mask decoder, and its encoder may start from `init_from` or `pretrained`.

    Raises:
        DistillError: the weights of `init_from` or `pretrained` are another student's or do not fit the teacher's
            embedding, or no tensor of the teacher's encoder fits.
    """
    path = None if config.init_from in (None, FROM_TEACHER) else find_weights(config.init_from)
    if path is not None and is_own(path):
        model = load_model(path)
        _check_start(model, config, teacher)
        return model
    model = build_from_spec(spec_for(config.name, image_size=config.image_size, like=teacher.model.spec))
    for part in DECODER_PARTS:
        weights = getattr(teacher.model, part).state_dict()
        load_state_dict_strict(getattr(model, part), weights, source=f"the {part} of teacher '{teacher.name}'")
    if config.init_from == FROM_TEACHER:
        _start_encoder_from(teacher, model)
    elif path is not None:
        start_from_released(model, path)
    if config.pretrained is not None:
        _start_backbone_from(config.pretrained, model)
    return model


def start_from_released(student: PromptableModel, path: Path) -> None:
    """Load a released file: a complete model, only an encoder, or an ImageNet classifier with the encoder's backbone.

    Parts that the file does not hold keep their weights: the decoder, and for a classifier the encoder's neck.

    Raises:
        CheckpointError: some tensors are missing, unexpected or of another shape. The error lists them, and nothing
            is loaded.
    """
    entry = check_student_name(student.spec.encoder)
    state = read_tensors(path)
    source = f"student.init_from={path} as {student.spec.encoder}"
    is_whole = any(name.startswith(ENCODER_PREFIX) for name in state) and any(map(_is_decoder, state))
    if is_whole and not entry.own_decoder:
        load_state_dict_strict(student, state, source=source)
        logger.info("%s: encoder and decoder start from it", path)
        return
    encoder = without_prefix({name: tensor for name, tensor in state.items() if not _is_decoder(name)})
    classifier = CLASSIFIERS.get(entry.module)
    if classifier is not None and not any(name.startswith(classifier.new) for name in encoder):
        _start_from_classifier(student, classifier, encoder, path)
        return
    load_state_dict_strict(student.image_encoder, encoder, source=f"{source}, its encoder")
    left_out = "; its own decoder is left out" if is_whole else ""
    logger.info("%s: the encoder starts from it, the decoder from the teacher%s", path, left_out)


def _is_decoder(name: str) -> bool:
    return name.startswith(DECODER_PARTS)


def _start_from_classifier(
    student: PromptableModel, classifier: Classifier, state: Mapping[str, Tensor], path: Path
) -> None:
    own = student.image_encoder.state_dict()
    new = {name: tensor for name, tensor in own.items() if name.startswith(classifier.new)}
    head = [name for name in state if name.startswith(classifier.head)]
    backbone = {classifier.prefix + name: tensor for name, tensor in state.items() if name not in head}
    source = f"student.init_from={path} as the backbone of {student.spec.encoder}"
    load_state_dict_strict(student.image_encoder, {**backbone, **new}, source=source)
    logger.info("%s: the backbone starts from it; left out: %s", path, listed(head) or "nothing")
    logger.info("not in it, and begun at random: %s", listed(new))


def _start_backbone_from(pretrained: str, student: PromptableModel) -> None:
    """Load the weights of a file or of timm's hub into a timm backbone."""
    from distill.students.timm import TimmEncoder, load_pretrained

    encoder = student.image_encoder
    if not isinstance(encoder, TimmEncoder):
        raise CheckpointError(
            f"student.pretrained={pretrained} is for students named timm/NAME; {student.spec.encoder} starts from "
            f"released files by student.init_from=FILE"
        )
    source = f"student.pretrained={pretrained}"
    load_pretrained(encoder, None if pretrained == TIMM_HUB else read_tensors(pretrained), source=source)
    logger.info("%s: the backbone starts from it, without the classifier's head", source)


def _start_encoder_from(teacher: Teacher, student: PromptableModel) -> None:
    """Copy the tensors of the teacher's encoder that have the same name and shape in the student's encoder."""
    own = student.image_encoder.state_dict()
    weights = teacher.model.image_encoder.state_dict()
    shared = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    if not shared:
        raise CheckpointError(
            f"student.init_from={FROM_TEACHER}: no tensor of the encoder of teacher '{teacher.name}' has the name and "
            f"shape of one of {student.spec.encoder}'s; leave student.init_from out"
        )
    student.image_encoder.load_state_dict(shared, strict=False)
    logger.info("%d of the encoder's %d tensors start as the teacher's", len(shared), len(own))


def _check_start(model: PromptableModel, config: StudentConfig, teacher: Teacher) -> None:
    spec, like = model.spec, teacher.model.spec
    wanted = {
        "student.name": (spec.encoder, config.name),
        "student.image_size": (spec.image_size, config.image_size or spec.image_size),
        "the teacher's embedding_dim": (spec.embedding_dim, like.embedding_dim),
        "the teacher's embedding_size": (spec.embedding_size, like.embedding_size),
    }
    for what, (found, expected) in wanted.items():
        if found != expected:
            raise CheckpointError(
                f"student.init_from={config.init_from}: its model has {found}, {what} is {expected}; make them equal"
            )
