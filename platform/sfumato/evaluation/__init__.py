"""Measures generated images: features, mergeable statistics, one file per metric, and a distributed stage.

`stage.evaluate` is the entry point; `README.md` in this folder defines every number and how to add one.
"""
