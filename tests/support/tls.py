"""TLS for servers on loopback, with a key and a certificate of our own that the system's openssl makes."""

from __future__ import annotations

import ssl
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Contexts(NamedTuple):
    """The contexts of both ends: `client` trusts the `certificate` (PEM) of `server` and no other."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    certificate: str


@cache
def contexts(name: str) -> Contexts:
    """Returns both contexts for a self-signed certificate for the host `name`."""
    with tempfile.TemporaryDirectory(prefix="scq-tls-") as folder:
        key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", "30"]
        command += ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate, key)
        return Contexts(server, ssl.create_default_context(cafile=str(certificate)), certificate.read_text("ascii"))


def trusting(name: str, directory: Path) -> dict[str, str]:
    """What to add to the environment of a Python process so that it trusts the certificate for `name` and no other.

    Nothing in the proxy's settings adds an authority to those of `certifi`: its place in the process is taken.
    """
    package = directory / "trusted" / "certifi"
    package.mkdir(parents=True)
    (package / "authorities.pem").write_text(contexts(name).certificate, "ascii")
    (package / "__init__.py").write_text(
        f"def where() -> str:\n    return {str(package / 'authorities.pem')!r}\n", "utf-8"
    )
    return {"PYTHONPATH": str(package.parent)}
