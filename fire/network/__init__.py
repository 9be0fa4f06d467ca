"""Seeing a network: its slots, weight layers, their scale, probes."""
