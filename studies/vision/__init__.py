"""Continual vision: warm start, growing data and growing classes, as in FIRE, section 4.1."""
