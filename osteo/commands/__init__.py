"""One module a command: each composes the others and is the only one to know Hydra."""
