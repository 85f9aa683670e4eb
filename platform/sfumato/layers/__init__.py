"""Layers that families use. None of them has a state that depends on how often or where it was called.

A network sees another number of forward passes on each rank whenever the number of workers changes. A layer
that learns from being called (running averages of batch statistics, a power iteration that moves on with
every pass) would end differently, or have to be reduced over ranks by every strategy. The layers here are
functions of parameters and input alone, so that nothing has to be kept equal:

    batch_norm.py             normalises by the micro-batch in training, by exact statistics in sampling
    spectral.py               spectral normalisation by a short Lanczos iteration that starts anew each time
    discretized_logistic.py   the likelihood of 256 levels under a logistic distribution
"""
