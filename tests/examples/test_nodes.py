"""The example of several nodes: its compose file is sound as far as that can be told without Docker, and its load balancer runs for real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from proxy.config.settings import SPECS, load_settings
from proxy.sandbox.api import Sandbox
from tests.support.live import eventually, free_port
from tests.support.nodes import Load, judge, node
from tests.support.server import KID_KEY, SHOP, Server, login, new_email, new_id, running, track

NODES = Path(__file__).parents[2] / "examples" / "nodes"
SECRETS = {
    "store": "postgresql://scq:secret@postgres/scq",
    "api-key": "key",
    "secret-keys": "s" * 32,
    "identity-keys": "i" * 32,
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((NODES / "compose.yaml").read_text())
    return parsed


def test_the_settings_of_the_nodes_are_settings_and_can_be_used(compose: dict[str, Any], tmp_path: Path) -> None:
    names = {spec.name for spec in SPECS} | {f"{spec.name}_FILE" for spec in SPECS if spec.secret}
    services = compose["services"]
    for service in services.values():
        assert {name for name in service.get("environment", {}) if name.startswith("SCQ_")} <= names
    assert services["node-1"]["environment"] == services["node-2"]["environment"]
    given = dict(services["node-1"]["environment"])
    for name, path in given.items():
        if name.endswith("_FILE"):
            secret = path.removeprefix("/run/secrets/")
            assert secret in services["node-1"]["secrets"]
            (tmp_path / secret).write_text(SECRETS[secret])
            given[name] = str(tmp_path / secret)
    settings = load_settings(given, None)
    balancer = services["balancer"]["networks"]["scq"]["ipv4_address"]
    assert [str(network) for network in settings.trusted_proxies] == [f"{balancer}/32"]


def test_what_the_services_name_exists(compose: dict[str, Any]) -> None:
    services, declared = compose["services"], set(compose["secrets"])
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        assert set(service.get("secrets", ())) <= declared
        assert set(service["networks"]) == {"scq"}
    context = (NODES / services["node-1"]["build"]["context"]).resolve()
    assert (context / services["node-1"]["build"]["dockerfile"]).is_file()
    readme = (NODES / "README.md").read_text()
    assert all(f"secrets/{secret}" in readme for secret in declared)


def test_the_database_is_durable_and_migrated_before_a_node_starts(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"fsync=on", "full_page_writes=on", "synchronous_commit=on"} <= set(services["postgres"]["command"])
    assert services["postgres"]["volumes"] == ["postgres:/var/lib/postgresql/data"]
    assert services["migrate"]["command"] == ["scq-proxy", "migrate"]
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("node-1", "node-2"):
        assert services[name]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}


def test_the_balancer_knows_the_addresses_of_the_nodes(compose: dict[str, Any]) -> None:
    text = (NODES / "nginx.conf").read_text()
    for name in ("node-1", "node-2"):
        assert f"server {compose['services'][name]['networks']['scq']['ipv4_address']}:8000 " in text


def _configured(folder: Path, port: int, nodes: list[Server]) -> list[str]:
    """The command for the example's balancer, with addresses and paths of this machine, and without its limit of requests."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("nginx is not installed: apt-get install nginx-light")
    text = (NODES / "nginx.conf").read_text()
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port};",
        "ssl_certificate     /etc/nginx/tls/www.example.com.pem;": "",
        "ssl_certificate_key /etc/nginx/tls/www.example.com.key;": "",
        "172.30.0.11:8000": f"127.0.0.1:{nodes[0].port}",
        "172.30.0.12:8000": f"127.0.0.1:{nodes[1].port}",
        "rate=50r/s": "rate=10000r/s",
        "proxy_read_timeout 15s": "proxy_read_timeout 4s",  # before the client gives up, which would not count as a failure
        "/var/log/nginx/": f"{folder}/",
        "/var/cache/": f"{folder}/",
        "/var/www/www.example.com": str(folder),
    }
    for old, new in changes.items():
        assert old in text, f"{old!r} is no longer in the example"
        text = text.replace(old, new)
    (folder / "site.conf").write_text(text)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""  # or the workers could not read the test's folder
    (folder / "nginx.conf").write_text(
        f"{user} pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} include {folder}/site.conf; }}\n"
    )
    return [str(program), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]


class Balanced(Server):
    """What a browser sees of several nodes."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory, "http://127.0.0.1:9")
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.client.base_url = httpx.URL(self.url)


@contextmanager
def balancer(folder: Path, nodes: list[Server]) -> Iterator[Balanced]:
    folder.mkdir()
    port = free_port()
    command = _configured(folder, port, nodes)
    subprocess.run([*command, "-t"], check=True, timeout=120, capture_output=True)
    process = subprocess.Popen(command)
    site = Balanced(folder, port)
    try:
        eventually(lambda: _answers(f"{site.url}/scq/scq.js"))
        yield site
    finally:
        site.client.close()
        process.terminate()
        process.wait(120)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_the_balancer_answers_what_is_too_large_as_a_node_does(server: Server, tmp_path: Path) -> None:
    with balancer(tmp_path / "nginx", [server, server]) as site:
        for size in (150_000, 2_000_000):
            own, passed = (each.send(b"x" * size) for each in (server, site))
            assert own.json()["error"] == "too-large"
            assert (passed.status_code, passed.json()) == (413, own.json())


def test_the_balancer_still_serves_the_script_when_no_node_answers(upstream: str, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with running(tmp_path / "node", upstream) as node, balancer(tmp_path / "nginx", [node, node]) as site:
        script = site.client.get("/scq/scq.js").content
        assert node.stop() == 0
        assert site.client.get("/scq/scq.js").content == script
        assert site.post([]).status_code == 502


def test_behind_a_balancer_a_node_is_stopped_and_one_is_frozen_and_clients_see_only_retries(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    with (
        node(tmp_path / "one", upstream, dsn) as one,
        node(tmp_path / "two", upstream, dsn) as two,
        balancer(tmp_path / "nginx", [one, two]) as site,
    ):
        load = Load([site], 4)
        with load.running():
            load.goes_on()
            assert one.stop() == 0
            load.goes_on(200)
            one.start()
            load.goes_on(200)
            two.signal(signal.SIGSTOP)
            load.goes_on(200)
            two.signal(signal.SIGCONT)
            load.goes_on(200)
        assert set(load.retries) <= {"502", "503", "504", "connection lost"}
        judge(load, sandbox)


def test_an_id_that_one_node_knows_is_a_duplicate_at_the_other(
    tmp_path: Path, sandbox: Sandbox, upstream: str, dsn: str
) -> None:
    with node(tmp_path / "one", upstream, dsn) as one, node(tmp_path / "two", upstream, dsn) as two:
        pushes = [{"id": new_id(), "call": login(new_email(), key=KID_KEY)}, {"id": new_id(), "call": track("cart-1")}]
        first, second = (each.post(pushes, s="s" * 20, origin=SHOP).json()["results"] for each in (one, two))
        assert {result["status"] for result in second} == {"duplicate"}
        assert [result["id"] for result in first] == [result["id"] for result in second]
