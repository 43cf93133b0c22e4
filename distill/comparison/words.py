"""The words of a comparison's page, each with its definition."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from distill.pages.html import term

INTERVAL = "95 % interval"
# A word as the page writes it -> what it means. Longer words come before the shorter ones that they hold.
DEFINITIONS = {
    "mIoU": "The mean over instances of the IoU of mask and truth: the pixels that both hold, as a share of those that "
    "either holds. 1 is a perfect mask.",
    "boundary IoU": "The IoU of the two masks' outlines alone, in a band along each. It sees errors that a large "
    "object's IoU hides.",
    "IoU correlation": "Pearson's correlation of the IoU that the model predicts for its mask with the true one.",
    "IoU error": "How far the predicted IoU lies from the true one, on average.",
    "AR@1000": "Average recall: the share of the truths that one of 1,000 masks finds, averaged over IoUs from 0.5 to "
    "0.95.",
    "AP50": "Average precision where an IoU of 0.5 counts as found.",
    "AP75": "Average precision where an IoU of 0.75 counts as found.",
    "mean AP": "The mean of the average precisions of several sets.",
    "AP": "COCO's average precision: how well the masks of a detector's boxes find the truths, averaged over IoUs from "
    "0.5 to 0.95.",
    "single mask": "The multimask policy: the model gives one mask, its first, as the decoder does without multimask.",
    "best of three": "The multimask policy: of three masks, the one whose predicted IoU is the highest.",
    "oracle's pick": "The multimask policy: of three masks, the one with the highest true IoU. No user can choose so.",
    "large": "COCO's size of an object: from 96 x 96 pixels of the photo on.",
    "medium": "COCO's size of an object: from 32 x 32 to below 96 x 96 pixels of the photo.",
    "small": "COCO's size of an object: below 32 x 32 pixels of the photo.",
    "input": "The side of the square that the image encoder reads. Photos are resized to fit it.",
    "GMACs": "Billions of multiply-adds that the image encoder takes for one photo, attention included.",
    "parameters": "All numbers that the model learned, in millions: image encoder, prompt encoder and mask decoder.",
    "latency": "The median time of the image encoder for one batch. In brackets: the lowest and the highest median of "
    "the rounds in which all models took turns. Ranges that overlap show no difference.",
    "peak memory": "The most that the encoder held at a time: its weights, the pixels, and what the pass allocated.",
    "device hours": "The hours of all training stages, times the number of devices.",
    "photos seen": "How many photos the training looked at, each as often as it came up.",
    INTERVAL: "If other photos of this sort had been drawn, 95 of 100 such intervals would hold the true value. It "
    "comes from resampling the photos.",
    "clicks to": "How many clicks an instance takes, on average, until its mask reaches the IoU; fewer are better. One "
    "that never reaches it counts with the most clicks.",
}
_WORDS = re.compile(r"(?<!\w)(" + "|".join(map(re.escape, DEFINITIONS)) + r")(?!\w)")


def explained(text: str) -> Markup:
    """Return a text as HTML, in which each word of DEFINITIONS leads to its definition."""
    found, end = Markup(), 0
    for match in _WORDS.finditer(text):
        found += escape(text[end : match.start()]) + term(match[0])
        end = match.end()
    return found + escape(text[end:])
