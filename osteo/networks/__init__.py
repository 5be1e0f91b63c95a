"""Networks: backbones by name, weights from files, a head with one logit."""
