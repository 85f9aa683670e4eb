"""What a data set is on disk: shards, their indexes, the manifest, and how an image is decoded."""
