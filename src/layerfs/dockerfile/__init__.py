"""The language of Dockerfiles: text to instructions, variables, what instructions do to a configuration."""
