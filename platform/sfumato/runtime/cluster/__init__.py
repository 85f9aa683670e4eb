"""The Ray cluster that a command runs on, and the processes on it."""
