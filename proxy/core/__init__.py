"""Decides. Pure: no I/O, no clock, no randomness; what varies is passed in."""
