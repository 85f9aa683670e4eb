"""Folders and files of diffusers and its ecosystem: read, and written."""
