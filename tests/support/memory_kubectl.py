"""A Kubectl without kubectl: the same answers from memory, for tests of what is made of them."""

from __future__ import annotations

import subprocess
import uuid
from dataclasses import dataclass, field
from typing import IO, Any

from kubernetes_api import Cluster

from sfumato.errors import ConfigError
from sfumato.runtime.jobs import rayjob
from sfumato.runtime.jobs.cluster import Job
from sfumato.runtime.jobs.kubectl import Forbidden, Kubectl, Taken
from sfumato.runtime.jobs.manifest import RUN_LABEL
from sfumato.runtime.jobs.rayjob import RayJob


@dataclass(frozen=True)
class MemoryKubectl(Kubectl):
    """On the objects of the stand-in for an API server, which test_kubectl.py asks with a real kubectl."""

    namespace: str = "sfumato"
    cluster: Cluster = field(default_factory=Cluster)

    def check(self) -> None:
        pass

    def present(self, *objects: str) -> set[str] | None:
        there = {f"{o['kind'].lower()}/{o['metadata']['name']}" for o in self.cluster.objects.values()}
        refused = any(("get", f"{name.partition('/')[0]}s") in self.cluster.denied for name in objects)
        return None if refused else there & set(objects)

    def jobs(self) -> list[RayJob]:
        return [rayjob.read(found) for found in self.cluster.objects.values() if found["kind"] == "RayJob"]

    def find(self, name: str) -> RayJob | None:
        if self.cluster.away > 0:
            self.cluster.away -= 1
            raise ConfigError("kubectl: Error from server (ServiceUnavailable): the server is away")
        found = self.cluster.look(self.cluster.named("RayJob", name))
        return rayjob.read(found) if found else None

    def create(self, document: dict[str, Any]) -> dict[str, Any]:
        kind = document["kind"]
        path = f"{kind}/{document['metadata']['name']}"
        if ("create", f"{kind.lower()}s") in self.cluster.denied:
            raise Forbidden(f"kubectl: Error from server (Forbidden): {kind} is forbidden")
        if self.cluster.named(*path.split("/")):
            raise Taken(f"kubectl: Error from server (AlreadyExists): {path} already exists")
        made = {**document, "metadata": {**document["metadata"], "uid": str(uuid.uuid4())}}
        self.cluster.objects[path] = made
        return made

    def delete(self, name: str) -> None:
        if ("delete", "rayjobs") in self.cluster.denied:
            raise Forbidden("kubectl: Error from server (Forbidden): rayjobs is forbidden")
        for kind in ("RayJob", "ConfigMap"):
            found = self.cluster.named(kind, name)
            if found is not None and RUN_LABEL in found["metadata"].get("labels", {}):
                self.cluster.remove(found)

    def delete_started(self, name: str) -> None:
        self.cluster.remove(self.cluster.named("RayJob", name))

    def schedules(self) -> list[Job]:
        found = (o for o in self.cluster.objects.values() if o["kind"] == "RayCronJob")
        return [rayjob.read_schedule(item) for item in found if RUN_LABEL in item["metadata"]["labels"]]

    def unschedule(self, name: str) -> bool:
        ours = name in [job.name for job in self.schedules()]
        if ours:
            self.cluster.remove(self.cluster.named("RayCronJob", name))
        return ours

    def last_lines(self, name: str) -> str:
        return self.cluster.next_stream()

    def logs(self, name: str, errors: IO[str]) -> subprocess.Popen[str]:
        command = ["printf", "%s", self.cluster.next_stream()]
        if ("logs", "pods") in self.cluster.denied:
            command = ["sh", "-c", "echo 'Error from server (Forbidden): pods/log is forbidden' >&2; exit 1"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
