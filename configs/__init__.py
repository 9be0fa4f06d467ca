"""Configuration: typed schema, YAML files, command-line flags."""
