"""What networks with styles share, and what can be done with styles."""
