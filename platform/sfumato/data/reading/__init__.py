"""From shards to the micro-batches of a rank: by Ray Data, or in this process."""
