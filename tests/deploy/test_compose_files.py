"""What docker-compose.yml asks for is in .env.example, and what it names is here. Running it is tests/compose."""

import re
import tomllib

import pytest
import yaml

from tests.compose.stack import COMPOSE_FILE, REQUIRED, ROOT, SECRETS
from tests.deploy.test_variables import SETTINGS

TEXT = COMPOSE_FILE.read_text()
COMPOSE = yaml.safe_load(TEXT)
EXAMPLE = (ROOT / ".env.example").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_example_has_everything_that_is_required() -> None:
    given = dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert {name for name in REQUIRED if name not in given} == set()
    assert {name for name in REQUIRED if not given[name]} == set(SECRETS)


def test_the_example_has_nothing_that_nobody_reads() -> None:
    named = re.findall(r"^(?:# )?([A-Z]\w+)=", EXAMPLE, re.MULTILINE)
    read = [name for name in named if re.search(rf"\$\{{{name}[:}}]|^ +{name}:", TEXT, re.MULTILINE)]
    assert set(named) - set(read) == {"COMPOSE_FILE"}


def test_versions_agree() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert set(re.findall(r"ARG VERSION=(\S+)", dockerfile)) == {VERSION}
    assert set(re.findall(r"\$\{STRUCTKV_VERSION:-(.*?)\}", TEXT)) == {VERSION}


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_locked_in(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert service["mem_limit"]
    assert service["restart"] == ("no" if name == "model" else "unless-stopped")
    assert name == "model" or service["healthcheck"]["test"]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_images_are_pinned(name: str) -> None:
    assert re.fullmatch(r"\S+:(v?\d[\w.]*|7-bookworm|\$\{STRUCTKV_VERSION:-\S+\})", COMPOSE["services"][name]["image"])


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gateway", "shutdown_grace_seconds"), ("prefill", "grace_seconds"), ("decode", "grace_seconds")],
)
def test_docker_waits_until_a_service_has_drained(kind: str, name: str) -> None:
    service = COMPOSE["services"][kind]
    assert service["environment"][f"STRUCTKV_{name.upper()}"] == "${STRUCTKV_GRACE_SECONDS:-30}"
    assert service["stop_grace_period"] == "${STOP_GRACE_PERIOD:-40s}"
    assert SETTINGS[kind].model_fields[name].default == 30


@pytest.mark.parametrize("kind", ["gateway", "prefill", "decode"])
def test_variables_are_settings_of_the_service(kind: str) -> None:
    given = {name for name in COMPOSE["services"][kind]["environment"] if name.startswith("STRUCTKV_")}
    assert given <= {f"STRUCTKV_{name.upper()}" for name in SETTINGS[kind].model_fields}


def test_what_is_mounted_is_here() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", [])]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(sources) == 3
    assert [source for source in sources if not (ROOT / source).is_dir()] == []
