"""One loop for every family under every strategy, its checkpoints and its meters."""
