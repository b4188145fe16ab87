"""The Python of the proto file is that of the proto file."""

from pathlib import Path

import serve.rpc
from serve.rpc.generate import generate


def test_what_is_kept_is_what_the_compiler_makes(tmp_path: Path) -> None:
    generate(tmp_path)
    made = {path.name: path.read_text() for path in (tmp_path / "serve" / "rpc").iterdir()}
    kept = Path(serve.rpc.__path__[0])
    assert set(made) == {"recommender_pb2.py", "recommender_pb2.pyi", "recommender_pb2_grpc.py"}
    assert {name: (kept / name).read_text() for name in made} == made
