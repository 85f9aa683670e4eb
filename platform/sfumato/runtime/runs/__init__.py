"""A run on disk: its folder, its session, what names it and how it is shown."""
