"""The mask stage: encoder and decoder are trained end to end on prompted masks."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
import torch.distributed
from torch import Tensor

from distill.batch import ImageBatch
from distill.config.schema import DecoderConfig, MaskLossConfig, OptimConfig, PromptConfig, TargetConfig
from distill.errors import DistillError
from distill.geometry import valid_masks
from distill.losses.feature import masked_mse
from distill.losses.mask import imitation_losses, mask_losses, noise_points
from distill.models.multimask import PROMPT_BATCH_SIZE
from distill.models.sam import PromptableModel
from distill.models.teacher import Teacher
from distill.prompts.refinement import draw_rounds
from distill.prompts.sampling import Instances, draw_prompts
from distill.prompts.seeded_noise import SampleNoise, step_generator
from distill.stages.base import Stage
from distill.stages.prompt_rounds import ALL, MULTI, SINGLE, Answer, Dialogue
from distill.stages.teacher_targets import teacher_embeddings, teacher_instances
from distill.stages.validation import Validator


class MaskStage(Stage):
    """Draws prompts from masks, decodes them in rounds, and compares the answers at low resolution.

    The masks that prompts are drawn from, and the boxes, are the shards' (or, with `prompts.teacher_instances`, the
    teacher's). `targets` says what the answers are compared with: those masks, of which every prompt trains the single
    mask (token 0) and with `prompts.multimask` also the best of the three others; or the teacher's answers to the same
    prompts, given by its decoder on the cached embedding (or the one just made), and then the shards' masks serve for
    prompts alone; or both.

    Args:
        model: the student. teacher: for its masks, and for batches that carry `teacher_pixels`.
        seed: with the step and a photo's key it decides what is drawn for the photo.
    Raises:
        DistillError: the teacher is needed and missing, or has another grid.
    """

    def __init__(
        self,
        model: PromptableModel,
        teacher: Teacher | None = None,
        *,
        prompts: PromptConfig,
        loss: MaskLossConfig,
        optim: OptimConfig,
        targets: TargetConfig | None = None,
        decoder: DecoderConfig | None = None,
        validator: Validator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optim=optim, validator=validator)
        self.teacher = teacher
        self.prompt_config = prompts
        self.loss_config = loss
        self.target_config = targets or TargetConfig()
        self.decoder_config = decoder or DecoderConfig()
        self.seed = seed
        self.imitates = bool(self.target_config.teacher_weight or loss.logit_weight or loss.teacher_iou_weight)
        if self.imitates or prompts.teacher_instances:
            _check_teacher(model, teacher)

    def compute_terms(self, batch: ImageBatch) -> dict[str, Tensor]:
        """The named loss terms of a batch, means over its prompts and rounds; `loss` is their weighted sum.

        On several ranks they are a rank's share of the mean over all ranks' prompts, times the number of ranks: ranks
        with unequal numbers of prompts step as one that has them all.
        """
        batch = self._with_teacher_embeddings(batch)
        embeddings = self.model.encode(batch.pixels)  # (B, C, E, E)
        terms = {name: embeddings.new_zeros((), dtype=torch.float32) for name in ("loss", *self._term_names())}
        instances, counts = self._instances(batch)
        weight = _weights(instances)  # every rank calls it, as the ranks count their prompts together
        if len(instances):
            for name, term in self._rounds(batch, embeddings, instances, counts, weight).items():
                terms[name] = terms[name] + term
        for name, (term_weight, term) in self.embedding_terms(embeddings, batch).items():
            terms["loss"] = terms["loss"] + term_weight * term
            terms[name] = term
        terms["loss"] = terms["loss"] + self._touch_all_parameters(embeddings)
        return terms

    def embedding_terms(self, embeddings: Tensor, batch: ImageBatch) -> dict[str, tuple[float, Tensor]]:
        """Name -> weight and value of terms on the embeddings (B, C, E, E) alone; a subclass may add its own."""
        if not self.loss_config.feature_weight or batch.teacher_embeddings is None:
            return {}
        feature = masked_mse(embeddings.float(), batch.teacher_embeddings, batch.valid)
        return {"feature": (self.loss_config.feature_weight, feature)}

    def _term_names(self) -> list[str]:
        names = ["mask", "dice", "iou"] if self.target_config.truth_weight else []
        return names + (["teacher_mask", "teacher_dice", "logit", "teacher_iou"] if self.imitates else [])

    def _with_teacher_embeddings(self, batch: ImageBatch) -> ImageBatch:
        """The batch with the teacher's embeddings where something needs them."""
        if not (self.imitates or self.prompt_config.teacher_instances or self.loss_config.feature_weight):
            return batch
        embeddings = teacher_embeddings(batch, self.teacher)
        if embeddings is None:
            raise DistillError(
                "the mask stage asks the teacher, but got photos without its embeddings: build them with "
                "`distill cache build RECIPE` and set cache.dir, or set teacher.source=online"
            )
        return replace(batch, teacher_embeddings=embeddings)

    def _instances(self, batch: ImageBatch) -> tuple[Instances, list[int]]:
        """What is asked about, and how many of each photo."""
        num = self.prompt_config.teacher_instances
        if num:
            assert self.teacher is not None and batch.teacher_embeddings is not None
            counts = [num] * len(batch.keys)
            noise = self._noise(batch, counts, "instances").uniform(3)
            return teacher_instances(self.teacher, batch.teacher_embeddings, batch.original_hw, noise), counts
        if batch.masks is None or batch.boxes_xyxy is None or batch.mask_image_index is None:
            raise DistillError("the mask stage needs shards with masks; these have photographs alone")
        valid = valid_masks(batch.original_hw, self.model.low_res_size).index_select(0, batch.mask_image_index)
        instances = Instances(batch.masks, valid, batch.mask_image_index, batch.boxes_xyxy)
        return instances, batch.instance_counts()

    def _rounds(
        self, batch: ImageBatch, embeddings: Tensor, instances: Instances, counts: list[int], weight: Tensor
    ) -> dict[str, Tensor]:
        """Ask, answer and compare, round by round; the named terms, summed with the weights (N,)."""
        config, generator = self.prompt_config, step_generator(self.seed, self.global_step)
        prompt_noise, loss_noise = self._noise(batch, counts, "prompts"), self._noise(batch, counts, "loss")
        groups = draw_prompts(
            instances,
            config=config,
            prompt_size=self.model.prompt_size,
            kinds=self._noise(batch, counts, "kinds", on_host=True).uniform(2),
            noise=prompt_noise,
            generator=generator,
        )
        by_truth = bool(self.target_config.truth_weight)
        dialogues = [Dialogue(group, instances, config=config, by_truth=by_truth) for group in groups]
        rounds = [False, *draw_rounds(config, generator)]  # whether each has a new click
        sums: dict[str, Tensor] = {}
        for place, has_click in enumerate(rounds):
            click_noise = prompt_noise.uniform(3)  # (N, 3)
            num_points = self.loss_config.num_points
            points = loss_noise.uniform(noise_points(num_points), 2) if num_points else None
            for dialogue in dialogues:
                if place:
                    noise = click_noise[dialogue.rows] if has_click else None
                    dialogue.refine(noise, prompt_size=self.model.prompt_size)
                self._ask(dialogue, embeddings, batch.teacher_embeddings)
                share = weight[dialogue.rows] / len(rounds)  # (P,)
                for name, term in self._compare(dialogue, share, None if points is None else points[dialogue.rows]):
                    sums[name] = sums[name] + term if name in sums else term
        return sums

    def _ask(self, dialogue: Dialogue, embeddings: Tensor, of_teacher: Tensor | None) -> None:
        """Let the student answer, and the teacher where its answer is a target."""
        options = asdict(self.decoder_config)
        dialogue.answer = Answer(*self.model.decode_all(embeddings, dialogue.prompts, **options))
        if not self.imitates:
            return
        assert self.teacher is not None and of_teacher is not None
        chunk = self.decoder_config.prompts_per_chunk or PROMPT_BATCH_SIZE
        with torch.no_grad():
            dialogue.teacher_answer = Answer(
                *self.teacher.model.decode_all(of_teacher, dialogue.teacher_prompts, prompts_per_chunk=chunk)
            )

    def _compare(self, dialogue: Dialogue, weight: Tensor, noise: Tensor | None) -> list[tuple[str, Tensor]]:
        """The terms of one round by name, `loss` among them; a name may come twice."""
        config, targets, instances = self.loss_config, self.target_config, dialogue.instances
        assert dialogue.answer is not None
        found: list[tuple[str, Tensor]] = []
        if targets.truth_weight:
            scaled = replace(
                config,
                mask_weight=targets.truth_weight * config.mask_weight,
                dice_weight=targets.truth_weight * config.dice_weight,
            )
            for tokens in (SINGLE, MULTI) if dialogue.is_multimask else (SINGLE,):
                terms = mask_losses(
                    *dialogue.answer.of(tokens),
                    instances.masks,
                    instances.valid,
                    config=scaled,
                    weight=weight,
                    noise=noise,
                )
                found += [("mask", terms.mask), ("dice", terms.dice), ("iou", terms.iou), ("loss", terms.total(scaled))]
        if dialogue.teacher_answer is not None:
            tokens = ALL if dialogue.is_multimask else SINGLE
            imitation = imitation_losses(
                *dialogue.answer.of(tokens),
                *dialogue.teacher_answer.of(tokens),
                instances.valid,
                config=config,
                labels=targets.labels,
                weight=weight,
                noise=noise,
            )
            found += [
                ("teacher_mask", imitation.mask),
                ("teacher_dice", imitation.dice),
                ("logit", imitation.logit),
                ("teacher_iou", imitation.iou),
                ("loss", imitation.total(config, targets.teacher_weight)),
            ]
        return found

    def _touch_all_parameters(self, embeddings: Tensor) -> Tensor:
        """Zero, by way of every trainable tensor that some batch leaves out: DDP then never waits for a gradient."""
        parts = (self.model.prompt_encoder, self.model.mask_decoder)
        trainable = [p for part in parts for p in part.parameters() if p.requires_grad]
        return torch.stack([x.float().sum() for x in (embeddings, *trainable)]).sum() * 0

    def _noise(self, batch: ImageBatch, counts: list[int], purpose: str, *, on_host: bool = False) -> SampleNoise:
        """A resumed run draws what it would have drawn, and any number of ranks draw what one does."""
        return SampleNoise(
            batch.keys,
            counts,
            seed=self.seed,
            step=self.global_step,
            purpose=purpose,
            device="cpu" if on_host else batch.pixels.device,
        )


def _check_teacher(model: PromptableModel, teacher: Teacher | None) -> None:
    if teacher is None:
        raise DistillError(
            "targets.teacher_weight, loss.logit_weight, loss.teacher_iou_weight and prompts.teacher_instances need a "
            "teacher; set them to 0, or give MaskStage one"
        )
    if model.embedding_size != teacher.embedding_size:
        raise DistillError(
            f"the student answers on a grid of {model.embedding_size}, the teacher {teacher.name} on one of "
            f"{teacher.embedding_size}: their masks cannot be compared; build the student with the teacher's embedding"
        )


def _weights(instances: Instances) -> Tensor:
    """What each instance (N,) counts: 1 / their number on all ranks, times the ranks; 0 for a mask of nothing."""
    present = instances.masks.flatten(1).any(1).float()
    total, num_ranks = present.sum(), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        num_ranks = torch.distributed.get_world_size()
        torch.distributed.all_reduce(total)
    return present * num_ranks / total.clamp(min=1)
