"""Custom resources against their definitions, closed: a field that the schema does not know is an error.

An API server drops unknown fields (or only warns), so a typo would go unseen until somebody misses what it
was to do. Every object schema with properties is closed here, unless it says that it keeps unknown fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

Manifest = dict[str, Any]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Their branches say which fields go together and repeat no properties that would have to be closed.
_COMBINED = ("anyOf", "oneOf", "allOf")


class Definitions:
    """The custom resource definitions of a folder, by (apiVersion, kind); each is read on first use."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.stem: path for path in sorted(folder.rglob("*.yaml"))}
        self._known: dict[tuple[str, str], Draft202012Validator] = {}
        self._read: set[str] = set()
        self._checked: dict[str, list[str]] = {}

    def problems(self, manifest: Manifest) -> list[str]:
        """What is wrong with a custom resource, one line each: the path, and what it says."""
        content = json.dumps(manifest, sort_keys=True)  # overlays share most of what they hold
        if content not in self._checked:
            self._checked[content] = self._problems(manifest)
        return self._checked[content]

    def _problems(self, manifest: Manifest) -> list[str]:
        group = str(manifest["apiVersion"]).partition("/")[0]
        kind = str(manifest["kind"]).lower()
        stem = f"{group}_{kind}{'es' if kind.endswith('s') else 's'}"
        if stem not in self._read:
            self._load(stem)
        validator = self._known.get((manifest["apiVersion"], manifest["kind"]))
        if validator is None:
            return [f"{manifest['apiVersion']} {manifest['kind']}: no definition serves it"]
        errors = sorted(validator.iter_errors(manifest), key=lambda error: list(map(str, error.path)))
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]

    def _load(self, stem: str) -> None:
        self._read.add(stem)
        if stem not in self._files:
            return
        definition = yaml.load(self._files[stem].read_text(), Loader=_LOADER)  # noqa: S506 - a safe loader
        spec = definition["spec"]
        for version in spec["versions"]:
            if version["served"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = _METADATA
                api_version = f"{spec['group']}/{version['name']}"
                self._known[api_version, spec["names"]["kind"]] = Draft202012Validator(schema)


def closed(schema: Any) -> Any:
    """A structural schema of Kubernetes as a JSON schema that allows no field beyond those it names."""
    if not isinstance(schema, dict):
        return schema
    result = {key: _closed_part(key, value) for key, value in schema.items()}
    if result.pop("x-kubernetes-int-or-string", False):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    keeps = result.get("x-kubernetes-preserve-unknown-fields") or result.get("x-kubernetes-embedded-resource")
    if "properties" in result and "additionalProperties" not in result and not keeps:
        result["additionalProperties"] = False
    if result.pop("nullable", False):
        return {"anyOf": [result, {"type": "null"}]}
    return result


def _closed_part(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: closed(part) for name, part in value.items()}
    if key in ("items", "additionalProperties"):
        return closed(value)
    if key in _COMBINED:
        return list(value)
    return value


_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": _STRINGS,
        "annotations": _STRINGS,
    },
    "additionalProperties": False,
}
