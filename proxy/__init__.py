"""First-party tracking proxy for SendX: durable, in order per contact, with verified identity."""

__version__ = "0.1.0"
