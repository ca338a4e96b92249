"""The committed stubs are those of proto/."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_stubs_are_up_to_date(tmp_path: Path) -> None:
    protos = [f"common/pb/{path.name}" for path in sorted((ROOT / "proto").glob("*.proto"))]
    bin_dir = Path(sys.executable).parent
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", "-Icommon/pb=proto"),
        *(f"--plugin={name}={bin_dir / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        *(f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python")),
        *(f"--{kind}_out=quiet:{tmp_path}" for kind in ("mypy", "mypy_grpc")),
        *protos,
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    generated = {path.name: path.read_text() for path in (tmp_path / "common/pb").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "common/pb").glob("*_pb2*")}
    assert generated == committed, "run `make proto`"
