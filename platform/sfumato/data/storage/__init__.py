"""Where a data set lies: a local folder or object storage, read and written alike."""
