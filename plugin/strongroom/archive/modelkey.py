"""The file of one model key, for those who keep it themselves (docs/format.md section 5.3)."""

from __future__ import annotations

from pathlib import Path

from strongroom.archive import keyfile
from strongroom.errors import KeyFileInvalid, MalformedInput, WrongKey
from strongroom.keys import ArchiveDigest, ModelKey

TAG = "strongroom-model-key-1"


def save_model_key(path: Path | str, digest: ArchiveDigest, key: ModelKey) -> None:
    """Write the key of one archive, mode 0600; never over an existing file."""
    text = keyfile.compose(
        TAG,
        str(digest),
        keyfile.text_of(key.reveal()),
        comments=("strongroom model key, secret: whoever has this reads the model",),
    )
    keyfile.write_private(path, text)


def load_model_key(path: Path | str, *, of: ArchiveDigest | None = None) -> ModelKey:
    """Read a key; raises `KeyFileInvalid`, or `WrongKey` where it is another archive's than `of`."""
    text = keyfile.read_private(path, made_by="strongroom seal --key-out")
    name, octets = keyfile.fields_of(text, TAG, 2, where=str(path))
    try:
        digest = ArchiveDigest.parse(name)
    except MalformedInput as error:
        raise KeyFileInvalid(f"{path}: {error}") from error
    if of is not None and digest != of:
        raise WrongKey(
            f"{path} is the key of archive {digest}, not of {of}",
            hint="every sealing has a key of its own; use the one that was written with this archive",
        )
    return ModelKey(keyfile.octets_of(octets, 32, where=str(path)))
