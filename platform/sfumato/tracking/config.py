"""The `tracking:` part of a recipe."""

from __future__ import annotations

from pydantic import Field, field_validator

from sfumato.core.config import Config

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


class TrackingSettings(Config):
    """Where a run is recorded, and what is recorded."""

    enabled: bool = Field(
        True,
        description="false records nothing in MLflow, for a quick try: progress and figures are in the "
        "terminal, pictures and reports in the run's folder, and the model is not registered.",
    )
    uri: str | None = Field(
        None,
        description="Address of an MLflow tracking server (http://host:5000); null keeps an embedded store, "
        "mlflow.db and mlartifacts/, in the project's folder.",
    )
    experiment: str = Field(
        "sfumato", min_length=1, description="MLflow experiment that runs are filed under."
    )
    tags: dict[str, str] = Field({}, description="Tags of the run, to search by.")
    images: bool = Field(True, description="Log grids of samples, which the UI shows with a step slider.")
    compare: bool = Field(
        False,
        description="At the end of a run, renew the experiment's page of comparison in MLflow: pictures, "
        "curves, figures and recipes of its newest runs that were measured alike.",
    )
    system_metrics: bool = Field(True, description="Log the use of CPU, memory, disk and GPU.")
    system_interval: float = Field(10.0, ge=1, description="Seconds between two samples of system metrics.")
    spool_mb: int = Field(
        256,
        ge=1,
        description="Most megabytes of metrics, and of images, that wait on disk while the server is away; "
        "what comes after that is counted and dropped.",
    )

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str | None) -> str | None:
        scheme, colon, _ = (uri or "").partition(":")
        if uri is None or (colon and scheme.split("+", 1)[0] in SCHEMES):
            return uri
        raise ValueError(
            "must be the address of a tracking server (http://host:5000) or of a database "
            "(sqlite:////folder/mlflow.db), or null for the embedded store"
        )
