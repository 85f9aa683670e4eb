"""How good generated images are: features, mergeable statistics, one file a metric, and a distributed stage.

`stage.evaluate` is the entry; `README.md` beside this file defines every number and says how to add one.
"""
