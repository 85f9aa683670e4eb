"""The order of the data: pure functions of seed, sizes, streams and window. No Ray, no files."""
