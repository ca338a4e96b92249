"""The overlays by checkov, whose policies are other people's: what ours in tests/deploy forget, they may not."""

from pathlib import Path

import pytest

from deploy.checks.test_kubernetes import written
from deploy.checks.tools import TOOLS, Done, run
from tests.deploy.manifests import OVERLAYS

# What we do otherwise, and why.
SKIPPED = {
    "CKV_K8S_11": "no CPU limit where a limit would only slow down what has idle cores beside it",
    "CKV_K8S_15": "images have versions, which need not be pulled again",
    "CKV_K8S_35": "REDIS_URL is a variable that carries a password; gateways' keys are a file",
    "CKV_K8S_38": "the cron job restarts Deployments, for which it needs its token",
    "CKV_K8S_40": "Redis' and HAProxy's images have users of their own",
    "CKV_K8S_43": "tags are set by users, who may set digests",
}


def check(path: Path) -> Done:
    skipped = ",".join(SKIPPED)
    return run(
        *(TOOLS / "checkov" / "bin" / "checkov", "--framework", "kubernetes", "--quiet", "--compact"),
        *("--skip-download", "--skip-check", skipped, "--file", path),
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_follow_its_policies(overlay: str, tmp_path: Path) -> None:
    done = check(written(overlay, tmp_path))
    assert done.code == 0, done.output


def test_a_bad_one_does_not(tmp_path: Path) -> None:
    path = written("cpu-demo", tmp_path)
    path.write_text(path.read_text().replace("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"))
    done = check(path)
    assert done.code != 0
    assert "CKV_K8S_20" in done.output
