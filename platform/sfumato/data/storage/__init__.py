"""Where a data set is stored: a local folder or object storage, read and written alike."""
