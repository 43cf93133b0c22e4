"""The released checkpoints whose sha256 we know. This imports no torch, so that a recipe's check can name them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A released checkpoint: its file name and the sha256 of its bytes."""

    file: str
    sha256: str

    @property
    def url(self) -> str:
        """The address of the file."""
        return f"https://dl.fbaipublicfiles.com/segment_anything/{self.file}"

    def __str__(self) -> str:
        return f"{self.file} (sha256 {self.sha256}), published at {self.url}"


# URLs: segment_anything's README. Digests: as micro_sam's and SlicerSegmentWithSAM's downloaders pin them.
PUBLISHED = {
    "sam_vit_b": Published("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    "sam_vit_l": Published("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "sam_vit_h": Published("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
}
