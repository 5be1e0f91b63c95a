"""From a checkpoint to an answer: what it carries, how pictures are made ready for it, and what it says of them."""
