"""Runs on other machines: a recipe is packed up, sent to a Ray cluster or Kubernetes, and followed."""
