"""Sweeps over the fields of a recipe: what is searched, how, and the results. Pure: no Ray, no MLflow."""
