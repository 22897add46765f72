"""The environment that the keeper and the server get: an allow-list of variables, and places in memory for the rest.

A variable can name a library, a plugin or a setting, and nobody measured it. What a library keeps in a folder of its
own choosing (compiled kernels, downloads, fonts, profiles) may hold what a model or a request is made of, so each of
these folders is in memory and goes with the launcher.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from strongroom.adapters.torchserve.entry import NETWORK_VARIABLE, PYTHON_VARIABLE
from strongroom.adapters.torchserve.runtime import OLDEST_JAVA, java_home, java_version
from strongroom.adapters.torchserve.sizes import told
from strongroom.attest.tpm_connection import TCTI_VARIABLE
from strongroom.errors import LaunchRefused
from strongroom.launch.config import Configuration
from strongroom.worker.link import SOCKET_VARIABLE

SYSTEM_PATH = (
    "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/cuda/bin",
    "/usr/local/nvidia/bin",
)  # fmt: skip
"""Where programs are looked for, behind this Python's own folder. The operator's PATH is not asked."""

KEPT_VARIABLES = frozenset(
    [
        "LANG",
        "LANGUAGE",
        "TZ",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
    ]
)

CACHES = {
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "TORCH_HOME": "torch",
    "TORCH_COMPILE_DEBUG_DIR": "dynamo",
    "PYTORCH_KERNEL_CACHE_PATH": "kernels",
    "TRITON_CACHE_DIR": "triton",
    "TRITON_HOME": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "CUPY_CACHE_DIR": "cupy",
    "JOBLIB_TEMP_FOLDER": "joblib",
    "KERAS_HOME": "keras",
    "NLTK_DATA": "nltk",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
}
"""Variable → its folder below the temporary one."""


def python_path() -> str:
    """PATH for children."""
    return os.pathsep.join([str(Path(sys.executable).parent), *SYSTEM_PATH])


def java_for(configuration: Configuration, environment: Mapping[str, str] = os.environ) -> Path:
    """The Java that runs the server: the configured one, else this machine's, else the packaged one.

    The operator's JAVA_HOME counts beside the simulated TEE only: it names a program. Raises `LaunchRefused` where the
    configured one will not do: no other takes its place.
    """
    named = configuration.surroundings.java_home
    if named is not None:
        if java_version(named / "bin" / "java") < OLDEST_JAVA:
            raise LaunchRefused(
                f"java_home is {named}, and there is no Java {OLDEST_JAVA} or newer in it",
                hint="[surroundings] java_home names the folder that holds bin/java",
            )
        return named
    found = {"PATH": python_path()}
    if configuration.tee == "simulated" and environment.get("JAVA_HOME"):
        found["JAVA_HOME"] = environment["JAVA_HOME"]
    return java_home(found)


def shared_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What keeper and server have in common."""
    kept = {name: value for name, value in environment.items() if name in KEPT_VARIABLES or name.startswith("LC_")}
    return kept | {"PATH": python_path(), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}


def keeper_environment(folder: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The keeper's; `folder` is its private one in memory. Which TPM is asked may be named (attestation/tpm.md)."""
    tpm = {name: environment[name] for name in (TCTI_VARIABLE,) if environment.get(name)}
    return shared_environment(environment) | tpm | {"HOME": str(folder), "TMPDIR": str(folder), "TEMP": str(folder)}


def server_environment(
    temp: Path,
    socket: Path,
    logs: tuple[Path, Path],
    java: Path,
    sizes: tuple[int, int],
    network: str,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The server's, which its workers inherit; what is written goes below `temp`, or is a log of the server.

    `logs` are the folders for logs and for metrics, absolute, since the server does not run where the operator is.
    `network` is the configuration's, for the moment before a worker can ask the keeper.
    """
    return (
        {"LOG_LOCATION": str(logs[0]), "METRICS_LOCATION": str(logs[1])}
        | shared_environment(environment)
        | {name: str(temp / folder) for name, folder in CACHES.items()}
        | {
            "JAVA_HOME": str(java),
            "HOME": str(temp / "home"),
            "TEMP": str(temp),
            "TMPDIR": str(temp),
            SOCKET_VARIABLE: str(socket),
            PYTHON_VARIABLE: sys.executable,
            NETWORK_VARIABLE: network,
        }
        | told(*sizes)
    )
