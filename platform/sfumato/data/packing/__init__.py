"""From images of any kind to a data set: packing, indexing what exists, adding arrays."""
