"""What loggers get beside curves, the mode of W&B, and its dashboard."""
