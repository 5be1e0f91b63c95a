"""One way to open a picture, bounded in memory and time."""
