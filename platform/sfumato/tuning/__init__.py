"""Sweeps over the fields of a recipe: what is searched, how, and what came of it. Pure: no Ray, no MLflow."""
