"""The Kubernetes manifests of this repository: as they lie there, and as kustomize renders them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml
from repository import ROOT

FOLDER = ROOT / "k8s"
Manifest = dict[str, Any]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What kustomize reads for itself and what recipes are: neither is sent to a cluster.
_NO_MANIFESTS = {"kustomization.yaml", "recipe.yaml", "leave-out-cluster.yaml"}
HAVE_KUSTOMIZE = shutil.which("kubectl") is not None
NO_KUSTOMIZE = "kubectl is not installed: overlays are not rendered, only the files themselves are checked"


def overlays() -> list[str]:
    """The names of all overlays, `gpu/job` for example."""
    found = (FOLDER / "overlays").rglob("kustomization.yaml")
    return sorted(str(path.parent.relative_to(FOLDER / "overlays")) for path in found)


@cache
def rendered(overlay: str) -> list[Manifest]:
    """What `kubectl kustomize` makes of an overlay."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return _documents(done.stdout)


@cache
def written() -> dict[str, list[Manifest]]:
    """The manifests of each file of base and components, before any patch."""
    return {
        str(path.relative_to(FOLDER)): _documents(path.read_text())
        for path in sorted(FOLDER.rglob("*.yaml"))
        if path.name not in _NO_MANIFESTS
    }


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def label(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pods(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Every pod template in a manifest, wherever it is, with its path: `{metadata, spec: {containers}}`."""
    yield from _pods(manifest.get("spec"), label(manifest))


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def _pods(node: Any, path: str) -> Iterator[tuple[str, Manifest]]:
    if isinstance(node, dict):
        if isinstance(node.get("spec"), dict) and "containers" in node["spec"]:
            yield path, node
            return
        for key, value in node.items():
            yield from _pods(value, f"{path}.{key}")
    elif isinstance(node, list):
        for item in node:
            name = item.get("groupName", item.get("name", "")) if isinstance(item, dict) else ""
            yield from _pods(item, f"{path}.{name}")


def _documents(text: str) -> list[Manifest]:
    return [document for document in yaml.load_all(text, Loader=_LOADER) if document]
