"""Sweeps over the fields of a recipe: space, search and results. Pure: no Ray, no MLflow."""
