"""What a training run writes down for people: numbers, TensorBoard, progress."""
