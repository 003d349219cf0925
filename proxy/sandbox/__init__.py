"""A fake SendX, for tests and for the demo. Imports nothing from the rest of the package."""
