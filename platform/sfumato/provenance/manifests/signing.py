"""Signatures: the certificate, the key or the service that has it, and what is refused before any picture.

ECDSA signatures have the form of COSE (RFC 9053, section 2.1), r and s side by side; keys and services give
DER, which is converted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.core.finding import imported
from sfumato.errors import ConfigError, with_extra
from sfumato.provenance.manifests.config import C2paSettings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

Sign = Callable[[bytes], bytes]
_ECDSA = {"secp256r1": ("ES256", 32), "secp384r1": ("ES384", 48), "secp521r1": ("ES512", 66)}


class Signing:
    """A checked chain and a way to sign: `algorithm` as C2PA names it, `chain` in PEM, `sign` for bytes."""

    def __init__(self, settings: C2paSettings) -> None:
        """Raises ConfigError: files that are missing, unreadable, readable by others, or do not fit."""
        require_libraries()
        self.settings = settings
        self.chain = _read(settings.certificate, "certificate").decode("ascii", "replace")
        certificate = _certificate(settings.certificate, self.chain)
        self.algorithm, self._length = _algorithm(certificate, settings.certificate)
        self._sign = _of_key(settings.key, certificate) if settings.key else _of_service(settings.signer)
        self.failure: Exception | None = None
        """What the service raised: the library that calls `sign` reports only that it failed."""

    def forget(self) -> None:
        """The failure of an earlier picture."""
        self.failure = None

    def sign(self, content: bytes) -> bytes:
        """The signature of `content`, in COSE's form."""
        try:
            signature = self._sign(content)
            return self._flat(bytes(signature))
        except Exception as error:
            self.failure = error
            raise

    def _flat(self, signature: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        if not self._length or len(signature) == 2 * self._length:
            return signature
        r, s = decode_dss_signature(signature)
        return r.to_bytes(self._length, "big") + s.to_bytes(self._length, "big")


def require_libraries() -> None:
    """Raises ConfigError where the extra is not installed."""
    try:
        import c2pa  # noqa: F401
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"C2PA needs the package {error.name}: {with_extra('provenance')}") from None


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        more = "; `sfumato provenance keys DIR` makes a chain" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"provenance.c2pa.{what}: {path} cannot be read: {error.strerror}{more}") from None


def _certificate(path: str, chain: str) -> Certificate:
    """The signing certificate, checked for its time: a picture signed later than that counts for nothing."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificates(chain.encode())[0]
    except ValueError:
        raise ConfigError(f"provenance.c2pa.certificate: {path} holds no certificate in PEM form") from None
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise ConfigError(
            f"provenance.c2pa.certificate: {path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; "
            "renew it"
        )
    if now < certificate.not_valid_before_utc:
        start = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(f"provenance.c2pa.certificate: {path} is not valid before {start}")
    return certificate


def _algorithm(certificate: Certificate, path: str) -> tuple[str, int]:
    """C2PA's name, and the bytes of each half of an ECDSA signature (0 for others)."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    public = certificate.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in _ECDSA:
        return _ECDSA[public.curve.name]
    if isinstance(public, ed25519.Ed25519PublicKey):
        return "ED25519", 0
    if isinstance(public, rsa.RSAPublicKey):
        return "PS256", 0
    raise ConfigError(
        f"provenance.c2pa.certificate: {path} has a key that C2PA does not allow; use P-256, P-384, P-521, "
        "Ed25519 or RSA"
    )


def _of_key(path: str, certificate: Certificate) -> Sign:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if os.name == "posix" and Path(path).is_file() and (mode := Path(path).stat().st_mode & 0o077):
        raise ConfigError(
            f"provenance.c2pa.key: {path} can be read or written by others (mode {mode | 0o600:04o}); run "
            f"`chmod 600 {path}`, and make new keys if somebody may have copied it"
        )
    content = _read(path, "key")
    try:
        key: Any = load_pem_private_key(content, None)
    except TypeError:
        raise ConfigError(
            f"provenance.c2pa.key: {path} is protected by a password, which nobody could type in a job; "
            "use provenance.c2pa.signer"
        ) from None
    except ValueError:
        raise ConfigError(f"provenance.c2pa.key: {path} holds no private key in PEM form") from None
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"provenance.c2pa.key: {path} is not the key of the certificate; name its own")
    if isinstance(key, ec.EllipticCurvePrivateKey):
        digests = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
        algorithm = ec.ECDSA(digests[key.key_size])
        return lambda content: key.sign(content, algorithm)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign
    assert isinstance(key, rsa.RSAPrivateKey), "as the certificate's"
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    return lambda content: key.sign(content, pss, hashes.SHA256())


def _of_service(path: str | None) -> Sign:
    assert path is not None, "settings have a key or a signer"
    found = imported(path)
    if not callable(found):
        raise ConfigError(f"provenance.c2pa.signer: {path} is no function; it takes bytes and returns bytes")
    return found  # type: ignore[no-any-return]
