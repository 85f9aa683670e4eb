"""Records a run in MLflow: settings, metrics, images, data, code and the final model.

Only this package imports mlflow, and only where it is used, because the import takes seconds.
"""
