"""Plasticity metrics: ``cheap`` ones for every period, ``costly`` ones behind a flag."""
