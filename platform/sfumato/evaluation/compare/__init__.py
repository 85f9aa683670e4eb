"""Compares runs: differences beyond noise, one self-contained page, and human preferences."""
