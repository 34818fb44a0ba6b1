"""Commands on one network."""
