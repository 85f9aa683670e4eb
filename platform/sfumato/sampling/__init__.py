"""Load anything that was trained and draw images from it, the same bytes for the same request."""
