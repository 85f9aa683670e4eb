"""Layers that families use. None of them has a state that depends on how often or where it was called.

The number of forward passes that a network sees on each rank changes with the number of workers. A layer
that updates its state when called (running averages of batch statistics, a power iteration that advances with
every pass) would give different results, or every strategy would have to reduce its state over ranks. The
layers here depend only on parameters and input, so there is nothing to keep equal:

    batch_norm.py             normalises by the micro-batch in training, by exact statistics in sampling
    spectral.py               spectral normalisation by a short Lanczos iteration with a fixed start
    discretized_logistic.py   the likelihood of 256 levels under a logistic distribution
    full_precision.py         libraries' modules in float32, whatever autocast and the strategy have chosen
"""
