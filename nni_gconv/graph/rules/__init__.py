"""What each operator does to channels and to constants, one operator family a file."""
