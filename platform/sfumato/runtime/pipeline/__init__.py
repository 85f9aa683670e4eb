"""Pipelines: several stages on recipes and data, run as a graph, each done again only when its inputs change.

`settings` reads the file, `graph` orders it, `kinds` has what a stage does (a kind a file), `plan` says what
is done and why the rest is not, `schedule` decides what may start, `controller` and `call` run it on Ray.
"""
