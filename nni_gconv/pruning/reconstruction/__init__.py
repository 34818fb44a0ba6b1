"""Weights that are left are fitted to what the dense network says, layer after layer."""
