"""The images that the cluster runs, built from this checkout, and Debian's HAProxy, so that nothing is pulled."""

import os
import subprocess

from tests.deploy.manifests import ROOT, SERVICES

PROXY = "structkv-check-haproxy:0.1.0"
_PROXY_FILE = """
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
"""


def build() -> list[str]:
    """Build everything, with wheels from the folder WHEELS if it is set; return the images' names."""
    wheels = os.environ.get("WHEELS", str(ROOT / "deploy" / "wheels"))
    for service in SERVICES:
        options = ("--file", "deploy/Dockerfile", "--target", service, "--build-context", f"wheels={wheels}")
        _docker("build", "--quiet", *options, "--tag", f"structkv-{service}:0.1.0", ".")
    _docker("build", "--quiet", "--tag", PROXY, "-", given=_PROXY_FILE)
    return [*(f"structkv-{service}:0.1.0" for service in SERVICES), PROXY]


def _docker(*arguments: str, given: str | None = None) -> None:
    done = subprocess.run(["docker", *arguments], cwd=ROOT, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-3000:]}"
