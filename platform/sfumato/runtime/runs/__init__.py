"""A run on disk: its folder, its session, its names and its display."""
