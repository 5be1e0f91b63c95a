"""What makes a Hydra application of a command."""
