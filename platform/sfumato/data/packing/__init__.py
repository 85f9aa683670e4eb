"""From images of any kind to a data set: packs, indexes existing tars, adds arrays."""
