"""How many groups each layer gets within a budget."""
