"""What will not work, and how to fix it."""
