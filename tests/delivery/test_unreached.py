"""Failed connections, one for each cause that needs a different remedy."""

from __future__ import annotations

import asyncio
import errno
import resource
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.delivery.connection import Connection, Failure
from proxy.delivery.unreached import ADVICE, NO_CONNECTION, why_unreached
from tests.support.live import free_port

CA = """
[ca]
default_ca = ours
[ours]
database = {0}/index
serial = {0}/serial
new_certs_dir = {0}
default_md = sha256
policy = policy
x509_extensions = extensions
[policy]
commonName = supplied
[extensions]
subjectAltName = DNS:localhost
[req]
distinguished_name = name
[name]
"""


def certificate(folder: Path, begin: str, end: str) -> ssl.SSLContext:
    """Makes a certificate for localhost; returns a server's context with it."""
    openssl = shutil.which("openssl")
    assert openssl is not None, "apt-get install openssl"
    (folder / "ca").write_text(CA.format(folder))
    (folder / "index").touch()
    (folder / "serial").write_text("01\n")
    key, request = ["-keyout", "key", "-out", "request"], ["-in", "request", "-keyfile", "key", "-out", "certificate"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    dates = ["-startdate", begin, "-enddate", end]
    for arguments in (["req", "-new", *curve, *key], ["ca", "-batch", "-selfsign", "-notext", *dates, *request]):
        subprocess.run([openssl, *arguments, "-config", "ca"], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    return context


@asynccontextmanager
async def server(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def why(url: str, trusted: Path | None = None) -> str:
    """Returns the explanation for a failed connection to this URL. `trusted`: an additional root certificate."""
    connection = Connection(ssl.create_default_context(cafile=trusted), timeout_seconds=20)
    failure = await connection.exchange("POST", url, {}, b"", repeatable=True)
    await connection.aclose()
    assert isinstance(failure, Failure)
    assert not failure.reached
    text = failure.detail
    assert ADVICE[text].endswith(".")
    return text


async def test_an_expired_certificate(tmp_path: Path) -> None:
    async with server(certificate(tmp_path, "20200101000000Z", "20200102000000Z")) as port:
        assert "has expired" in await why(f"https://localhost:{port}", tmp_path / "certificate")


async def test_a_certificate_that_is_not_valid_yet(tmp_path: Path) -> None:
    async with server(certificate(tmp_path, "20980101000000Z", "20990101000000Z")) as port:
        assert "not valid yet" in await why(f"https://localhost:{port}", tmp_path / "certificate")


async def test_a_certificate_for_another_host_and_one_that_nobody_vouches_for(tmp_path: Path) -> None:
    async with server(certificate(tmp_path, "20200101000000Z", "20990101000000Z")) as port:
        assert "another host name" in await why(f"https://127.0.0.1:{port}", tmp_path / "certificate")
        assert "not trusted" in await why(f"https://localhost:{port}")


async def test_a_server_that_speaks_no_tls() -> None:
    async with server(None) as port:
        assert "TLS handshake failed" in await why(f"https://localhost:{port}")


async def test_a_port_that_refuses() -> None:
    assert "refused" in await why(f"http://127.0.0.1:{free_port()}")
    assert "refused" in await why(f"http://localhost:{free_port()}")  # at each of its addresses


async def test_file_handles_that_are_used_up_are_not_blamed_on_the_network() -> None:
    port = free_port()
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # nothing that is open is closed by that
    try:
        text = await why(f"http://127.0.0.1:{port}")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    assert text == "no connection: no file handles left on this machine"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENFILE, "file handles"),
        (errno.ENOBUFS, "memory"),
        (errno.EADDRNOTAVAIL, "port"),
        (errno.EACCES, "does not permit it"),
        (errno.ENETDOWN, "network"),
    ],
)
def test_what_this_machine_lacks_is_named(number: int, words: str) -> None:
    text = why_unreached(OSError(number, "ann@example.com"))
    assert words in text
    assert text in ADVICE


async def test_a_name_that_is_not_found() -> None:
    assert "not found (DNS)" in await why("http://sendx.invalid")


def test_errors_that_refer_to_each_other_come_to_an_end() -> None:
    first, second = ValueError(), ValueError()
    first.__cause__, second.__context__ = second, first
    assert why_unreached(first) == NO_CONNECTION


def test_the_first_cause_that_says_anything_counts() -> None:
    several = ExceptionGroup("tried", [OSError(), socket.gaierror(-2, "ann@example.com")])
    assert "DNS" in why_unreached(several)
