"""What is true of targets, without input or output."""
