"""Keeps. The port to the store, its records, and what both adapters share."""
