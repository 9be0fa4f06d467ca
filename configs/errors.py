"""``ConfigError``: what every part of the suite raises where the user asked for something that cannot be."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line for the user."""
