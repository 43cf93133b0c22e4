"""The mask stage: encoder and decoder are trained end to end on prompted masks."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

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
from distill.stages.base import TrainingStage
from distill.stages.prompt_rounds import ALL, MULTI, SINGLE, Decode, PromptRounds
from distill.stages.teacher_targets import teacher_embeddings, teacher_instances
from distill.stages.validation import Validator


class MaskStage(TrainingStage):
    """Draws prompts from masks, decodes them in rounds, and compares the predicted masks at low resolution.

    Prompts are drawn from the masks and boxes of the shards, or from the teacher's with `prompts.teacher_instances`.
    `targets` says what the predicted masks are compared with; it may be both:

    - The instances' masks. Every prompt trains the single mask (token 0). With `prompts.multimask` it also trains the
      best of the three others.
    - The teacher's masks for the same prompts, which its decoder predicts from the cached or online embedding. The
      shards' masks then serve for prompts alone.

    Args:
        model: the student.
        teacher: predicts the masks to imitate, and embeds batches that carry `teacher_pixels`.
        seed: decides, with the step and a photo's key, what is drawn for the photo.
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
        super().__init__(model, optim=optim, validator=validator, seed=seed)
        self.teacher = teacher
        self.prompt_config = prompts
        self.loss_config = loss
        self.target_config = targets or TargetConfig()
        self.decoder_config = decoder or DecoderConfig()
        self.imitates = bool(self.target_config.teacher_weight or loss.logit_weight or loss.teacher_iou_weight)
        if self.imitates or prompts.teacher_instances:
            _check_teacher(model, teacher)

    def compute_terms(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Return the named loss terms of a batch, means over its prompts and rounds; `loss` is their weighted sum.

        On several ranks they are a rank's share of the mean over all ranks' prompts, times the number of ranks. So
        ranks with unequal numbers of prompts take the same step as one rank with all prompts.
        """
        batch = self._with_teacher_embeddings(batch)
        embeddings = self.model.encode(batch.pixels)  # (B, C, E, E)
        terms = {name: embeddings.new_zeros((), dtype=torch.float32) for name in ("loss", *self.term_names())}
        instances, counts = self._instances(batch)
        weight = _weights(instances)  # every rank calls it, because the ranks count their prompts together
        if len(instances):
            for name, term in self._round_terms(batch, embeddings, instances, counts, weight).items():
                terms[name] = terms[name] + term
        for name, (term_weight, term) in self.embedding_terms(embeddings, batch).items():
            terms["loss"] = terms["loss"] + term_weight * term
            terms[name] = term
        terms["loss"] = terms["loss"] + self._touch_all_parameters(embeddings)
        return terms

    def embedding_terms(self, embeddings: Tensor, batch: ImageBatch) -> dict[str, tuple[float, Tensor]]:
        """Return weight and value, by name, of the terms on the embeddings (B, C, E, E). A subclass may add some."""
        if not self.loss_config.feature_weight or batch.teacher_embeddings is None:
            return {}
        feature = masked_mse(embeddings.float(), batch.teacher_embeddings, batch.valid)
        return {"feature": (self.loss_config.feature_weight, feature)}

    def term_names(self) -> list[str]:
        """Return the names of the terms of `compare_round`. A subclass that adds a term adds its name."""
        names = ["mask", "dice", "iou"] if self.target_config.truth_weight else []
        return names + (["teacher_mask", "teacher_dice", "logit", "teacher_iou"] if self.imitates else [])

    def compare_round(self, rounds: PromptRounds, weight: Tensor, noise: Tensor | None) -> list[tuple[str, Tensor]]:
        """Return the terms of the current round by name, `loss` among them. A name may come twice.

        Args:
            weight: (P,) of each prompt.
            noise: of `distill.losses.mask.sample_points`, or None if the loss samples no points.
        """
        found = self._truth_terms(rounds, weight, noise) if self.target_config.truth_weight else []
        return found + self._imitation_terms(rounds, weight, noise)

    def _truth_terms(self, rounds: PromptRounds, weight: Tensor, noise: Tensor | None) -> list[tuple[str, Tensor]]:
        instances, truth_weight = rounds.instances, self.target_config.truth_weight
        config = replace(
            self.loss_config,
            mask_weight=truth_weight * self.loss_config.mask_weight,
            dice_weight=truth_weight * self.loss_config.dice_weight,
        )
        found: list[tuple[str, Tensor]] = []
        for tokens in (SINGLE, MULTI) if rounds.is_multimask else (SINGLE,):
            terms = mask_losses(
                *rounds.masks.select(tokens),
                instances.masks,
                instances.valid,
                config=config,
                weight=weight,
                noise=noise,
            )
            found += [("mask", terms.mask), ("dice", terms.dice), ("iou", terms.iou), ("loss", terms.total(config))]
        return found

    def _imitation_terms(self, rounds: PromptRounds, weight: Tensor, noise: Tensor | None) -> list[tuple[str, Tensor]]:
        if rounds.teacher_masks is None:
            return []
        tokens = ALL if rounds.is_multimask else SINGLE
        terms = imitation_losses(
            *rounds.masks.select(tokens),
            *rounds.teacher_masks.select(tokens),
            rounds.instances.valid,
            config=self.loss_config,
            labels=self.target_config.labels,
            weight=weight,
            noise=noise,
        )
        return [
            ("teacher_mask", terms.mask),
            ("teacher_dice", terms.dice),
            ("logit", terms.logit),
            ("teacher_iou", terms.iou),
            ("loss", terms.total(self.loss_config, self.target_config.teacher_weight)),
        ]

    def _with_teacher_embeddings(self, batch: ImageBatch) -> ImageBatch:
        """Return the batch with the teacher's embeddings, if something needs them."""
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
        """Return the instances to prompt, and the number of instances of each photo."""
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

    def _round_terms(
        self, batch: ImageBatch, embeddings: Tensor, instances: Instances, counts: list[int], weight: Tensor
    ) -> dict[str, Tensor]:
        """Prompt, decode and compare, round by round. Return the named terms, summed with the weights (N,)."""
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
        rounds_of_groups = [PromptRounds(group, instances, config=config, by_truth=by_truth) for group in groups]
        clicks = [False, *draw_rounds(config, generator)]  # whether each round has a new click
        student, teacher = self._decoders(embeddings, batch.teacher_embeddings)
        sums: dict[str, Tensor] = {}
        for number, has_click in enumerate(clicks):
            click_noise = prompt_noise.uniform(3)  # (N, 3)
            num_points = self.loss_config.num_points
            points = loss_noise.uniform(noise_points(num_points), 2) if num_points else None
            for rounds in rounds_of_groups:
                if number:
                    noise = click_noise[rounds.rows] if has_click else None
                    rounds.refine(noise, prompt_size=self.model.prompt_size)
                rounds.decode(student, teacher)
                share = weight[rounds.rows] / len(clicks)  # (P,)
                for name, term in self.compare_round(rounds, share, None if points is None else points[rounds.rows]):
                    sums[name] = sums[name] + term if name in sums else term
        return sums

    def _decoders(self, embeddings: Tensor, of_teacher: Tensor | None) -> tuple[Decode, Decode | None]:
        """Return how the student decodes prompts, and the teacher if its masks are targets."""
        student = partial(self.model.decode_all, embeddings, **asdict(self.decoder_config))
        if not self.imitates:
            return student, None
        assert self.teacher is not None and of_teacher is not None
        chunk = self.decoder_config.prompts_per_chunk or PROMPT_BATCH_SIZE
        return student, partial(self.teacher.model.decode_all, of_teacher, prompts_per_chunk=chunk)

    def _touch_all_parameters(self, embeddings: Tensor) -> Tensor:
        """Return zero, computed from every trainable tensor that some batch leaves out.

        With it, every tensor has a gradient in every step, and DDP never waits for one.
        """
        parts = (self.model.prompt_encoder, self.model.mask_decoder)
        trainable = [p for part in parts for p in part.parameters() if p.requires_grad]
        return torch.stack([x.float().sum() for x in (embeddings, *trainable)]).sum() * 0

    def _noise(self, batch: ImageBatch, counts: list[int], purpose: str, *, on_host: bool = False) -> SampleNoise:
        """Return the random numbers of a batch: the same in a resumed run, and on any number of ranks."""
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
    """Return the weight of each instance (N,): the ranks over the instances of all ranks; 0 for an empty mask."""
    present = instances.masks.flatten(1).any(1).float()
    total, num_ranks = present.sum(), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        num_ranks = torch.distributed.get_world_size()
        torch.distributed.all_reduce(total)
    return present * num_ranks / total.clamp(min=1)
