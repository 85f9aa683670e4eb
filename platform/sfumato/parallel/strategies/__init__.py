"""The strategies, one a file: a recipe names it by its file, and the file by `COMPONENT`.

What is common to several lies beside this folder; files are imported when a recipe names them, since torch's
sharding alone takes a quarter of a worker's imports.
"""
