from __future__ import annotations

import pytest
import torch

from distill.config.schema import OptimConfig
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.stages.optim import batch_norms_to_eval, build_adamw, build_schedule, freeze_parts, lr_share


@pytest.fixture
def model() -> PromptableModel:
    return build_from_spec(ModelSpec("efficientvit_sam_t", 64, 32, embedding_size=8, decoder_mlp_dim=32))


def test_every_trainable_tensor_is_in_one_group(model: PromptableModel) -> None:
    optimizer = build_adamw(model, OptimConfig(weight_decay=0.1))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) == sum(1 for p in model.parameters() if p.requires_grad)
    for group in optimizer.param_groups:
        assert len({p.ndim > 1 for p in group["params"]}) == 1
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0.0)


def test_a_multiple_of_zero_freezes_and_others_scale(model: PromptableModel) -> None:
    config = OptimConfig(lr=1e-3, encoder_lr_scale=0.0, mask_decoder_lr_scale=0.5)
    freeze_parts(model, config)
    optimizer = build_adamw(model, config)
    encoder = {id(p) for p in model.image_encoder.parameters()}
    decoder = {id(p) for p in model.mask_decoder.parameters()}
    assert not any(p.requires_grad for p in model.image_encoder.parameters())
    for group in optimizer.param_groups:
        members = {id(p) for p in group["params"]}
        assert not members & encoder
        assert group["lr"] == (5e-4 if members <= decoder else 1e-3)


def test_schedule_warms_up_then_falls_to_the_share() -> None:
    shares = [lr_share(step, num_steps=100, warmup_steps=10, final_share=0.1) for step in range(101)]
    assert shares[0] == pytest.approx(0.1) and shares[9] == shares[10] == pytest.approx(1)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == pytest.approx(0.1)


def test_schedule_moves_all_groups(model: PromptableModel) -> None:
    config = OptimConfig(lr=1.0, encoder_lr_scale=0.1, warmup_steps=2)
    optimizer = build_adamw(model, config)
    schedule = build_schedule(optimizer, config, num_steps=10)
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.05}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    schedule.step()
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {1.0, 0.1}


def test_frozen_batch_norms_are_frozen_when_ranks_share_statistics(model: PromptableModel) -> None:
    """Check the modules that trainer.sync_batchnorm puts in place of batch norms."""
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    norms = [module for module in synced.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    batch_norms_to_eval(synced, OptimConfig())
    assert norms and all(norm.training for norm in norms)
    batch_norms_to_eval(synced, OptimConfig(batch_norm="frozen"))
    assert not any(norm.training for norm in norms) and synced.mask_decoder.training
