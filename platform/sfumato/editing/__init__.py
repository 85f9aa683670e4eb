"""Editing with trained models: one image, or a whole data set. Each kind of edit is a file in `operations/`.

An operation knows a model by the protocols of `core` alone, so that it works with every family that keeps to
them. Image i depends on (seed, i, its own pixels, mask and conditions), never on which process edits it.
"""
