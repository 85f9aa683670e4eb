"""Secrets stay out of what is logged; ordinary settings stay in."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.redact import clean, clean_uri, clean_yaml, flat_params, is_secret


@pytest.mark.parametrize(
    "key",
    ["password", "db.password", "aws_secret_access_key", "a_token", "api_key", "apiKey", "a_secret"],
)
def test_names_of_secrets(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize("key", ["tokens", "tokenizer", "max_tokens", "key", "model.keys", "monkey"])
def test_names_of_settings(key: str) -> None:
    assert not is_secret(key)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:pw@db:5432/runs", "postgresql://[hidden]@db:5432/runs"),
        ("s3://bucket/a@b.tar", "s3://bucket/a@b.tar"),
        ("s3://b/p?secret_key=abc&scheme=http", "s3://b/p?secret_key=[hidden]&scheme=http"),
        ("http://h/x?X-Amz-Signature=ab12&X-Amz-Date=1", "http://h/x?X-Amz-Signature=[hidden]&X-Amz-Date=1"),
        ("see http://tok@host/x and http://h/y", "see http://[hidden]@host/x and http://h/y"),
        ("/plain/path", "/plain/path"),
    ],
)
def test_addresses(uri: str, shown: str) -> None:
    assert clean_uri(uri) == shown


def test_yaml_stays_yaml() -> None:
    text = """\
model:
  tokens: 7
  hf_token: "abc # def"
data:
  path: s3://me:pw@store/digits
  password: hunter2
  token: null
list:
  - api_key: q
"""
    hidden = clean_yaml(text)
    assert "hunter2" not in hidden
    assert "abc" not in hidden
    assert yaml.safe_load(hidden) == {
        "model": {"tokens": 7, "hf_token": "[hidden]"},
        "data": {"path": "s3://[hidden]@store/digits", "password": "[hidden]", "token": None},
        "list": [{"api_key": "[hidden]"}],
    }


def test_parameters_are_flat_and_short() -> None:
    params = flat_params(
        {
            "model": {"width": 64, "mults": [1, 2], "empty": {}, "name": None},
            "secret": {"a": 1},
            "note": "x" * 600,
            "on": True,
        }
    )
    assert params["model.width"] == "64"
    assert params["model.mults"] == "[1, 2]"
    assert params["model.empty"] == "{}"
    assert params["model.name"] == "null"
    assert params["secret"] == "[hidden]"
    assert params["on"] == "true"
    assert params["note"] == "x" * 497 + "..."


def test_tags_are_text() -> None:
    assert clean({"n": 3, "token": "abc"}) == {"n": "3", "token": "[hidden]"}


@pytest.mark.parametrize("uri", ["localhost:5000", "mlruns", "ftp://x"])
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(ValidationError, match="must be the address"):
        TrackingSettings(uri=uri)


@pytest.mark.parametrize("uri", [None, "http://h:5000", "sqlite:////a/b.db", "postgresql+psycopg2://h/db"])
def test_addresses_are_taken(uri: str | None) -> None:
    assert TrackingSettings(uri=uri).uri == uri
