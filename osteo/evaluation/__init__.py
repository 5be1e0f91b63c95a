"""What records and checkpoints say once training is over."""
