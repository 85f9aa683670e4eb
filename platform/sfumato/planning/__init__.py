"""What a recipe would cost on accelerators that are not there: memory, time, communication, failures.

Networks, losses and optimizers are the family's own, run once on tensors without memory; nothing here knows a
family or a network.
"""
