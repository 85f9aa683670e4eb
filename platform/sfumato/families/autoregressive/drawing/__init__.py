"""Drawing one position after another, and all ways to need fewer passes for it."""
