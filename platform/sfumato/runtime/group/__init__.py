"""A group of training workers while it runs: what it tells, whether it is stuck, and what it is told."""
