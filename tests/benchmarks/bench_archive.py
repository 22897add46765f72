"""From a file to a state dict, every page touched: sealed against plain and against other formats.

    python -m tests.benchmarks.bench_archive [--gigabytes 1.5] [--rounds 5] [--folder DIR]

Each loading runs in a process of its own (imports are not counted), the ways take turns, and the medians
are compared in the same run with a warm page cache. Peers that are not installed are left out and said.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TOUCH = """
def touch(state):
    import torch
    total = 0
    for tensor in state.values():
        total += int(tensor.contiguous().view(torch.uint8).flatten()[::4096].sum())
    return total
"""

WARM = """
def warm(size):
    import mmap
    for huge in (True, False):
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            if huge:
                memory.madvise(mmap.MADV_HUGEPAGE)
            memory.madvise(23)  # MADV_POPULATE_WRITE
warm(2 * (folder / 'plain.pt').stat().st_size)
"""
"""A hypervisor may take memory back that a guest does not use, and giving it again costs more than any of the ways
here. So each child first uses what it will need, in large pages and in small ones, and gives it back to its kernel."""

WAYS = {
    "torch.load": "state = torch.load(folder / 'plain.pt')",
    "torch.load(mmap=True)": "state = torch.load(folder / 'plain.pt', mmap=True)",
    "safetensors load_file": "from safetensors.torch import load_file; state = load_file(folder / 'plain.safetensors')",
    "sealed .pt": ("state = strongroom.torch.load(folder / 'pt.mar', key('pt'), authors=[author], member='model.pt')"),
    "sealed .safetensors": (
        "state = strongroom.torch.load(folder / 'st.mar', key('st'), authors=[author], member='model.safetensors')"
    ),
    "sealed .pt, digests not checked": (
        "from strongroom.archive.unseal import OpenedArchive\n"
        "OpenedArchive._check_block = lambda self, number, octets: None\n"
        "start = time.perf_counter()\n"
        "state = strongroom.torch.load(folder / 'pt.mar', key('pt'), authors=[author], member='model.pt')"
    ),
    "cryptotensors, encrypted": (
        "from cryptotensors.torch import load_file\nimport cryptotensors\n"
        "cryptotensors.register_direct_key_provider(keys=json.loads((folder / 'jwk.json').read_text()))\n"
        "start = time.perf_counter()\n"
        "state = load_file(folder / 'crypto.safetensors')"
    ),
    "tensorizer, encrypted": (
        "from tensorizer import TensorDeserializer, DecryptionParams\n"
        "start = time.perf_counter()\n"
        "params = DecryptionParams.from_key(bytes(range(32)))\n"
        "state = dict(TensorDeserializer(folder / 'tensorizer.bin', device='cpu', encryption=params))"
    ),
    "memcpy into hot memory": (
        "octets = torch.frombuffer(bytearray((folder / 'plain.pt').read_bytes()), dtype=torch.uint8)\n"
        "hot = torch.empty_like(octets); hot.copy_(octets)\n"
        "start = time.perf_counter()\n"
        "hot.copy_(octets); state = {'hot': hot}"
    ),
}

CHILD = """
import json, sys, time
from pathlib import Path
import torch, safetensors.torch, strongroom.torch
from strongroom.archive.modelkey import load_model_key
from strongroom.archive.signature import AuthorPublic
{touch}
folder = Path(sys.argv[1])
author = AuthorPublic.load(folder / 'author.pub')
def key(name): return load_model_key(folder / (name + '.modelkey'))
def kib(name):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
{warm}
Path('/proc/self/clear_refs').write_text('5')  # the peak is counted from here
before = kib('VmRSS')
start = time.perf_counter()
{way}
total = touch(state)
seconds = time.perf_counter() - start
peak = (kib('VmHWM') - before) / 1024
print(json.dumps({{"seconds": seconds, "total": total, "peak_mib": peak}}))
"""

MAKE = """
import json, os, sys
from pathlib import Path
import torch, safetensors.torch, strongroom.torch
from strongroom.archive.modelkey import save_model_key
from strongroom.archive.seal import seal_source, Terms
from strongroom.archive.signature import AuthorKey
from strongroom.archive.source import FilesSource
folder, gigabytes = Path(sys.argv[1]), float(sys.argv[2])
torch.manual_seed(1)
each = 32 << 20
state = {}
for n in range(int(gigabytes * (1 << 30)) // each):
    kind = torch.float16 if n % 2 else torch.float32
    state[f'layer.{n}'] = torch.randn(each // kind.itemsize, dtype=torch.float32).to(kind)
torch.save(state, folder / 'plain.pt')
safetensors.torch.save_file(state, folder / 'plain.safetensors')
author = AuthorKey.generate()
author.public.save(folder / 'author.pub')
for name, member, file in (('pt', 'model.pt', 'plain.pt'), ('st', 'model.safetensors', 'plain.safetensors')):
    manifest = {'runtime': 'python', 'model': {'modelName': 'bench', 'modelVersion': '1.0', 'handler': 'base_handler'}}
    made = {'MAR-INF/MANIFEST.json': json.dumps(manifest).encode()}
    with FilesSource({member: folder / file}, made) as source:
        sealed = seal_source(source, folder / f'{name}.mar', author=author, terms=Terms(lineage='bench'))
    save_model_key(folder / f'{name}.modelkey', sealed.digest, sealed.key)
try:
    import base64, cryptotensors
    from cryptotensors.torch import save_file
    b = lambda octets: base64.b64encode(octets).decode()
    secret = bytes(range(32))
    jwk = {'kty': 'oct', 'alg': 'aes256gcm', 'kid': 'bench', 'k': b(secret)}
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    signing = {'kty': 'okp', 'alg': 'ed25519', 'crv': 'Ed25519', 'kid': 'sign', 'd': b(secret), 'x': b(public)}
    save_file(state, folder / 'crypto.safetensors', config={'enc_key': jwk, 'sign_key': signing})
    (folder / 'jwk.json').write_text(json.dumps([jwk, signing]))
except Exception as error:
    print('cryptotensors is left out:', type(error).__name__, error, file=sys.stderr)
try:
    from tensorizer import EncryptionParams, TensorSerializer
    serializer = TensorSerializer(str(folder / 'tensorizer.bin'), encryption=EncryptionParams(key=bytes(range(32))))
    serializer.write_state_dict(state)
    serializer.close()
except Exception as error:
    print('tensorizer is left out:', type(error).__name__, error, file=sys.stderr)
"""


STEPS = """
import ctypes, json, os, sys, time
from pathlib import Path
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from strongroom.keeper.mapping import AlignedMapping, Pace
folder, block, rounds = Path(sys.argv[1]), (4 << 20) + 16, 128
{warm}
buffer, out, aead = bytearray(block), bytearray(4 << 20), AESGCM(bytes(32))
sealed = aead.encrypt(bytes(12), bytes(out), None)
source = os.open(folder / 'pt.mar', os.O_RDONLY)
descriptor = os.memfd_create('steps')
os.ftruncate(descriptor, rounds << 22)
mapping, pace = AlignedMapping(descriptor, rounds << 22, shared=True), Pace()
steps = {{
    'reading a block from the page cache': lambda n: os.preadv(source, [buffer], n * block),
    'BLAKE3 of a block': lambda n: blake3(buffer).digest(),
    'AES-256-GCM of a chunk': lambda n: aead.decrypt_into(bytes(12), sealed, None, out),
    'making huge pages': lambda n: mapping.prepare(n << 22, 4 << 20, pace),
    'memcpy into hot memory': lambda n: ctypes.memmove((ctypes.c_char * len(out)).from_buffer(out), sealed, len(out)),
}}
rates = {{}}
for name, step in steps.items():
    began = time.perf_counter()
    for n in range(rounds):
        step(n)
    rates[name] = rounds * (4 << 20) / (time.perf_counter() - began) / 1e9
print(json.dumps(rates))
"""
"""What a block costs, step by step, on one core."""


def child(program: str, *arguments: str) -> dict:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    print(done.stderr, end="", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to put the files; kept if it exists")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "st.modelkey").exists():
            folder.mkdir(exist_ok=True)
            child(MAKE, str(folder), str(options.gigabytes))
        results: dict[str, list[dict]] = {}
        left_out = {}
        for _ in range(options.rounds + 1):  # the first round warms the page cache and does not count
            for name, way in WAYS.items():
                if name in left_out:
                    continue
                try:
                    program = CHILD.format(touch=TOUCH, warm=WARM, way=way)
                    results.setdefault(name, []).append(child(program, str(folder)))
                except RuntimeError as error:
                    left_out[name] = str(error)
        report(results, left_out)
        steps = [child(STEPS.format(warm=WARM), str(folder)) for _ in range(3)]
        print("\nSteps of opening, GB/s on one core (median of 3):")
        for name in steps[0]:
            print(f"  {name}: {statistics.median(each[name] for each in steps):.2f}")


def report(results: dict[str, list[dict]], left_out: dict[str, str]) -> None:
    medians = {
        name: statistics.median(each["seconds"] for each in runs[1:]) for name, runs in results.items() if runs[1:]
    }
    plain = medians["torch.load"]
    print(f"{os.cpu_count()} cores; seconds are medians of {len(results['torch.load']) - 1}")
    print("| | s | min to max | times faster than torch.load | peak MiB |")
    print("|---|---|---|---|---|")
    for name, median in medians.items():
        seconds = [each["seconds"] for each in results[name][1:]]
        peak = statistics.median(each["peak_mib"] for each in results[name][1:])
        print(
            f"| {name} | {median:.3f} | {min(seconds):.3f} to {max(seconds):.3f} | {plain / median:.2f} | {peak:.0f} |"
        )
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")


if __name__ == "__main__":
    main()
