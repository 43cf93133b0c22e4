"""What students learn from: shards, teacher-embedding caches, COCO-format sets."""
