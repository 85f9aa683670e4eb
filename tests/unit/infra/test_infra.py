"""Images, compose file and Terraform, as far as they can be checked without building or applying them."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from repository import ROOT

import sfumato

INFRA = ROOT / "infra"
IMAGES = sorted((INFRA / "images").glob("*.Dockerfile"))
TERRAFORM = sorted((INFRA / "terraform").glob("*.tf"))
SCRIPTS = sorted((INFRA / "images").glob("*.sh"))


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, str(path)], capture_output=True, text=True, check=False)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of each of a Dockerfile's, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(words[0], words[1] if len(words) > 1 else "") for words in found]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_lint(path: Path) -> None:
    done = hadolint(path)
    assert done.returncode == 0, done.stdout


def test_the_linter_finds_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && sudo apt-get install gcc\n")
    assert {"DL3004", "DL3006"} <= set(re.findall(r"DL\d{4}", hadolint(bad).stdout))


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_run_as_nobody_special_and_say_whether_they_are_well(path: Path) -> None:
    found = instructions(path)
    assert [rest for word, rest in found if word == "USER"] == ["1000:1000"]
    after = [word for word, _ in found][[word for word, _ in found].index("USER") :]
    assert "RUN" not in after and "HEALTHCHECK" in after
    stages = [rest for word, rest in found if word == "FROM"]
    assert stages == ["${BASE} AS build", "${BASE} AS run"]
    base = next(rest for word, rest in found if word == "ARG")
    assert re.fullmatch(r"BASE=docker\.io/library/debian:\d+\.\d+-slim", base)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_install_what_is_locked_from_what_is_sent(path: Path) -> None:
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for word, rest in instructions(path):
        if word == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists() and f"!{source}" in sent, source
    install = (INFRA / "images" / "install.sh").read_text()
    for line in install.splitlines():
        if "pip install" in line and "--no-deps" not in line and "--upgrade" not in line:
            assert "-c constraints.txt" in line


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_well_formed_and_say_how_to_be_used(path: Path) -> None:
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    done = subprocess.run([str(path), "nonsense"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage:")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())
    assert isinstance(content, dict)
    return content


def test_compose_opens_ports_on_this_machine_alone(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3 and all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_is_hardened_and_pinned(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and "mem_limit" in service, name
        image, tag = service["image"].rsplit(":", 1)
        assert tag != "latest"
        if image == "sfumato-cpu":
            assert tag == sfumato.__version__
        # One alone is root, without network, to give folders away, and ends.
        assert service.get("user", "1000:1000") != "0:0" or service["network_mode"] == "none", name


def test_compose_has_the_accounts_that_the_others_have(compose: dict[str, Any]) -> None:
    template, copied = configparser.ConfigParser(), configparser.ConfigParser(interpolation=None)
    template.read(INFRA / "mlflow" / "basic_auth.ini")
    copied.read_string(compose["configs"]["users"]["content"])
    filled_in = {"database_uri", "admin_username"}
    assert template["mlflow"].keys() == copied["mlflow"].keys() > filled_in
    for key in template["mlflow"].keys() - filled_in:
        assert template["mlflow"][key] == copied["mlflow"][key], key


def test_compose_names_lead_somewhere(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, needs in service.get("depends_on", {}).items():
            assert other in services, name
            healthy = needs["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in services[other] or "sfumato" in services[other]["image"]
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"], name
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"], name


def test_compose_asks_for_what_make_env_writes(tmp_path: Path) -> None:
    script = tmp_path / "make_env.py"
    shutil.copy(INFRA / "compose" / "make_env.py", script)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    env = tmp_path / ".env"
    assert env.stat().st_mode & 0o777 == 0o600
    written = dict(line.split("=", 1) for line in env.read_text().splitlines())
    asked = set(re.findall(r"\$\{(\w+)", (INFRA / "compose" / "compose.yaml").read_text()))
    assert asked - {"RAY_CPUS"} == set(written)
    again = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert again.returncode == 2 and env.read_text().splitlines() == [f"{k}={v}" for k, v in written.items()]


def blocks(kind: str) -> list[Any]:
    """All blocks of a kind, of all files: `{type: {name: content}}` or `{name: content}`."""
    found = []
    for path in TERRAFORM:
        found += hcl2.loads(path.read_text()).get(kind, [])
    return found


def test_terraform_parses_and_names_lead_somewhere() -> None:
    text = "\n".join(path.read_text() for path in TERRAFORM)
    declared = set(re.findall(r'^variable "(\w+)"', text, re.MULTILINE))
    assert set(re.findall(r"\bvar\.(\w+)", text)) == declared
    assert len(blocks("variable")) == len(declared)
    resources = {".".join(pair) for pair in re.findall(r'^resource "(\w+)" "(\w+)"', text, re.MULTILINE)}
    assert len(blocks("resource")) == len(resources)
    asked = set(re.findall(r"(?<![\w.])((?:aws|helm|kubernetes|random)_\w+\.\w+)", text))
    data = {f"{kind}.{name}" for kind, name in re.findall(r'^data "(\w+)" "(\w+)"', text, re.MULTILINE)}
    used_data = set(re.findall(r"\bdata\.(\w+\.\w+)", text))
    assert asked <= resources and used_data <= data
    assert set(re.findall(r"\bmodule\.(\w+)", text)) == set(
        re.findall(r'^module "(\w+)"', text, re.MULTILINE)
    )
    for name in re.findall(r"\blocal\.(\w+)", text):
        assert re.search(rf"^  {name}\s*=", text, re.MULTILINE), name


def test_terraform_is_formatted(tmp_path: Path) -> None:
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed: the files are parsed, and their format is not checked")
    config = tmp_path / "terraformrc"
    config.touch()
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", str(INFRA / "terraform")],
        env={**os.environ, "TF_CLI_CONFIG_FILE": str(config)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_terraform_makes_what_the_manifests_look_for() -> None:
    text = "\n".join(path.read_text() for path in TERRAFORM)
    accounts = (ROOT / "k8s" / "base" / "platform" / "service-accounts.yaml").read_text()
    for account in ("ray-head", "ray-worker", "mlflow"):
        assert f'"{account}"' in text and f"name: {account}" in accounts
    overlays = (ROOT / "k8s" / "overlays" / "gpu" / "platform" / "kustomization.yaml").read_text()
    assert "value: shared" in overlays and 'name = "shared"' in text
    for label in ("sfumato.io/capacity", "nvidia.com/gpu.present"):
        assert label in (ROOT / "k8s" / "components" / "nvidia" / "kustomization.yaml").read_text()
        assert f'"{label}"' in text
    for version in ("1.7.0", "0.19.2"):
        assert f'"{version}"' in text


def test_the_api_and_the_data_are_not_open_to_the_world() -> None:
    text = "\n".join(path.read_text() for path in TERRAFORM)
    assert re.search(r"publicly_accessible\s*=\s*false", text)
    assert text.count("block_public_policy") == 1 and "storage_encrypted     = true" in text
    assert '"0.0.0.0/0"' not in re.sub(r"condition\s*=.*", "", text)
