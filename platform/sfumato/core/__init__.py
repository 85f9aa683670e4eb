"""The vocabulary that every other part speaks. Imports torch and pydantic alone."""
