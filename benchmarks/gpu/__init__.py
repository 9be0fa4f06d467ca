"""What a GPU has to show, in four commands of at most ten minutes: docs/gpu.md."""
