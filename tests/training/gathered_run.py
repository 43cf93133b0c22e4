"""A training on two ranks whose strategy holds a part of the tensors on each. `test_gathered.py` runs it.

torch has FSDP for GPUs alone. This strategy keeps FSDP's rule for the state of a model: all ranks take part in
gathering it, and rank 0 alone gets it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from distill.config.loading import load_recipe
from distill.config.schema import FeatureRecipe, MaskRecipe
from distill.training import train


class GatheringStrategy(DDPStrategy):
    """Distributed training in which a rank answers for every second parameter, and rank 0 for the buffers."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        parameters = {name for name, _ in self.lightning_module.named_parameters()}
        whole = {}
        for place, (name, tensor) in enumerate(super().lightning_module_state_dict().items()):
            owner = place % self.world_size if name in parameters else 0  # batch statistics differ from rank to rank
            whole[name] = tensor.clone() if owner == self.global_rank else torch.zeros_like(tensor)
            torch.distributed.all_reduce(whole[name])
        return whole if self.global_rank == 0 else {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    StrategyRegistry.register("gathering", GatheringStrategy)
    recipe = load_recipe(sys.argv[1], [f"run={sys.argv[2]}"])
    assert isinstance(recipe, FeatureRecipe | MaskRecipe)
    train(replace(recipe, trainer={**recipe.trainer, "strategy": sys.argv[3]}))
