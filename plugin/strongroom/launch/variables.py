"""Variables of the environment that bring code into a process, or carry out of it what it holds.

Looked at before `strongroom launch` reads a file or imports what does its work. Some act earlier, while the loader, the
interpreter and the command line start: of these a refusal says that something may have run, and undoes nothing
(docs/threat-model.md, section 6). Whatever else is set reaches no child, but for an allow-list.

Gone through for the lists: CPython's command line page (3.11 to 3.14), ld.so(8) and glibc's manual, openssl-env(7) and
the libraries of its users, and the launchers of OpenJDK and OpenJ9.
"""

from __future__ import annotations

from collections.abc import Mapping

from strongroom.errors import LaunchRefused

OF_THE_LOADER = {
    "LD_PRELOAD": "it loads a library into this very process",
    "LD_AUDIT": "it loads a library into this very process",
    "LD_LIBRARY_PATH": "libraries in it come before the system's",
    "LD_ORIGIN_PATH": "it moves the folder from which libraries are loaded",
    "LD_PROFILE": "it writes a profile of what runs to a disk",
    "LD_PROFILE_OUTPUT": "it writes a profile of what runs to a disk",
    "LD_DEBUG_OUTPUT": "it names a file to write",
    "GLIBC_TUNABLES": "it switches protections of the C library off",
    "GCONV_PATH": "it names libraries that are loaded for character sets",
    "LOCPATH": "it replaces the C library's tables of characters",
}

OF_PYTHON = {
    "PYTHONPATH": "modules in it come before the installed ones",
    "PYTHONHOME": "it replaces Python's own library",
    "PYTHONPLATLIBDIR": "it replaces Python's own library",
    "PYTHONEXECUTABLE": "it replaces Python's own library",
    "PYTHONUSERBASE": "packages in it are imported",
    "PYTHONPYCACHEPREFIX": "compiled code from there is run in place of the installed",
    "PYTHONSTARTUP": "it names code to run",
    "PYTHONBREAKPOINT": "it names code to run",
    "PYTHONWARNINGS": "it imports modules that it names, while Python starts",
    "PYTHON_PRESITE": "it imports a module that it names, while Python starts",
    "PYTHONINSPECT": "it opens a prompt in a process that holds keys",
    "PYTHONOPTIMIZE": "it takes checks out of libraries",
    "PYTHONDUMPREFS": "it writes out what is in memory",
    "PYTHONDUMPREFSFILE": "it writes out what is in memory",
    "BROWSER": "it names a program that Python runs when a module of its own is imported",
}

OF_OPENSSL = {
    "OPENSSL_CONF": "it can load a provider or engine into the cryptography",
    "OPENSSL_CONF_INCLUDE": "it can load a provider or engine into the cryptography",
    "OPENSSL_MODULES": "it names libraries that are loaded into the cryptography",
    "OPENSSL_ENGINES": "it names libraries that are loaded into the cryptography",
    "OPENSSL_TRACE": "it writes out what the cryptography does",
    **{
        f"OPENSSL_{processor}cap": "it chooses weaker ways through the cryptography"
        for processor in ("ia32", "arm", "ppc", "s390x", "riscv", "sparcv9")
    },
    "SSLKEYLOGFILE": "it writes the keys of connections to a file",
}

OF_THE_SERVER = {
    "JAVA_TOOL_OPTIONS": "it can load an agent into the server's Java",
    "_JAVA_OPTIONS": "it can load an agent into the server's Java",
    "JDK_JAVA_OPTIONS": "it can load an agent into the server's Java",
    "OPENJ9_JAVA_OPTIONS": "it can load an agent into the server's Java",
    "IBM_JAVA_OPTIONS": "it can load an agent into the server's Java",
    "CLASSPATH": "classes in it come before the server's",
    "TS_CONFIG_FILE": "it replaces the server's checked configuration; give it with --ts-config",
    "TS_BENCHMARK": "it writes profiles of requests to /tmp",
    "ENABLE_TORCH_PROFILER": "it writes traces of requests to a disk",
}

REFUSED_VARIABLES = OF_THE_LOADER | OF_PYTHON | OF_OPENSSL | OF_THE_SERVER


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse variables through which code comes in or data goes out; the rest is dropped or harmless."""
    for name, reason in REFUSED_VARIABLES.items():
        if environment.get(name):
            raise LaunchRefused(f"the environment sets {name}: {reason}", hint=f"unset {name}, then launch")
