"""The model card: what a trained model is, what it was trained on, what it cost, how it measures, what it
cannot do.

`facts.py` collects all of it from a run's folder, `limits.py` draws the conclusions a reader must know,
`markdown.py` writes them down, and `write.py` puts both forms next to a model.
"""
