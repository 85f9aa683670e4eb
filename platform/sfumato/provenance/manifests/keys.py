"""A chain of certificates for development: a root that nobody knows, and a signing certificate from it.

Readers do not trust it unless they are told to (`sfumato provenance show --trust root.pem`). For pictures
that are published, use a certificate of an authority on C2PA's trust list.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.errors import ConfigError
from sfumato.provenance.manifests.signing import require_libraries

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, CertificateBuilder, KeyUsage, Name

CHAIN, KEY, ROOT = "chain.pem", "key.pem", "root.pem"
ROOT_DAYS = 3650
_EARLIER = timedelta(minutes=5)
"""Clocks of machines differ."""


def write_keys(folder: Path, *, name: str = "Sfumato development", days: int = 365) -> dict[str, str]:
    """Write a root, a chain and a key, which only its owner may read; returns the paths by their use.

    The root's key is thrown away: nobody can sign another certificate with it.

    Raises ConfigError: the folder holds one of the files, or a name that a certificate cannot have.
    """
    require_libraries()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if taken := [file for file in (CHAIN, KEY, ROOT) if (folder / file).exists()]:
        raise ConfigError(f"{folder / taken[0]} exists; choose another folder, so that no key is lost")
    if not 1 <= len(name.strip()) <= 64 or not name.isprintable():
        raise ConfigError(f"--name {name!r}: a certificate's name has 1 to 64 printable characters")
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _root(root_key, name)
    certificate = _signing(key, root_key, root, name, days)
    pem = [part.public_bytes(serialization.Encoding.PEM) for part in (certificate, root)]
    folder.mkdir(parents=True, exist_ok=True)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    (folder / CHAIN).write_bytes(b"".join(pem))
    (folder / ROOT).write_bytes(pem[1])
    return {"certificate": str(folder / CHAIN), "key": str(folder / KEY), "trust": str(folder / ROOT)}


def _named(organisation: str, what: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    attributes = ((NameOID.ORGANIZATION_NAME, organisation), (NameOID.COMMON_NAME, what))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def _begun(subject: Name, issuer: Name, public: EllipticCurvePrivateKey, days: int) -> CertificateBuilder:
    from cryptography import x509

    start = datetime.now(UTC) - _EARLIER
    key = public.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _root(key: EllipticCurvePrivateKey, organisation: str) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = _named(organisation, "root")
    return (
        _begun(name, name, key, ROOT_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _signing(
    key: EllipticCurvePrivateKey,
    root_key: EllipticCurvePrivateKey,
    root: Certificate,
    organisation: str,
    days: int,
) -> Certificate:
    """As C2PA asks of a signing certificate (2.x, section 14.5): no CA, digital signatures, a purpose."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    return (
        _begun(_named(organisation, "signer"), root.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(root_key, hashes.SHA256())
    )


def _usage(*, certificates: bool) -> KeyUsage:
    """Signs content or, for the root, certificates."""
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )
