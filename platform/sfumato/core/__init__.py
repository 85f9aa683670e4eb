"""The vocabulary that all other parts share. Imports only torch and pydantic."""
