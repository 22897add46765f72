"""`strongroom archive`: torch-model-archiver's flags, and the result is sealed at once.

torch-model-archiver copies the model to a folder in the temp directory, packs it there, and leaves it behind
when it fails. Here its manifest is made by the archiver itself, and the files are sealed from where they
lie: no staging folder, no plaintext archive.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strongroom.cli import terms

if TYPE_CHECKING:
    from strongroom.archive.source import FilesSource

BUILT_IN = {
    "base_handler", "text_classifier", "image_classifier", "object_detector", "image_segmenter",
    "dali_image_classifier", "vllm_handler", "trt_llm_handler",
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Attach the verb."""
    app.command()(archive)


def archive(
    model_name: Annotated[str, typer.Option("--model-name", help="the model's name, and the archive's")],
    version: Annotated[str, typer.Option("-v", "--version", help="the model's version, as the server shows it")],
    handler: Annotated[str, typer.Option("--handler", help="a handler's file, or the name of a built-in one")],
    author: terms.Author,
    serialized_file: Annotated[str | None, typer.Option(help="weights or a scripted model")] = None,
    model_file: Annotated[str | None, typer.Option(help="the file with the model's class")] = None,
    extra_files: Annotated[
        str | None, typer.Option(help="more files, folders or wildcards, with commas between")
    ] = None,
    runtime: Annotated[str, typer.Option(help="python or python3")] = "python",
    export_path: Annotated[Path, typer.Option(help="the folder to write to")] = Path(),
    archive_format: Annotated[
        str, typer.Option(help="default or zip-store (one file), no-archive (a folder)")
    ] = "default",
    requirements_file: Annotated[
        str | None, typer.Option("-r", "--requirements-file", help="sealed along; nobody installs it")
    ] = None,
    config_file: Annotated[
        str | None, typer.Option("-c", "--config-file", help="the model's YAML configuration")
    ] = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="replace the output if it exists")] = False,
    broker: terms.Broker = None,
    admin_key: terms.AdminKey = None,
    broker_ca: terms.BrokerCa = None,
    lease: terms.Lease = None,
    key_out: terms.KeyOut = None,
    recipient: terms.Recipients = None,
    passphrase: terms.Passphrase = False,
    tenant: terms.Tenant = "default",
    lineage: terms.Lineage = None,
    lineage_version: terms.Version = 1,
    expires: terms.Expires = None,
    lease_required: terms.LeaseRequired = False,
    owner: terms.Owner = None,
    broker_key: terms.BrokerKey = None,
    padding: terms.Padding = False,
    allow_requirements: terms.AllowRequirements = False,
    plugin: terms.PluginNames = None,
    as_json: terms.AsJson = False,
) -> None:
    """Package a model as torch-model-archiver does, sealed, without its plaintext staging folder.

    Example: `strongroom archive --model-name cats -v 1.0 --handler image_classifier
    --serialized-file cats.pt --author author.key --key-out cats.modelkey`
    """
    from strongroom.archive.seal import Terms
    from strongroom.cli import sealing
    from strongroom.errors import WrongUse

    if archive_format not in {"default", "zip-store", "no-archive"}:
        raise WrongUse(
            f"--archive-format {archive_format} cannot be sealed", hint="sealed archives are zips or folders"
        )
    directory = archive_format == "no-archive"
    output = export_path / (model_name if directory else f"{model_name}.mar")
    source = gather(
        model_name, version, handler, serialized_file, model_file, extra_files, runtime, requirements_file, config_file
    )
    keep = sealing.holder(
        broker,
        admin_key,
        key_out,
        output=output,
        version=lineage_version,
        lease_s=lease,
        ca=broker_ca,
        others=bool(recipient) or passphrase,
    )
    sealing.seal_for(
        source,
        output,
        author=author,
        terms=Terms(
            tenant=tenant,
            lineage=lineage,
            version=lineage_version,
            expiry=sealing.moment(expires),
            lease_required=lease_required,
            broker_key=sealing.broker_key(broker_key, broker, admin_key, broker_ca),
            owner=owner,
        ),
        keep=keep,
        recipients=recipient or (),
        passphrase=passphrase,
        plugins=plugin or (),
        form="directory" if directory else "file",
        padding=padding,
        allow_requirements=allow_requirements,
        overwrite=force,
        as_json=as_json,
    )


def gather(
    model_name: str,
    version: str,
    handler: str,
    serialized_file: str | None = None,
    model_file: str | None = None,
    extra_files: str | None = None,
    runtime: str = "python",
    requirements_file: str | None = None,
    config_file: str | None = None,
) -> FilesSource:
    """The files that torch-model-archiver would pack, from where they lie; raises `SealRefused`."""
    from strongroom.archive.source import FilesSource
    from strongroom.errors import ConfigurationInvalid, SealRefused

    try:
        from model_archiver.model_archiver_config import ModelArchiverConfig
        from model_archiver.model_packaging_utils import ModelExportUtils
    except ImportError as error:
        raise ConfigurationInvalid(
            "torch-model-archiver is not installed, and it makes the manifest",
            hint="pip install 'strongroom[torchserve]'",
        ) from error
    if runtime not in {"python", "python3"}:
        raise SealRefused(f"runtime {runtime!r}: only Python handlers can be served sealed")
    paths: dict[str, Path] = {}
    # The archiver copies in this order, and a later file replaces an earlier one of its name.
    for each in (model_file, serialized_file):
        if each:
            paths[Path(each).name] = Path(each)
    if handler not in BUILT_IN:
        file = Path(handler if ".py" in handler else handler.split(":")[0] + ".py")
        paths[file.name] = file
    for pattern in (extra_files or "").split(","):
        if pattern.strip():
            paths |= _extra(pattern.strip())
    for each in (requirements_file, config_file):
        if each:
            paths[Path(each).name] = Path(each)
    config = ModelArchiverConfig(
        model_name=model_name,
        handler=handler,
        version=version,
        serialized_file=serialized_file,
        model_file=model_file,
        extra_files=extra_files,
        runtime=runtime,
        requirements_file=requirements_file,
        config_file=config_file,
    )
    manifest = ModelExportUtils.generate_manifest_json(config).encode()
    # The archiver copies what a link points to; here that file itself is read.
    try:
        resolved = {name: path.resolve() for name, path in paths.items()}
    except (OSError, RuntimeError) as error:  # RuntimeError is Python 3.11's word for links in a circle
        raise SealRefused(f"a file cannot be found: {error}", hint="give the file itself, not a link") from error
    return FilesSource(resolved, {"MAR-INF/MANIFEST.json": manifest})


def _extra(pattern: str) -> dict[str, Path]:
    from strongroom.archive.source import files_below
    from strongroom.errors import SealRefused

    found: dict[str, Path] = {}
    matches = glob.glob(pattern)
    if not matches:
        raise SealRefused(f"no file matches {pattern}", hint="look at --extra-files")
    for each in map(Path, matches):
        found |= files_below(each, hidden=False) if each.is_dir() else {each.name: each}
    return found
