"""Exact nearest neighbours and ball membership of feature vectors, in memory that grows with the block.

Squared distances come from one matrix product per block in float32, with a bound on its rounding. Pairs that
the bound leaves open are recomputed in float64 from the difference of the two vectors. So the answers are
those of a float64 double loop, whatever the block or the number of workers, at the speed of float32.
"""
