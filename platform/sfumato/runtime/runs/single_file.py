"""A whole model in one safetensors file, as Stable Diffusion is distributed, as a folder of diffusers.

The file has weights alone, under the names of the first code of latent diffusion (`model.diffusion_model.*`).
A folder of a diffusers pipeline of the same kind gives the rest. The result is kept, by the contents of both.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from sfumato.core.drafts import folder_beside, writing
from sfumato.errors import ConfigError
from sfumato.layers import library_pipelines
from sfumato.sampling.pretrained_files import file_digest

KEPT = Path("runs", ".cache", "pretrained")


def converted(file: Path, like: Path, root: Path) -> Path:
    """The folder, in `root/runs/.cache/pretrained`; made by diffusers if it is not there yet.

    Raises ConfigError, in one line, for another kind of file than `like` describes.
    """
    description, _ = library_pipelines.described(like)
    both = f"{file_digest(file)} {description.model_dump_json()}"
    target = root / KEPT / hashlib.sha256(both.encode()).hexdigest()[:16]
    if target.is_dir():
        return target
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError as Lacking

    kind = getattr(diffusers, description.name, None)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise ConfigError(
            f"like: diffusers reads no single file as a {description.name}; name its folder instead"
        )
    try:
        pipeline = kind.from_single_file(str(file), config=str(like), local_files_only=True)
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, Lacking) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file} is not the {description.name} that {like} describes ({reason})") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = folder_beside(target)
    try:
        with writing(draft):
            pipeline.save_pretrained(draft)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target
