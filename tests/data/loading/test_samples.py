from __future__ import annotations

import json
from pathlib import Path

import torch

from distill.config.schema import CacheConfig
from distill.data.cache.embeddings import EmbeddingCache
from distill.data.cache.job import build_cache
from distill.data.images import decode_image
from distill.data.loading.samples import PhotoBatches, Request
from distill.data.shards.index import ShardIndex
from distill.errors import CacheError, DataError
from distill.geometry import letterbox, valid_mask

S, E = 64, 8


def batches(directory: Path, **options) -> PhotoBatches:
    return PhotoBatches(ShardIndex.open(directory), image_size=S, embedding_size=E, seed=0, **options)


def test_fields_of_a_batch(tmp_path: Path, make_shards) -> None:
    photos = batches(make_shards(tmp_path / "out", 6), max_instances=2, teacher_image_size=48)
    fields, bad, error = photos[Request(0, [4, 1])]
    assert error is None and bad == []
    assert fields["keys"] == ["photo_004", "photo_001"]
    assert fields["original_hw"].tolist() == [[34, 40], [31, 40]]
    assert fields["pixels"].shape == (2, 3, S, S) and fields["teacher_pixels"].shape == (2, 3, 48, 48)
    assert fields["masks"].shape == (4, 4 * E, 4 * E) and fields["masks"].max() == 1
    assert fields["mask_image_index"].tolist() == [0, 0, 1, 1]
    assert fields["boxes_xyxy"].shape == (4, 4) and fields["boxes_xyxy"].dtype == torch.float32
    assert fields["teacher_embeddings"] is None
    image = decode_image(photos.index.read_image_bytes(photos.index.member(1)), "here")
    assert torch.equal(fields["pixels"][1], letterbox(image, S))
    assert torch.equal(fields["valid"][1], valid_mask((31, 40), E))


def test_boxes_enclose_their_masks_in_the_prompt_frame(tmp_path: Path, make_shards) -> None:
    photos = batches(make_shards(tmp_path / "out", 3), max_instances=9)
    fields, _, _ = photos[Request(0, [0, 1, 2])]
    assert len(fields["masks"]) == 9
    for mask, box in zip(fields["masks"], fields["boxes_xyxy"], strict=True):
        rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        tight = torch.tensor([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]) * 4.0  # low-res cells to prompt frame
        assert (tight - box).abs().max() <= 4


def test_instances_depend_on_seed_epoch_and_sample_alone(tmp_path: Path, make_shards) -> None:
    directory = make_shards(tmp_path / "out", 4, num_masks=8)
    photos = batches(directory, max_instances=3)
    alone, beside = photos[Request(0, [2])].fields, photos[Request(0, [0, 2])].fields
    assert torch.equal(alone["boxes_xyxy"], beside["boxes_xyxy"][3:])
    draws = {tuple(photos[Request(epoch, [2])].fields["boxes_xyxy"].flatten().tolist()) for epoch in range(8)}
    assert len(draws) > 3


def test_draws_are_uniform(tmp_path: Path, make_shards) -> None:
    photos = batches(make_shards(tmp_path / "out", 1, num_masks=6), max_instances=2)
    counts: dict[float, int] = {}
    for epoch in range(300):
        for left in photos[Request(epoch, [0])].fields["boxes_xyxy"][:, 0].tolist():
            counts[left] = counts.get(left, 0) + 1
    assert len(counts) == 6 and all(70 <= count <= 130 for count in counts.values())  # 100 each


def test_a_photo_with_fewer_masks_than_are_asked_for(tmp_path: Path, make_shards) -> None:
    """Draw from three masks: each once, or repeatedly until eight are drawn."""
    directory = make_shards(tmp_path / "out", 2)
    once = batches(directory, max_instances=8)[Request(0, [0, 1])].fields
    assert once["mask_counts"] == [3, 3] and once["mask_image_index"].tolist() == [0, 0, 0, 1, 1, 1]
    filled = batches(directory, max_instances=8, instance_draw="repeat")[Request(0, [0, 1])].fields
    assert filled["mask_counts"] == [8, 8] and filled["masks"].shape[0] == 16
    for mask, box in zip(filled["masks"], filled["boxes_xyxy"], strict=True):
        place = (once["boxes_xyxy"] == box).all(1).nonzero()[0, 0]
        assert torch.equal(mask, once["masks"][place])


def test_draws_by_area(tmp_path: Path, make_shards) -> None:
    """All masks of a photo have the same width here, so their heights are in proportion to their areas."""
    directory = make_shards(tmp_path / "out", 1)
    photos = batches(directory, max_instances=2, instance_odds="area", instance_draw="replacement")
    both = torch.cat([photos[Request(epoch, [0])].fields["boxes_xyxy"] for epoch in range(400)])
    boxes = batches(directory, max_instances=3)[Request(0, [0])].fields["boxes_xyxy"]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for box, share in zip(boxes, areas / areas.sum(), strict=True):
        assert abs((both == box).all(1).float().mean() - share) < 0.06


def test_photos_without_instances_have_no_masks(tmp_path: Path, make_shards) -> None:
    photos = batches(make_shards(tmp_path / "out", 2, num_masks=0), max_instances=4)
    fields = photos[Request(0, [0, 1])].fields
    assert fields["masks"].shape == (0, 4 * E, 4 * E) and fields["boxes_xyxy"].shape == (0, 4)
    assert fields["mask_counts"] == [0, 0]
    assert batches(photos.index.directory)[Request(0, [0])].fields.get("masks") is None


def test_a_corrupt_photo_is_left_out_and_named(tmp_path: Path, make_shards) -> None:
    photos = batches(make_shards(tmp_path / "out", 4, bad=(1,)), max_instances=2)
    fields, bad, error = photos[Request(0, [0, 1, 2])]
    assert error is None and fields["keys"] == ["photo_000", "photo_002"] and len(fields["pixels"]) == 2
    assert fields["mask_image_index"].tolist() == [0, 0, 1, 1]
    assert [photo.key for photo in bad] == ["photo_001"] and "sample 'photo_001': cannot be decoded" in bad[0].reason


def test_a_batch_is_never_empty(tmp_path: Path, make_shards) -> None:
    photos = batches(make_shards(tmp_path / "out", 6, bad=(0, 4, 5)))
    fields, bad, error = photos[Request(0, [4])]
    assert error is None and fields["keys"] == ["photo_001"]
    assert [photo.key for photo in bad] == ["photo_004", "photo_005", "photo_000"]


def test_when_no_photo_is_left_the_run_ends(tmp_path: Path, make_shards) -> None:
    photos = batches(make_shards(tmp_path / "out", 2, bad=(0, 1)))
    error = photos[Request(0, [0])].error
    assert isinstance(error, DataError) and "none of 2 photos in a row" in str(error)


def test_annotations_of_another_size_make_a_bad_sample(tmp_path: Path, jpeg) -> None:
    from distill.data.shards.writer import ShardWriter

    with ShardWriter(tmp_path / "out") as writer:
        writer.add("a", jpeg((30, 40)), {"image": {"height": 40, "width": 30}, "annotations": []})
        writer.add("b", jpeg((30, 40)), {"image": {"height": 30, "width": 40}, "annotations": []})
    assert json.loads(ShardIndex.open(tmp_path / "out").read_annotation(ShardIndex.open(tmp_path / "out").member(0)))
    fields, bad, _ = batches(tmp_path / "out", max_instances=1)[Request(0, [0, 1])]
    assert fields["keys"] == ["b"] and "(30, 40)" in bad[0].reason


def test_a_lost_shard_ends_the_run(tmp_path: Path, make_shards) -> None:
    photos = batches(make_shards(tmp_path / "out", 4))
    (photos.index.directory / "sa_000000.tar").unlink()
    error = photos[Request(0, [0])].error
    assert isinstance(error, DataError) and "sa_000000.tar: cannot be read" in str(error)


def test_embeddings_come_with_their_photos(tmp_path: Path, photo_shards, tiny_teacher) -> None:
    index = photo_shards(6, bad={2})
    config = CacheConfig(dir=str(tmp_path / "cache"))
    build_cache(tiny_teacher, index, config, max_bad_share=0.5)
    cache = EmbeddingCache.open(config.dir)
    photos = PhotoBatches(index, image_size=S, embedding_size=E, seed=0, cache=cache)
    fields, bad, _ = photos[Request(0, [5, 2, 0])]
    assert fields["keys"] == ["photo5", "photo0"] and [photo.key for photo in bad] == ["photo2"]
    assert torch.equal(fields["teacher_embeddings"], torch.stack([cache.read("photo5"), cache.read("photo0")]))
    exact = tiny_teacher.embed(fields["pixels"])
    valid = fields["valid"][:, None].expand_as(exact)
    assert (fields["teacher_embeddings"] - exact)[valid].norm() / exact[valid].norm() < 1e-2
    (tmp_path / "cache" / "sa_000001.tar").write_bytes(b"")
    assert isinstance(photos[Request(0, [4])].error, CacheError)
