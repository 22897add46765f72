"""Small ordinary models and their sealed archives, for the tests of this room."""

from __future__ import annotations

import json
import tarfile
import zipfile
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

MANIFEST = "MAR-INF/MANIFEST.json"
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def manifest(name: str = "tiny", version: str = "1.0", **model: str) -> bytes:
    fields = {
        "createdOn": "22/11/2026 10:00:00",
        "runtime": "python",
        "model": {
            "modelName": name,
            "serializedFile": "model.pt",
            "handler": "tiny_handler.py",
            "modelVersion": version,
        }
        | model,
        "archiverVersion": "0.12.0",
    }
    return json.dumps(fields, indent=2).encode()


def model_files(name: str = "tiny", **more: bytes) -> dict[str, bytes]:
    return {
        "model.pt": bytes(range(256)) * 80,
        "tiny_handler.py": b"def handle(data, context):\n    return [b'tiny'] * len(data)\n",
        "labels/en.json": b'["a", "b"]',
        "empty.txt": b"",
        MANIFEST: manifest(name),
    } | more


def write_mar(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, octets in files.items():
            archive.writestr(name, octets)
    return path


def write_tgz(path: Path, files: dict[str, bytes], folder: str = "tiny") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, octets in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(octets)
            archive.addfile(info, BytesIO(octets))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, octets in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(octets)
    return path
