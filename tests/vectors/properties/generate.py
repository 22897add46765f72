"""Make java.json: small files, and what java.util.Properties of a real Java reads in each.

    python tests/vectors/properties/generate.py

It needs a Java with a compiler. The files are made of the few characters that mean something in the format.
"""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
PIECES = [
    "a", "b", "vmargs", "1", " ", "\t", "\f", "=", ":", "#", "!", "\\", "\\", "\\", "\n", "\n", "\r", "\r\n",
    "\\\n", "\\\r\n", "\\u0041", "\\u00e4", "\\ud83d\\ude00", "\\u12", "\\n", "\\t", "\\:", "\\=", "\\ ",
    "\xe4", "\xef\xbb\xbf", "\x85", "\x1c", "\0",
]  # fmt: skip
BY_HAND = [
    "# certificates lie in C:\\certs\\\nmanagement_address=http://127.0.0.1:8081\n",
    "inference_address: http://0.0.0.0:8080\r\ninference_address http\\://127.0.0.1\\:1\r\n",
    "load_models\n",
    "a=1\na=2\n",
    "  ! note\n\t# note\n a = 1 \n",
    "a=1\\",
    "a=1\\\\\nb=2\\\\\\\n  c=3",
    "a=1\\\n\nb=2\n",
    "a=1\\\n   # no note\n",
    "a\\\n =\\\n  b\n",
    "=b\n:c\n",
    "a = = b\n",
    "a\t:\tb c\n",
    "\\u0070lugins_path=/x\n",
    "key\\ with\\ blanks=1\n",
    "a=\\u00g1\n",
]


def main() -> None:
    chance = random.Random(20260726)
    texts = BY_HAND + ["".join(chance.choices(PIECES, k=chance.randrange(1, 14))) for _ in range(1200)]
    said = subprocess.run(
        ["java", str(HERE / "ReadProperties.java")],
        input="".join(text.encode("latin-1").hex() + "\n" for text in texts),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(said) == len(texts)
    lines = [json.dumps([text.encode("latin-1").hex(), answer]) for text, answer in zip(texts, said, strict=True)]
    (HERE / "java.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
