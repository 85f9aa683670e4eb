"""What figures may decide, and what they decide: weak ones, the best model, an early end, collapse."""
