"""What leaves this machine with a job, and what does not."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from sfumato import recipe as recipes
from sfumato.errors import ConfigError
from sfumato.families.diffusion import Config
from sfumato.runtime.jobs import local_code, package
from sfumato.runtime.jobs import parsing as commands
from sfumato.runtime.jobs.command import Command
from sfumato.runtime.jobs.ignore import Ignored
from sfumato.runtime.jobs.start import prepare
from sfumato.runtime.jobs.submit import SubmitOptions, read

TINY = {
    "name": "tiny",
    "data": {"path": "/data/digits", "streams": 8},
    "model": Config.tiny().model_dump(mode="json"),
    "train": {"images": 512, "batch": 128},
    "storage": "/runs",
    "tracking": {"uri": "http://mlflow:5000"},
}
FAMILY = """
from typing import Literal
from painting.brushes import width
from sfumato.families.diffusion import Config

print("IMPORTED")

class Mine(Config):
    family: Literal["my_family:Mine"] = "my_family:Mine"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def packed(command: Command, project: Path, **options: object) -> dict[str, bytes]:
    given = {"root": "/shared", "secrets": (), **options}
    return package.files_of(command, package.order(command, **given), root=project)  # type: ignore[arg-type]


def test_the_chain_of_bases_gives_the_same_recipe_from_the_package(project: Path) -> None:
    write(
        project,
        {
            "far/away/base.yaml": yaml.safe_dump({**TINY, "base": "../middle.yaml"}),
            "far/middle.yaml": "seed: 5  # my password is swordfish\ntrain: {clip_grad_norm: 1e-1}\n",
            "mine.yaml": f"base: {project}/far/away/base.yaml\nname: mine-${{seed}}\n",
        },
    )
    command = commands.parse(["run", "mine.yaml", "train.images=1024", "--fresh"], trust=False)
    files = packed(command, project)
    for name, content in files.items():
        (project / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "there" / name).write_bytes(content)
    there = recipes.load(project / "there" / "recipe" / "mine.yaml", command.arguments[:1])
    assert command.arguments == ("train.images=1024", "--fresh")
    assert there == command.uses[0].recipe and there.name == "mine-5" and there.train.clip_grad_norm == 0.1
    assert not any(b"swordfish" in content for content in files.values()), "comments stay at home"
    assert set(files) == {"job.json", *(f"recipe/mine{part}.yaml" for part in ("", ".base-1", ".base-2"))}


def test_the_same_content_makes_the_same_bytes_and_a_program_that_runs(project: Path) -> None:
    command = commands.parse(["run", "tiny.yaml"], trust=False)
    for name in ("a.zip", "b.zip"):
        package.write(packed(command, project), project / name)
    assert (project / "a.zip").read_bytes() == (project / "b.zip").read_bytes()
    with zipfile.ZipFile(project / "a.zip") as zipped:
        names = zipped.namelist()
        zipped.extractall(project / "there")
    assert "sfumato/py.typed" in names and "sfumato/cli/jobs.py" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", "import sfumato.runtime.jobs as here; print(here.__file__)"],
        cwd=project / "there",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(project / "there")), "the package's own Sfumato comes first"


def test_what_is_ignored_stays_here(project: Path) -> None:
    write(
        project,
        {
            ".git/HEAD": "",
            ".gitignore": "*.ckpt\nnotes/\n/out\n",
            ".sfumatoignore": "*.mov\n!keep.ckpt\n",
            "painting/.gitignore": "drafts\n!own.ckpt\n",
        },
    )
    expected = {
        "a.py": False,
        "big.ckpt": True,
        "keep.ckpt": False,
        "painting/film.mov": True,
        "painting/own.ckpt": False,
        "painting/drafts/a.py": True,
        "notes/a.py": True,
        "painting/notes/a.py": True,
        "out/a.py": True,
        "painting/out/a.py": False,
        "painting/__pycache__/a.pyc": True,
    }
    write(project, dict.fromkeys(expected, ""))
    for root in (project, project / "painting"):
        ignored = Ignored(root)
        below = {name for name in expected if (project / name).is_relative_to(root)}
        assert {name: ignored(project / name) for name in below} == {name: expected[name] for name in below}


def test_code_of_a_family_is_sent_if_trusted_with_what_it_imports(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        project,
        {
            "my_family.py": FAMILY,
            "painting/__init__.py": "",
            "painting/brushes.py": "import pigments\nimport numpy\nwidth = 3\n",
            "painting/palette.json": "[]",
            "painting/film.mov": "",
            "pigments.py": "import painting\n",
            "unrelated.py": "",
            ".sfumatoignore": "*.mov\n",
            "mine.yaml": yaml.safe_dump({**TINY, "model": {**TINY["model"], "family": "my_family:Mine"}}),
        },
    )
    with pytest.raises(ConfigError, match=r"runs the module my_family.*--trust"):
        commands.parse(["run", "mine.yaml"], trust=False)
    assert "IMPORTED" not in capsys.readouterr().out, "refused before it is imported"

    monkeypatch.syspath_prepend(str(project))
    command = commands.parse(["run", "mine.yaml"], trust=True)
    names = set(packed(command, project)) - {"job.json", "recipe/mine.yaml"}
    code = {"my_family.py", "painting/__init__.py", "painting/brushes.py", "painting/palette.json"}
    assert names == {*code, "pigments.py"}

    (project / ".gitignore").write_text("pigments.py\n")
    with pytest.raises(ConfigError, match=r"needs pigments\.py, which \.gitignore.*!pigments\.py"):
        packed(command, project)
    assert local_code.sources("numpy", project) == [], "what is installed is not sent"


def test_a_source_of_images_is_code_as_well(project: Path) -> None:
    data = {**TINY["data"], "source": {"kind": "my_pictures:Mine"}}
    write(project, {"my_pictures.py": "1 / 0\n", "mine.yaml": yaml.safe_dump({**TINY, "data": data})})
    with pytest.raises(ConfigError, match=r"runs the module my_pictures.*--trust"):
        commands.parse(["run", "mine.yaml"], trust=False)


def test_an_ignored_recipe_is_not_sent(project: Path) -> None:
    command = commands.parse(["run", "tiny.yaml"], trust=False)
    (project / ".sfumatoignore").write_text("tiny.yaml\n")
    with pytest.raises(ConfigError, match=r"tiny\.yaml is excluded by \.gitignore or \.sfumatoignore"):
        packed(command, project)


@pytest.mark.parametrize(
    "override",
    [
        "tracking.tags.api_key=abc",
        "tracking.uri=http://me:pw@mlflow:5000",
        "data.path=s3://bucket/d?secret_key=abc",
    ],
)
def test_secrets_by_value_are_refused(project: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"^override: .* holds a secret") as refused:
        commands.parse(["run", "tiny.yaml", override], trust=False)
    assert "abc" not in str(refused.value) and "pw" not in str(refused.value).replace("--", "")
    field, _, value = override.partition("=")
    nested: object = value
    for key in reversed(field.split(".")):
        nested = {key: nested}
    (project / "secret.yaml").write_text(yaml.safe_dump({"base": "tiny.yaml", **dict(nested)}))  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=r"secret\.yaml: .* holds a secret"):
        packed(commands.parse(["run", "secret.yaml"], trust=False), project)


def test_secrets_by_reference_are_taken(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_HERE", "swordfish")
    override = "tracking.tags.api_key=${oc.env:KEY_HERE}"
    command = commands.parse(["run", "tiny.yaml", override], trust=False)
    files = packed(command, project, secrets=("KEY_HERE",))
    assert not any(b"swordfish" in content for content in files.values())
    assert json.loads(files["job.json"])["secrets"] == ["KEY_HERE"]
    renamed = SubmitOptions(secrets=("KEY", "TOKEN=OTHER"), environment=("LEVEL=3",))
    assert renamed.variables() == {"LEVEL": "3", "TOKEN": "${OTHER}"}
    assert renamed.secret_names() == ("KEY", "TOKEN")
    with pytest.raises(ConfigError, match="holds a secret"):
        SubmitOptions(environment=("AWS_SECRET_ACCESS_KEY=abc",)).variables()
    with pytest.raises(ConfigError, match="never a value"):
        SubmitOptions(secrets=("TOKEN=abc",)).variables()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing was given"),
        (["sample", "x"], "got 'sample'"),
        (["run"], "needs a recipe file"),
        (["run", "train.images=3"], "needs a recipe file"),
        (["run", "tiny.yaml", "--frehs"], "--frehs: no option of a submitted `run`; known: --fresh"),
        (["run", "tiny.yaml", "--from"], "--from: needs a value"),
        (["tune", "tiny.yaml"], "tiny.yaml has no `tune:` part"),
        (["pack", "/pictures"], "`pack` needs SOURCE DEST"),
        (["pack", "digits", "data/digits"], "place=data/digits: relative to a folder"),
        (["precompute", "/run", "/data", "--actors=x"], "--actors and what each takes are numbers"),
        (["evaluate", "/run", "--held-out", "val"], "--held-out=val: relative to a folder"),
        (
            ["train", "tiny.yaml", "stages=[]"],
            "is a pipeline, and `train` is for recipes",
        ),
        (["run", "tinny.yaml"], "did you mean 'tiny.yaml'"),
        (["run", "tiny.yaml", "train.imges=3"], "did you mean 'images'"),
        (["run", "tiny.yaml", "storage=runs"], "storage=runs: relative to a folder"),
        (["run", "tiny.yaml", "tracking.uri=null"], "tracking.uri=null .*--root"),
    ],
)
def test_bad_commands(project: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(words, SubmitOptions())


def test_names_and_roots(project: Path) -> None:
    with pytest.raises(ConfigError, match="--name 'a b': expected letters"):
        read(["run", "tiny.yaml"], SubmitOptions(name="a b"))
    with pytest.raises(ConfigError, match="--root shared: expected an absolute folder"):
        read(["run", "tiny.yaml"], SubmitOptions(root="shared"))


def test_another_version_on_the_cluster_is_refused_with_both_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = commands.parse(["train", "tiny.yaml", "train.images=1024", "--fresh"], trust=False)
    placed = package.order(command, root=str(project / "shared"), secrets=("DEPOT_TOKEN",))
    job = project / "job.json"
    job.write_text(placed.to_json())
    with pytest.raises(ConfigError, match="environment variable DEPOT_TOKEN is not set on this cluster"):
        prepare(job, environment={"DEPOT_TOKEN": ""})
    started = prepare(job, environment={"DEPOT_TOKEN": "x"})
    recipe_there = str(project / "recipe" / "tiny.yaml")
    assert started.words == ["train", recipe_there, "train.images=1024", "--fresh"] and not started.notes
    assert Path.cwd() == project / "shared", "relative places are the root's"

    with monkeypatch.context() as other:
        other.setattr("sfumato.__version__", "9.9")
        with pytest.raises(ConfigError, match=rf"Sfumato here is 9\.9 .*submitted with {placed.version} "):
            prepare(job, environment={"DEPOT_TOKEN": "x"})
    content = json.loads(job.read_text())
    job.write_text(json.dumps({**content, "packages": {"torch": "1.0"}}))
    (note,) = prepare(job, environment={"DEPOT_TOKEN": "x"}).notes
    assert "the job comes from 1.0" in note
    job.write_text(json.dumps({"command": "run"}))
    with pytest.raises(ConfigError, match="is no job of this version"):
        prepare(job, environment={})
