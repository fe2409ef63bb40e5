"""Networks in 8-bit integers: the graph, the ranges of its values, the rounding of its weights."""
