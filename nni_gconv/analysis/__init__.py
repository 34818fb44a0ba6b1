"""What channels are worth in accuracy, one coupled set at a time, before anything is pruned."""
