"""Flipped photos have their own embeddings in a cache, and all parts of a sample are flipped together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from distill.config.loading import load_recipe
from distill.config.schema import CacheConfig
from distill.data.cache.embeddings import EmbeddingCache
from distill.data.cache.job import CacheJob, build_cache
from distill.data.cache.manifest import fingerprint_of
from distill.data.cache.verify import verify_cache
from distill.data.cache.views import check_views, flip_boxes, view_of
from distill.data.images import decode_image
from distill.data.loading.samples import PhotoBatches, Request
from distill.data.rle import coverage, decode_mask, encode_mask
from distill.errors import CacheError, RecipeError
from distill.geometry import letterbox, mask_to_low_res

BOTH = ["identity", "hflip"]
S, E = 64, 8


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), views=BOTH)


def photo_of(index, position: int) -> np.ndarray:
    member = index.member(position)
    return decode_image(index.read_image_bytes(member), index.origin(member))


def test_each_view_has_its_own_embedding(tiny_teacher, photo_shards, config):
    index = photo_shards(5, bad={3})
    manifest = build_cache(tiny_teacher, index, config, max_bad_share=0.5)
    assert (manifest.totals.samples, manifest.totals.bad) == (4, 1) and manifest.fingerprint.views == (
        "identity",
        "hflip",
    )
    assert not verify_cache(config.dir)
    cache = EmbeddingCache.open(config.dir, fingerprint_of(tiny_teacher, index, config))
    assert len(cache) == 4
    for position in (0, 1, 2, 4):
        photo = photo_of(index, position)
        for view, pixels in (("identity", photo), ("hflip", photo[:, ::-1])):
            exact = tiny_teacher.embed(letterbox(pixels, S)[None])[0]
            stored = cache.read(f"photo{position}", view=view)
            valid = stored[:, :6, :6]  # of photos of every shape
            assert (valid - exact[:, :6, :6]).norm() < 1e-3 * valid.norm()
    entries = next(iter(webdataset.WebDataset(str(Path(config.dir) / "sa_000000.tar"), shardshuffle=False)))
    assert entries["__key__"] == "photo0" and {"safetensors", "hflip.safetensors"} <= set(entries)


def test_other_views_are_another_cache(tiny_teacher, photo_shards, config):
    index = photo_shards(3)
    build_cache(tiny_teacher, index, config)
    one = replace(config, views=["identity"])
    with pytest.raises(
        CacheError, match=r"views \(cache.views\): \('identity', 'hflip'\) in the cache, \('identity',\)"
    ):
        CacheJob(tiny_teacher, index, one).prepare()
    cache = EmbeddingCache.open(
        config.dir, fingerprint_of(tiny_teacher, index, one)
    )  # a reader may ask for fewer views
    assert cache.has("photo0")
    single = replace(one, dir=f"{config.dir}_of_one")
    build_cache(tiny_teacher, index, single)
    with pytest.raises(CacheError, match="views"):
        EmbeddingCache.open(single.dir, fingerprint_of(tiny_teacher, index, config))
    with pytest.raises(
        CacheError, match=r"holds the views identity of each photo, not 'hflip'; build .*identity,hflip"
    ):
        EmbeddingCache.open(single.dir).read("photo0", view="hflip")


def test_samples_are_flipped_as_a_whole(tiny_teacher, photo_shards, config):
    """Flip photo, masks, boxes and embedding together, by chance, and the same at each reading."""
    index = photo_shards(3)
    build_cache(tiny_teacher, index, config)
    cache = EmbeddingCache.open(config.dir)
    options = {"image_size": S, "embedding_size": E, "seed": 0, "max_instances": 2, "cache": cache}
    plain, photos = PhotoBatches(index, **options), PhotoBatches(index, hflip=True, **options)
    num_flipped = 0
    for epoch in range(20):
        for position in range(3):
            request = Request(epoch, [position])
            fields, again, unflipped = photos[request].fields, photos[request].fields, plain[request].fields
            assert torch.equal(fields["pixels"], again["pixels"]) and torch.equal(fields["masks"], again["masks"])
            photo, key = photo_of(index, position), f"photo{position}"
            is_flipped = not torch.equal(fields["pixels"][0], letterbox(photo, S))
            num_flipped += is_flipped
            if is_flipped:
                assert torch.equal(fields["pixels"][0], letterbox(np.ascontiguousarray(photo[:, ::-1]), S))
                boxes = unflipped["boxes_xyxy"].clone()
                side = max(photo.shape[:2])
                boxes[:, [0, 2]] = photo.shape[1] * 16 * E / side - unflipped["boxes_xyxy"][:, [2, 0]]
                torch.testing.assert_close(fields["boxes_xyxy"].sort(0)[0], boxes.sort(0)[0])
            view = "hflip" if is_flipped else "identity"
            assert torch.equal(fields["teacher_embeddings"][0], cache.read(key, view=view))
            for mask, (x0, y0, x1, y1) in zip(fields["masks"], fields["boxes_xyxy"] / 4, strict=True):
                covered = mask.nonzero()
                assert covered[:, 0].min() >= y0 - 1 and covered[:, 0].max() <= y1 + 1
                assert covered[:, 1].min() >= x0 - 1 and covered[:, 1].max() <= x1 + 1
    assert 20 <= num_flipped <= 40


@pytest.mark.parametrize("seed", range(10))
def test_coverage_of_flipped_masks(seed: int):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 200, 2)
    mask = np.add.outer(np.cumsum(rng.normal(size=height)), np.cumsum(rng.normal(size=width))) > 0
    for size in (16, 64, 256):
        expected = mask_to_low_res(decode_mask(encode_mask(mask))[:, ::-1], size)
        np.testing.assert_allclose(coverage(encode_mask(mask), size, flip=True), expected, atol=1e-6)


def test_flipping_twice_changes_nothing():
    boxes = np.array([[1.0, 2, 5, 9], [0, 0, 30, 20]], np.float32)
    assert np.array_equal(flip_boxes(flip_boxes(boxes, 30), 30), boxes)
    assert flip_boxes(boxes, 30).tolist() == [[25, 2, 29, 9], [0, 0, 30, 20]]
    assert flip_boxes(np.zeros((0, 4)), 30).shape == (0, 4)
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    assert np.array_equal(view_of(view_of(image, "hflip"), "hflip"), image) and view_of(image, "identity") is image


@pytest.mark.parametrize(
    ("views", "words"),
    [
        (["identity", "hflop"], "unknown view 'hflop'. Did you mean 'hflip'"),
        (["hflip"], "must begin with 'identity'"),
        ([], "must begin with 'identity'"),
        (["identity", "hflip", "hflip"], "each view once"),
    ],
)
def test_views_that_no_cache_holds(views: list[str], words: str):
    with pytest.raises(CacheError, match=words):
        check_views(views)
    with pytest.raises(RecipeError, match=words):
        load_recipe(
            "quickstart/cache", ["data.images=x", "cache.dir=y", f"cache.views=[{','.join(views)}]"], check_paths=False
        )


@pytest.mark.parametrize(
    ("options", "is_refused"),
    [
        (["data.hflip=true"], True),
        (["data.hflip=true", "cache.views=[identity,hflip]"], False),
        (["data.hflip=true", "teacher.source=online"], False),
        (["cache.views=[identity,hflip]"], False),
    ],
)
def test_flips_need_their_own_embeddings(options: list[str], is_refused: bool):
    """Take flipped photos from a cache that holds them, or from the teacher, as the check of the recipe says."""
    always = ["data.images=x", "cache.dir=y", "run=z"]
    if is_refused:
        with pytest.raises(
            RecipeError, match=r"data.hflip: .*build the cache with cache.views=\[identity,hflip\].*online"
        ):
            load_recipe("quickstart/feature", [*always, *options], check_paths=False)
    else:
        load_recipe("quickstart/feature", [*always, *options], check_paths=False)


def test_the_mask_stage_flips_without_a_teacher():
    recipe = ["data.images=x", "run=z", "student.init_from=w", "data.hflip=true"]
    assert load_recipe("quickstart/mask", [*recipe, "loss.feature_weight=0"], check_paths=False).data.hflip
    with pytest.raises(RecipeError, match="data.hflip"):
        load_recipe("quickstart/mask", [*recipe, "loss.feature_weight=1", "cache.dir=y"], check_paths=False)
