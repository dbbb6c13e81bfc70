"""
Encryption: which certificates are trusted, and which one the client shows.

Reads the files that the settings name; opens no connection.
"""

from __future__ import annotations

import ssl

from nemo_llm_stage.errors import ConfigError


def tls_context(
    ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None
) -> ssl.SSLContext:
    """
    Return a context that verifies the server.

    Args:
        ca_file: PEM file of certificates to trust beside the usual ones.
        cert_file: PEM file of a certificate that the client shows, its private key included or in `key_file`.
        key_file: PEM file of the private key to `cert_file`.

    Raises:
        ConfigError: A file cannot be used.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ConfigError(f"ca_file {ca_file} cannot be used: {error.strerror or error}.") from error
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file)
        except OSError as error:
            files = " with key_file ".join(filter(None, (cert_file, key_file)))
            raise ConfigError(f"cert_file {files} cannot be used: {error.strerror or error}.") from error
    return context
