"""Speaks. The command line."""
