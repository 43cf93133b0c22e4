"""One training sample, made by our loader or by the published formulation; `distill bench loader` measures both.

It runs in a process that does nothing else, so that its peak memory can be told:

    python -m distill.bench.loader_sample ours|published SHARDS REPEATS

The process prints JSON: seconds (median, of a core's time, which a busy machine does not change), idle_bytes (the peak
before the first sample) and peak_bytes.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from distill.data.loading.samples import LoadedBatch, PhotoBatches, Request
from distill.data.shards.index import ShardIndex
from distill.geometry import PIXEL_MEAN, PIXEL_STD, resized_hw
from distill.memory import peak_memory

IMAGE_SIZE = 512  # EfficientViT-SAM L0-L2
EMBEDDING_SIZE = 64
NUM_DRAWN = 64  # masks a photo: EfficientViT-SAM's training


def ours(index: ShardIndex) -> Callable[[int], LoadedBatch]:
    """Return a function from an epoch to its sample by our loader: masks at the resolution of the losses."""
    photos = PhotoBatches(index, image_size=IMAGE_SIZE, embedding_size=EMBEDDING_SIZE, seed=0, max_instances=NUM_DRAWN)
    return lambda epoch: photos[Request(epoch, [0])]


def published(index: ShardIndex) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return a function from an epoch to the same photo's sample by the published formulation.

    It is written from its description: all masks that are drawn become full-resolution float32, are stacked,
    and are resized with antialiasing like the photo.

    Returns:
        a function that gives pixels (3, S, S) and masks (n, S, S).
    """

    def sample(epoch: int) -> tuple[Tensor, Tensor]:
        member = index.member(0)
        with Image.open(io.BytesIO(index.read_image_bytes(member))) as photo:
            pixels = torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1).float()  # (3, H, W)
        rows = json.loads(index.read_annotation(member) or b"")["annotations"]
        drawn = np.random.default_rng([0, epoch]).permutation(len(rows))[:NUM_DRAWN]
        decoded = [torch.from_numpy(coco_mask.decode(rows[i]["segmentation"])).float() for i in drawn]  # (H, W) each
        masks = torch.stack(decoded)  # (n, H, W)
        hw = resized_hw((pixels.shape[1], pixels.shape[2]), IMAGE_SIZE)
        resized = [
            F.interpolate(item[None], hw, mode="bilinear", align_corners=False, antialias=True)[0]
            for item in (pixels, masks)
        ]
        mean, std = torch.tensor(PIXEL_MEAN).view(3, 1, 1), torch.tensor(PIXEL_STD).view(3, 1, 1)
        padding = (0, IMAGE_SIZE - hw[1], 0, IMAGE_SIZE - hw[0])
        return F.pad((resized[0] - mean) / std, padding), F.pad(resized[1], padding)  # (3, S, S), (n, S, S)

    return sample


FORMULATIONS: dict[str, Callable[[ShardIndex], Callable[[int], object]]] = {"ours": ours, "published": published}


def main(formulation: str, shards: str, repeats: int) -> None:
    """Make the sample `repeats` times on one thread, and print what it took."""
    torch.set_num_threads(1)
    make_sample = FORMULATIONS[formulation](ShardIndex.open(shards))
    idle = peak_memory()
    seconds = []
    for epoch in range(repeats):
        started = time.process_time()
        make_sample(epoch)
        seconds.append(time.process_time() - started)
    print(json.dumps({"seconds": statistics.median(seconds), "idle_bytes": idle, "peak_bytes": peak_memory()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
