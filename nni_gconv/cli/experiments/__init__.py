"""Commands on experiments and their trials."""
