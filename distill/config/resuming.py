"""What a resumed training does with each option that was changed: it obeys the new value, or it refuses to go on.

Every option of a training's recipe stands in one of the tables here, and a test says so. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.secret import is_same, recorded

# Options that name the run itself, or how it is done and not what is learned. A change of one is no change of the run.
SAME_RUN = ("run", "resume")

# Options that decided what was learned so far. With another value the record of the run would not be true.
REFUSED = (
    "kind",
    "seed",
    "student.name",
    "student.image_size",
    "student.init_from",
    "student.pretrained",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
    "trainer.fast_dev_run",
)

# What Lightning takes for arguments that a recipe leaves out, where a change is refused.
UNSET = {
    "trainer.accumulate_grad_batches": 1,
    "trainer.limit_train_batches": 1.0,
    "trainer.fast_dev_run": False,
}

# Options that say where something is, or which share of it a process gets. What they lead to is compared with the
# checkpoint, so that files may move and a global batch may be shared by another number of devices:
# - the teacher by the hash of its weights (distill.training.changes);
# - photos and the global batch by the loader's state (distill.data.loading.loader.check_same_epoch).
BY_CONTENT = (
    "teacher.name",
    "teacher.checkpoint",
    "teacher.verify_sha256",
    "data.images",
    "data.batch_size",
    "trainer.devices",
    "trainer.num_nodes",
)

# Options that the steps after the checkpoint obey. `SECTION.*` means every option of a section.
OBEYED = (
    "teacher.source",
    "data.val_images",
    "data.num_workers",
    "data.max_instances",
    "data.instance_odds",
    "data.instance_draw",
    "data.hflip",
    "data.max_bad_share",
    "cache.*",
    "optim.*",
    "loss.*",
    "prompts.*",
    "targets.*",
    "decoder.*",
    "validation.*",
    "checkpoint.*",
    "logger",
    "trainer.*",  # those that are not refused
)

# Options that are obeyed, but not where one value is 0 and the other is not: then other tensors train.
NOT_FROM_OR_TO_ZERO = ("optim.encoder_lr_scale", "optim.prompt_encoder_lr_scale", "optim.mask_decoder_lr_scale")

# Options that change what a validation measures, so that the best score so far says nothing about later ones.
HELD_OUT = ("data.val_images", "validation.max_images", "validation.max_instances")


@dataclass(frozen=True)
class Change:
    """One option that a run was resumed with, and its value before."""

    key: str
    before: Any
    after: Any

    @property
    def as_recorded(self) -> dict[str, Any]:
        """The change as files keep it: what came from the environment by its reference."""
        return {"key": self.key, "before": recorded(self.before), "after": recorded(self.after)}

    @property
    def is_refused(self) -> bool:
        crosses_zero = self.key in NOT_FROM_OR_TO_ZERO and (self.before == 0) != (self.after == 0)
        return self.key in REFUSED or crosses_zero


def changes(before: Mapping[str, Any], after: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Change]:
    """Return the options that differ between two recipes, given by dotted key.

    Args:
        before: of a checkpoint, where what came from the environment stands by its reference. An option that its
            version of distill did not have is taken at its default.
        after: of the recipe now. An option that it does not have is no option any more.
        defaults: of every option but the trainer's, whose default is Lightning's.
    """
    keys = [key for key in dict.fromkeys((*after, *before)) if key in defaults or key.startswith("trainer.")]
    unset = {**UNSET, **defaults}
    pairs = ((key, *(values.get(key, unset.get(key)) for values in (before, after))) for key in keys)
    return [Change(key, old, new) for key, old, new in pairs if key not in SAME_RUN and not is_same(old, new)]
