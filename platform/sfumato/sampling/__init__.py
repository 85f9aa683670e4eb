"""Loads any trained model and draws images from it, the same bytes for the same request."""
