"""Shows. Health, metrics, status, dead letters: what the operator sees and does."""
