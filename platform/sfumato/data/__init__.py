"""Images on their way to a model: packed into shards, dealt in a fixed order, read by Ray Data."""
