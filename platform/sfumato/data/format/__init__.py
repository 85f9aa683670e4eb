"""A data set on disk: shards, their indexes, the manifest, and how an image is decoded."""
