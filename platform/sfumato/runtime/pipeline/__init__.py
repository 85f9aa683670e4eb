"""Pipelines: several stages on recipes and data, run as a graph; each reruns only if its inputs change.

`settings` reads the file, `graph` orders it, `stage` is the interface of a stage and `kinds` has one file per
kind, `plan` decides what is finished and explains the rest, `schedule` decides what may start, `controller`
and `call` run it on Ray.
"""
