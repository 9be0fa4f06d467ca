"""One run's life, or that of several runs as one program."""
