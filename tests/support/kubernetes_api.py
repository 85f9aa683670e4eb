"""A stand-in for Kubernetes' API server, which a real kubectl talks to: what a job's submission asks of one.

It keeps the objects that it is sent, knows names that are taken, rights that are missing and namespaces that
are not there, deletes what belongs to a deleted object, and streams the logs of a job's pod.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Document = dict[str, Any]
# By the path of their API: (plural, kind, whether they are inside namespaces).
KINDS = {
    "api/v1": [
        ("configmaps", "ConfigMap", True),
        ("namespaces", "Namespace", False),
        ("persistentvolumeclaims", "PersistentVolumeClaim", True),
        ("pods", "Pod", True),
        ("serviceaccounts", "ServiceAccount", True),
    ],
    "apis/batch/v1": [("jobs", "Job", True)],
    "apis/ray.io/v1": [("rayjobs", "RayJob", True), ("raycronjobs", "RayCronJob", True)],
}
_SUBMITTER = {"job-name": "submitter"}


@dataclass
class Cluster:
    """What the server has and does; tests change it while it runs."""

    objects: dict[str, Document] = field(default_factory=dict)
    """By path."""
    namespaces: set[str] = field(default_factory=lambda: {"sfumato"})
    has_kuberay: bool = True
    denied: set[tuple[str, str]] = field(default_factory=set)
    """(verb, plural) that the user may not do: `get`, `create`, `delete`, and `logs` of `pods`."""
    away: int = 0
    """So many requests are answered by 503."""
    statuses: list[Document | None] = field(default_factory=list)
    """What a RayJob's status is, look by look; the last one stays. None deletes the RayJob."""
    streams: list[str] = field(default_factory=list)
    """The logs of the submitting pod, stream by stream; the last one stays."""
    requests: list[str] = field(default_factory=list)

    def named(self, kind: str, name: str) -> Document | None:
        found = (o for o in self.objects.values() if (o["kind"], o["metadata"]["name"]) == (kind, name))
        return next(found, None)

    def look(self, found: Document | None) -> Document | None:
        """The object; of a RayJob, with its next status."""
        if found is not None and found["kind"] == "RayJob" and self.statuses:
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            if status is None:
                self.remove(found)
                return None
            found["status"] = status
        return found

    def remove(self, found: Document | None) -> None:
        """An object, with what belongs to it."""
        for path, other in list(self.objects.items()):
            owners = other["metadata"].get("ownerReferences", [])
            if found is not None and (
                other is found or any(owner["uid"] == found["metadata"]["uid"] for owner in owners)
            ):
                del self.objects[path]

    def next_stream(self) -> str:
        return self.streams.pop(0) if len(self.streams) > 1 else self.streams[0] if self.streams else ""

    def put(self, version: str, kind: str, name: str, **metadata: Any) -> None:
        """An object that somebody else made."""
        plural = next(p for kinds in KINDS.values() for p, k, _ in kinds if k == kind)
        prefix = "api" if "/" not in version else "apis"
        path = f"/{prefix}/{version}/namespaces/sfumato/{plural}/{name}"
        self.objects[path] = document(version, kind, name, uid=str(uuid.uuid4()), **metadata)


def document(version: str, kind: str, name: str, **metadata: Any) -> Document:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}}


@contextmanager
def serving(cluster: Cluster, folder: Path) -> Iterator[Path]:
    """Run the server; the kubeconfig that leads to it, with a current context `here`."""

    class Handler(_Handler):
        own = cluster

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "here",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    try:
        yield path
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    own: Cluster

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, asked = parts.path, parse_qs(parts.query)
        if (fixed := self._fixed(path)) is not None:
            self._answer(fixed)
        elif self._refused("logs" if path.endswith("/log") else "get"):
            pass
        elif path.endswith("/log"):
            self._send(self.own.next_stream().encode(), "text/plain")
        elif path.startswith("/api/v1/namespaces/") and path.count("/") == 4:
            name = path.rpartition("/")[2]
            self._found(document("v1", "Namespace", name) if name in self.own.namespaces else None)
        elif (kind := _listed(path)) is not None:
            self._answer(self._list(path, kind, asked))
        else:
            self._found(self._object(path))

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = f"{urlsplit(self.path).path}/{content['metadata']['name']}"
        namespace = path.split("/namespaces/")[1].partition("/")[0]
        if self._refused("create"):
            return
        if namespace not in self.own.namespaces:
            self._fail(404, "NotFound", f'namespaces "{namespace}" not found')
        elif path in self.own.objects:
            plural, name = path.split("/")[-2:]
            self._fail(409, "AlreadyExists", f'{plural} "{name}" already exists')
        else:
            content["metadata"]["uid"] = str(uuid.uuid4())
            self.own.objects[path] = content
            self._answer(content, 201)

    def do_DELETE(self) -> None:
        path = urlsplit(self.path).path
        if self._refused("delete"):
            return
        gone = self.own.objects.get(path)
        if gone is None:
            self._found(None)
            return
        self.own.remove(gone)
        self._answer(document("v1", "Status", "") | {"status": "Success"})

    def _fixed(self, path: str) -> Document | None:
        """What is the same for all: which APIs there are."""
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        apis = {api for api in KINDS if self.own.has_kuberay or "ray" not in api}
        if path == "/apis":
            named = [api.removeprefix("apis/") for api in sorted(apis) if api.startswith("apis/")]
            groups = [{"name": name.partition("/")[0], **_group(name)} for name in named]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path.strip("/") in apis:
            return _resources(path.strip("/"))
        if path == "/openapi/v3":
            return {"paths": {api: {"serverRelativeURL": f"/openapi/v3/{api}"} for api in apis}}
        if path.removeprefix("/openapi/v3/") in apis:
            return _openapi(path.removeprefix("/openapi/v3/"))
        return None

    def _refused(self, verb: str) -> bool:
        """Whether the request gets no further: the server is away, or the user has no right to it."""
        path = urlsplit(self.path).path
        self.own.requests.append(f"{verb} {path}")
        if self.own.away > 0:
            self.own.away -= 1
            self._fail(503, "ServiceUnavailable", "the server is currently unable to handle the request")
            return True
        plural = next((p for kinds in KINDS.values() for p, _, _ in kinds if p in path.split("/")[-2:]), "")
        plural = "pods" if verb == "logs" else plural
        if (verb, plural) in self.own.denied:
            self._fail(403, "Forbidden", f'{plural} is forbidden: User "u" cannot {verb} resource "{plural}"')
            return True
        return False

    def _list(self, path: str, kind: str, asked: dict[str, list[str]]) -> Document:
        if kind == "Pod":
            status = {"phase": "Running", "containerStatuses": [{"name": "ray-job-submitter", "ready": True}]}
            pod = document("v1", "Pod", "submitter-1", namespace="sfumato", labels=_SUBMITTER)
            items = [pod | {"spec": {"containers": [{"name": "ray-job-submitter"}]}, "status": status}]
        else:
            wanted = asked.get("labelSelector", [""])[0]
            kept = [
                (where, found)
                for where, found in self.own.objects.items()
                if where.startswith(f"{path}/") and _matches(wanted, found["metadata"].get("labels", {}))
            ]
            items = [found for _, found in kept]
        version = path.strip("/").partition("/namespaces")[0].removeprefix("apis/").removeprefix("api/")
        return {"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": items}

    def _object(self, path: str) -> Document | None:
        if "/jobs/" in path:
            job = document("batch/v1", "Job", path.rpartition("/")[2], namespace="sfumato")
            return job | {"spec": {"selector": {"matchLabels": _SUBMITTER}}} if self.own.streams else None
        if "/pods/" in path:
            listed: Document = self._list(path.rpartition("/")[0], "Pod", {})["items"][0]
            return listed
        return self.own.look(self.own.objects.get(path))

    def _found(self, content: Document | None) -> None:
        if content is None:
            self._fail(404, "NotFound", f"{self.path} not found")
        else:
            self._answer(content)

    def _fail(self, code: int, reason: str, message: str) -> None:
        status = {"status": "Failure", "reason": reason, "code": code, "message": message}
        self._answer(document("v1", "Status", "") | status, code)

    def _answer(self, content: Document, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def _listed(path: str) -> str | None:
    """The kind that a path lists."""
    last = path.rpartition("/")[2]
    return next((kind for kinds in KINDS.values() for plural, kind, _ in kinds if plural == last), None)


def _matches(selector: str, labels: Document) -> bool:
    """`a,b=c`: a is there, and b is c."""
    for part in filter(None, selector.split(",")):
        key, equals, value = part.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _group(version: str) -> Document:
    named = {"groupVersion": version, "version": version.partition("/")[2]}
    return {"versions": [named], "preferredVersion": named}


def _resources(api: str) -> Document:
    verbs = ["create", "delete", "get", "list", "patch"]
    listed = [
        {"name": name, "singularName": kind.lower(), "kind": kind, "namespaced": inside, "verbs": verbs}
        for name, kind, inside in KINDS[api]
    ]
    version = api.removeprefix("apis/").removeprefix("api/")
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": listed}


def _openapi(api: str) -> Document:
    """What says that the server looks for unknown fields itself, so that kubectl asks it to."""
    group, _, version = api.removeprefix("api/").removeprefix("apis/").rpartition("/")
    paths = {}
    for plural, kind, _ in KINDS[api]:
        patch = {
            "parameters": [{"name": "fieldValidation", "in": "query"}],
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
            "responses": {},
        }
        paths[f"/{api}/namespaces/{{namespace}}/{plural}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": paths}
