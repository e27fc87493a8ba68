"""The certificate and the private key with which the server encrypts connections, checked before anything is loaded."""

import ssl
from pathlib import Path

from coconut_ds.errors import ConfigError


def tls_of(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What the options ``--tls-cert`` and ``--tls-key`` ask for; None: no encryption.

    Raises:
        ConfigError: only one of them is given, a file cannot be read, or the two do not belong together.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "--tls-cert" if certificate is None else "--tls-key"
        raise ConfigError(f"{missing} is missing; --tls-cert and --tls-key belong together")
    for option, file in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{option} {file}: cannot be read ({error.strerror})") from error
        if b"-----BEGIN " not in text:
            raise ConfigError(f"{option} {file}: expected a file in PEM format, which contains '-----BEGIN …'")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except ssl.SSLError as error:
        raise ConfigError(
            f"--tls-cert {certificate} --tls-key {key}: cannot be used ({error.reason or error}); expected a "
            "certificate, followed by those of its issuers, and the private key that belongs to it"
        ) from error
    return context


def _refuse_password() -> str:
    raise ConfigError("--tls-key: the private key is encrypted; decrypt it first (openssl pkey -in KEY -out PLAIN)")
