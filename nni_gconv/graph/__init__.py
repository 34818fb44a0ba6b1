"""A model as a graph of channels: traced operators, and what of them can only go together."""
