"""Masks of photos as files: from photos and prompts to PNGs, COCO JSON, polygons and YOLO labels."""
