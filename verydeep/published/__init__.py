"""Published weights: where they are, how they arrive whole, whose they are, how they are read."""
