"""The real images that generated ones are compared with: read, turned into features once, kept in a cache."""
