"""A stored PNG that MLflow keeps as it is, with its marks; MLflow itself would encode the pixels anew."""

from __future__ import annotations

import os
import shutil
from typing import Any

from PIL.PngImagePlugin import PngImageFile


class StoredPicture(PngImageFile):
    """A picture from a file. Saving it copies the file."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Copy the file to the path `fp`."""
        assert isinstance(fp, str | os.PathLike), "MLflow saves to paths"
        shutil.copyfile(self.filename, fp)
