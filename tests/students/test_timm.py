"""timm backbones as students: names, levels, necks, sizes, pixel statistics, the cut at a stride, fine detail."""

from __future__ import annotations

import pytest
import timm
import torch

from distill.errors import DistillError
from distill.geometry import PIXEL_MEAN, PIXEL_STD
from distill.models.complexity import count_encoder
from distill.students import build_encoder
from distill.students.layers import SamNeck
from distill.students.neck import PyramidNeck
from distill.students.timm import TimmEncoder
from distill.students.timm_names import _declared_models, parse_name

SIZES = {"image_size": 64, "embedding_dim": 16, "embedding_size": 8}


def num_parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in build_encoder(name, **SIZES).parameters())


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "timm/resnet10t", "timm/mobilenetv3_small_050"])
@pytest.mark.parametrize("stride", ["", "@16", "@8", "@16+slim"])
def test_every_trainable_tensor_gets_a_gradient(name: str, stride: str) -> None:
    encoder = build_encoder(name + stride, **SIZES).train()
    embedding = encoder(torch.randn(2, 3, 64, 64))
    assert embedding.shape == (2, 16, 8, 8)
    (embedding * torch.randn_like(embedding)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_cut_backbone_is_smaller_and_its_tensors_keep_their_names() -> None:
    assert num_parameters("timm/tf_efficientnet_lite0@16") < 0.4 * num_parameters("timm/tf_efficientnet_lite0")
    whole = build_encoder("timm/tf_efficientnet_lite0", **SIZES).state_dict()
    cut = build_encoder("timm/tf_efficientnet_lite0@16", **SIZES).state_dict()
    assert {name for name, tensor in cut.items() if whole[name].shape != tensor.shape} == set()


def test_the_slim_neck_costs_a_tenth_on_sam_s_grid() -> None:
    sizes = {"image_size": 512, "embedding_dim": 256, "embedding_size": 64}
    macs = {neck: count_encoder(f"timm/mobilenetv3_small_050@16{neck}", **sizes)[1] for neck in ("", "+slim")}
    assert macs["+slim"] < 0.1 * macs[""]
    encoder = build("mobilenetv3_small_050@16+slim")
    assert isinstance(encoder.neck, PyramidNeck) and not encoder.choice.sam_neck
    width = encoder.embedding_dim // 2
    assert encoder.neck.project.in_channels == width and encoder.neck.blocks[0][0].groups == width  # type: ignore[index]


def test_an_unknown_stride_is_named() -> None:
    with pytest.raises(DistillError, match="'@12' is no stride; give one of @4, @8"):
        build_encoder("timm/resnet10t@12", **SIZES)


def test_detail_inside_a_cell_reaches_the_embedding() -> None:
    """Two fine levels with equal means differ only within cells, where interpolation could not tell them apart."""
    torch.manual_seed(0)
    neck = PyramidNeck([1], 8, 4, cells_per_level=[2]).eval()
    left = torch.zeros(1, 1, 8, 8)
    left[..., ::2] = 1
    with torch.no_grad():
        difference = (neck([left]) - neck([1 - left])).abs().max()
    assert difference > 0.01


def build(name: str, **sizes: int) -> TimmEncoder:
    encoder = build_encoder(f"timm/{name}", **{**SIZES, **sizes})
    assert isinstance(encoder, TimmEncoder)
    return encoder


@pytest.mark.parametrize(
    ("name", "image_size", "embedding_size", "levels"),
    [
        ("resnet10t", 64, 8, [2, 4, 8, 16, 32]),
        ("resnet10t", 64, 4, [4, 8, 16, 32]),
        ("resnet10t", 64, 2, [8, 16, 32]),
        ("resnet10t@8-16", 64, 8, [8, 16]),
        ("resnet10t+sam", 64, 8, [8]),
        ("resnet10t+sam", 64, 4, [16]),
        ("resnet10t+sam", 64, 2, [32]),
        ("resnet10t@32+sam", 64, 4, [32]),
        ("convnext_atto+sam", 96, 6, [16]),
        ("vit_tiny_patch16_224", 96, 6, [16, 16, 16]),
        ("vit_tiny_patch16_224+sam", 96, 6, [16]),
        ("swin_tiny_patch4_window7_224@16+sam", 96, 6, [16]),  # channels last, windows that do not divide the map
    ],
)
def test_levels_and_necks(name: str, image_size: int, embedding_size: int, levels: list[int]) -> None:
    encoder = build(name, image_size=image_size, embedding_size=embedding_size).train()
    assert encoder.backbone.feature_info.reduction() == levels
    assert isinstance(encoder.neck, SamNeck if name.endswith("+sam") else PyramidNeck)
    embedding = encoder(torch.randn(2, 3, image_size, image_size))
    assert embedding.shape == (2, 16, embedding_size, embedding_size)
    (embedding * torch.randn_like(embedding)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_vit_has_a_position_for_every_patch() -> None:
    small, large = (build("vit_tiny_patch16_224", image_size=size, embedding_size=4) for size in (64, 96))
    assert small.backbone.model.pos_embed.shape[1] == 1 + 4**2
    assert large.backbone.model.pos_embed.shape[1] == 1 + 6**2


def test_a_tag_maps_pixels_to_the_statistics_of_its_weights() -> None:
    name = "tf_efficientnet_lite0"
    config = timm.get_pretrained_cfg(f"{name}.in1k")
    tagged, plain = build(f"{name}.in1k").eval(), build(name).eval()
    assert list(tagged.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(tagged.state_dict())
    photo = 255 * torch.rand(1, 3, 64, 64)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (photo - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    theirs = normalised(tuple(255 * m for m in config.mean), tuple(255 * s for s in config.std))
    ours = normalised(PIXEL_MEAN, PIXEL_STD)
    with torch.no_grad():
        torch.testing.assert_close(tagged(ours), plain(theirs), rtol=1e-4, atol=1e-4)
        assert (tagged(ours) - plain(ours)).abs().max() > 0.01


def test_a_tag_of_weights_with_sams_statistics_changes_nothing() -> None:
    assert build("resnet10t.c3_in1k").pixel_scale is None


def test_a_name_without_options_is_what_it_was() -> None:
    """Stored models are built again from their name, so a name without a tag never maps the pixels."""
    assert build("tf_efficientnet_lite0").pixel_scale is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet18@3-16", "'@3' is no stride; give one of @4, @8"),
        ("timm/resnet18+fpn", r"'\+fpn' is no neck; give \+sam"),
        ("timm/resnet18@16@8", "give timm/NAME, timm/NAME@16"),
        ("timm/resnet18.a9_in1k", "timm has no weights 'a9_in1k' of resnet18. Did you mean 'a3_in1k'"),
        ("timm/resnet81", "timm has no model 'resnet81'. Did you mean 'resnet18'"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        parse_name(name)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("vit_tiny_patch16_224", {"image_size": 100, "embedding_size": 8}, "not a multiple of 16.*image_size=96"),
        ("vit_tiny_patch16_224@8", {}, r"strides \[16, 16, 16\], of which 2 to 8 count, cannot reach a 8 x 8 grid"),
        ("vit_tiny_patch16_224", {"embedding_size": 32}, "cannot reach a 32 x 32 grid from 64 pixels.*near 512"),
        ("inception_v3", {"image_size": 16}, "timm/inception_v3 cannot read 16 x 16 pixels: "),
    ],
)
def test_backbones_that_cannot_reach_the_grid(name: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        build(name, **sizes)


def test_names_are_known_without_importing_timm() -> None:
    """Read from timm's source, they are those that timm gives, so that a check is quick and still right."""
    declared = _declared_models()
    assert set(declared) == set(timm.list_models())
    pretrained = [full.partition(".")[::2] for full in timm.list_pretrained()]
    assert [full for full in pretrained if declared[full[0]] and full[1] not in declared[full[0]]] == []
    assert sum(map(len, declared.values())) <= 1.01 * len(pretrained)
