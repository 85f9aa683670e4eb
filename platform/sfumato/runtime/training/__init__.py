"""A training run on Ray: its workers, what they report, and what keeps them alive."""
