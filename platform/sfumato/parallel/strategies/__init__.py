"""The strategies, one per file: a recipe names the file, and the file names its class in `COMPONENT`.

Shared code is in the parent folder. Files are imported only when a recipe names them, since torch's
sharding alone takes a quarter of a worker's import time.
"""
