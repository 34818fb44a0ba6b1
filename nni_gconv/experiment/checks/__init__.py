"""What can be known to be wrong with an experiment before it starts."""
