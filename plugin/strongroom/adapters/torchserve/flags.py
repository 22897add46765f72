"""TorchServe's own command line and configuration file, as far as they are safe inside a TEE.

The operator writes what they always wrote. What names a model store or models goes through admission;
what would let foreign code in or plaintext out is refused with the reason; the rest is passed on. The
configuration that TorchServe gets is written anew from an allow-list, because it also reads settings
that nobody here has thought about.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from strongroom.adapters.torchserve import properties as java
from strongroom.adapters.torchserve import sizes
from strongroom.errors import LaunchRefused

SIZES_VARIABLE = "STRONGROOM_SIZES"
"""Set by the launcher for workers: max_request_size and max_response_size in bytes, for what is inside, with a comma.

A wrong value costs a worker or an answer, never a secret.
"""

SAFE_PROPERTIES = frozenset(
    [
        "inference_address",
        "management_address",
        "metrics_address",
        "grpc_inference_address",
        "grpc_management_address",
        "grpc_inference_port",
        "grpc_management_port",
        "grpc_inference_max_connection_age_ms",
        "grpc_inference_max_connection_age_grace_ms",
        "grpc_management_max_connection_age_ms",
        "grpc_management_max_connection_age_grace_ms",
        "number_of_netty_threads",
        "netty_client_threads",
        "default_workers_per_model",
        "job_queue_size",
        "number_of_gpu",
        "default_response_timeout",
        "default_startup_timeout",
        "unregister_model_timeout",
        "async_logging",
        "cors_allowed_origin",
        "cors_allowed_methods",
        "cors_allowed_headers",
        "metrics_mode",
        "max_request_size",
        "max_response_size",
        "limit_max_image_pixels",
        "keystore",
        "keystore_pass",
        "keystore_type",
        "private_key_file",
        "certificate_file",
        "enable_grpc_ssl",
        "disable_system_metrics",
        "initial_worker_port",
        "prefer_direct_buffer",
        "disable_token_authorization",
        "models",
        "load_models",
        "model_store",
        "vmargs",
    ]
)

FILE_PROPERTIES = frozenset(["keystore", "private_key_file", "certificate_file"])

REFUSED_PROPERTIES = {
    "plugins_path": "a frontend plugin is Java code that nobody measured",
    "workflow_store": "workflows pass the outputs of models through the frontend in plaintext",
    "enable_model_api": "models are admitted before the server starts, not registered by whoever reaches the port",
    "install_py_dep_per_model": "pip would run code from outside inside the TEE",
    "enable_envvars_config": "environment variables could then override every measured setting",
    "system_metrics_cmd": "it names a command that the server runs",
    "allowed_urls": "models come from the admitted store only",
    "use_env_allowed_urls": "models come from the admitted store only",
    "ipex_enable": "it starts workers through another launcher, and the keeper would not know them",
    "cpu_launcher_enable": "it starts workers through another launcher, and the keeper would not know them",
    "service_envelope": "the server would apply it to ciphertext; name it in strongroom.toml, [worker.envelopes]",
    "decode_input_request": "strongroom decodes requests inside the worker, with the default",
}

SAFE_JVM = re.compile(r"-Xm[sx]\d+[kKmMgG]?|-Xss\d+[kKmMgG]?|-XX:MaxRAMPercentage=\d+|-XX:[+-]ExitOnOutOfMemoryError")

REFUSED_FLAGS = {
    "stop": "stop the launcher instead: it stops the server",
    "version": "run torchserve --version itself",
    "workflow_store": REFUSED_PROPERTIES["workflow_store"],
    "plugins_path": REFUSED_PROPERTIES["plugins_path"],
    "enable_model_api": REFUSED_PROPERTIES["enable_model_api"],
    "log_config": "a log4j configuration can load code and copy logs elsewhere",
    "cpp_log_config": "the C++ backend does not load sealed models",
}


SEALING_ROOM = 128 * 1024
"""Bytes that encapsulation, header fields and chunk framing may add to a small message."""

JAVA_INT = 2**31 - 1

DEFAULT_CONFIG = Path("config.properties")
"""What TorchServe reads in the present folder where no flag names a configuration."""

NO_ATTACH = "-XX:+DisableAttachMechanism -XX:-UsePerfData"
"""The server's Java takes no agents from other processes of its user, and leaves no file about itself in /tmp."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the operator asked for: a store, model name → archive file, and everything that is passed on.

    `unnamed` says that the settings came from the present folder's config.properties, which no flag names.
    """

    store: Path
    models: dict[str, Path]
    properties: dict[str, str]
    disable_token_auth: bool
    unnamed: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LaunchRefused(f"torchserve's flags cannot be read: {message}", hint="see torchserve --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="torchserve", add_help=False, allow_abbrev=False)
    for flag in ("--start", "--foreground", "--stop", "--enable-model-api"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-v", "--version", action="store_true")
    parser.add_argument("--no-config-snapshots", "--ncs", action="store_true")
    parser.add_argument("--disable-token-auth", "--dt", action="store_true")
    parser.add_argument("--models", nargs="+", default=[])
    for flag in ("--ts-config", "--model-store", "--workflow-store", "--log-config", "--cpp-log-config"):
        parser.add_argument(flag)
    parser.add_argument("--plugins-path", "--ppath")
    return parser


def read_command(command: list[str]) -> Wanted:
    """Read ``torchserve --start …`` as stock TorchServe would; raises `LaunchRefused` with the reason."""
    if not command or Path(command[0]).name != "torchserve":
        raise LaunchRefused(
            f"the server to launch is torchserve, not {command[0] if command else 'nothing'!r}",
            hint="strongroom launch --config strongroom.toml -- torchserve --start --model-store DIR --models …",
        )
    flags = vars(_parser().parse_args(command[1:]))
    for name, reason in REFUSED_FLAGS.items():
        if flags[name]:
            raise LaunchRefused(f"torchserve --{name.replace('_', '-')} is refused: {reason}", hint="leave it out")
    unnamed = not flags["ts_config"] and DEFAULT_CONFIG.exists()
    config = DEFAULT_CONFIG if unnamed else Path(flags["ts_config"]) if flags["ts_config"] else None
    properties = read_properties(config) if config is not None else {}
    store = flags["model_store"] or properties.pop("model_store", None)
    if not store or not Path(store).is_dir():
        raise LaunchRefused(f"the model store {store!r} is not a folder", hint="give it with --model-store")
    named = flags["models"] or [name for name in properties.pop("load_models", "").split(",") if name.strip()]
    properties.pop("load_models", None)
    properties.pop("model_store", None)
    return Wanted(Path(store), _models(Path(store), named), properties, flags["disable_token_auth"], unnamed)


def read_properties(path: Path) -> dict[str, str]:
    """A config.properties file as Java reads it, checked against the allow-list; raises `LaunchRefused`."""
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise LaunchRefused(f"{path} cannot be read: {error.strerror}", hint="see --ts-config") from error
    properties = java.read(octets, str(path))
    for name, value in properties.items():
        if name in REFUSED_PROPERTIES and value.lower() != "false":
            raise LaunchRefused(f"{path}: {name} is refused: {REFUSED_PROPERTIES[name]}", hint="remove the line")
        if name not in SAFE_PROPERTIES and name not in REFUSED_PROPERTIES:
            raise LaunchRefused(
                f"{path}: {name[:80]!r} is not a setting that is known to be safe here",
                hint="remove the line, or ask for it to be looked at: docs/guides/operate.md",
            )
    for word in properties.get("vmargs", "").split():
        if not SAFE_JVM.fullmatch(word):
            raise LaunchRefused(f"{path}: the JVM argument {word!r} is refused", hint="only memory sizes are passed on")
    return {name: value for name, value in properties.items() if name not in REFUSED_PROPERTIES}


def _models(store: Path, named: list[str]) -> dict[str, Path]:
    """Model name → path in the store. `ALL` means every archive; ``name=file`` names one."""
    models: dict[str, Path] = {}
    for each in named:
        each = each.strip()
        if each.lower() == "all":
            models |= {path.name.removesuffix(".mar"): path for path in sorted(store.iterdir()) if _looks_sealed(path)}
            continue
        name, _, file = each.rpartition("=")
        if "://" in file or "/" in file or ".." in file:
            raise LaunchRefused(f"the model {file!r} is not a file of the model store", hint="copy it there first")
        path = store / file
        if not path.exists():
            raise LaunchRefused(f"{path} does not exist", hint="see --models and --model-store")
        models[name or file.removesuffix(".mar")] = path
    return models


def _looks_sealed(path: Path) -> bool:
    return path.suffix == ".mar" or (path.is_dir() and (path / "MAR-INF").is_dir())


def size_limits(wanted: Wanted) -> tuple[int, int]:
    """(max_request_size, max_response_size) in bytes, as the operator means them: of what is inside.

    The server itself gets more room, for what sealing adds, and so that a request which is somewhat too large
    still reaches the worker, which can say so under encryption. Raises `LaunchRefused`.
    """
    limits = []
    for name in ("max_request_size", "max_response_size"):
        value = wanted.properties.get(name, str(sizes.DEFAULT))
        if not value.isdecimal() or not 0 < int(value) <= JAVA_INT:
            raise LaunchRefused(f"{name} is {value[:40]!r}", hint=f"a number of bytes up to {JAVA_INT}")
        limits.append(int(value))
    return limits[0], limits[1]


def jvm_arguments(wanted: Wanted) -> str:
    """What the server's virtual machine is told: the operator's memory sizes, then ours."""
    return f"{wanted.properties.get('vmargs', '')} {NO_ATTACH}".strip()


def write_properties(wanted: Wanted, path: Path) -> None:
    """The configuration that TorchServe gets: what was asked for and is safe, then what is forced.

    Raises `LaunchRefused` where a value cannot be written so that it is read as it is meant: the present folder, with
    which relative paths begin, may have any name.
    """
    request, response = size_limits(wanted)
    forced = {
        "max_request_size": str(min(2 * request + SEALING_ROOM, JAVA_INT)),
        "max_response_size": str(min(response + response // 256 + SEALING_ROOM, JAVA_INT)),
        "allowed_urls": "file://strongroom-admits-no-url",
        "install_py_dep_per_model": "false",
        "enable_envvars_config": "false",
        "vmargs": jvm_arguments(wanted),
    }
    asked = {name: value for name, value in wanted.properties.items() if name not in forced}
    for name in FILE_PROPERTIES & asked.keys():  # the server runs in a folder of ours
        asked[name] = str(Path(asked[name]).absolute())
    path.write_bytes(java.write(asked | forced, str(path)))
