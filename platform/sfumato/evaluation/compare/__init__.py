"""Runs side by side: differences beyond noise, one self-contained page, and what people prefer."""
