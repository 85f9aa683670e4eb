"""The work of an evaluation in blocks of images: planned, made by workers, kept until all are there."""
