"""Experiments as files: planned, run by processes, resumed, watched, estimated."""
