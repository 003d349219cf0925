"""The SCQ_* settings: read once, checked completely, frozen."""
