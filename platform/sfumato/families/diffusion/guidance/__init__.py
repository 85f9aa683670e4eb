"""Classifier-free guidance by classes and texts, and guidance by another model."""
