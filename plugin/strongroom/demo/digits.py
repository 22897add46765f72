"""The demo's model: a small network trained on scikit-learn's scans of handwritten digits.

1,797 scans of 8x8 pixels with 16 shades (Alpaydin and Kaynak, UCI 1998). Training takes seconds on
one core and is the same every time. The archive is made by the real torch-model-archiver.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HELD_BACK = 297
EPOCHS = 10
BATCH = 64


@dataclass(frozen=True, slots=True)
class Scan:
    """One held-back scan: 64 bytes from 0 to 16 in row order, and the digit a person wrote."""

    pixels: bytes
    label: int

    def picture(self) -> list[str]:
        """Eight lines of blocks in five shades, sixteen characters wide."""
        shades = " ░▒▓█"
        rows = [self.pixels[8 * row : 8 * row + 8] for row in range(8)]
        return ["".join(shades[min(4, (pixel + 3) // 4)] * 2 for pixel in row) for row in rows]


@dataclass(frozen=True, slots=True)
class Trained:
    """The plain archive and what the training left to try it on."""

    archive: Path
    accuracy: float
    held_back: tuple[Scan, ...]


def held_back() -> tuple[Scan, ...]:
    """The scans that training never sees."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return tuple(
        Scan(bytes(int(pixel) for pixel in image.ravel()), int(label))
        for image, label in zip(digits.images[-HELD_BACK:], digits.target[-HELD_BACK:], strict=True)
    )


def train(folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None) -> Trained:
    """Train, save the weights in `folder` and package them as ``digits.mar`` there.

    `progress` is called with the epochs done and the epochs in all.
    """
    import torch
    from sklearn.datasets import load_digits
    from strongroom_handlers.digits_net import DigitsNet

    digits = load_digits()
    scans = torch.tensor(digits.images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits.target)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network is only slowed down by more, on a busy machine fivefold
    torch.manual_seed(1998)
    network = DigitsNet()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    seen = len(labels) - HELD_BACK
    for epoch in range(EPOCHS):
        for rows in torch.randperm(seen).split(BATCH):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(scans[rows]), labels[rows]).backward()
            optimiser.step()
        progress(epoch + 1, EPOCHS)
    torch.set_num_threads(threads)
    network.eval()
    with torch.no_grad():
        accuracy = float((network(scans[seen:]).argmax(1) == labels[seen:]).float().mean())
    weights = folder / "digits.pt"
    torch.save(network.state_dict(), weights)
    return Trained(package(weights, folder), accuracy, held_back())


def package(weights: Path, folder: Path) -> Path:
    """Run torch-model-archiver as a user would; returns ``digits.mar``."""
    import strongroom_handlers

    handlers = Path(str(strongroom_handlers.__file__)).parent
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--force"]
    command += ["--model-name", "digits", "--version", "1.0", "--serialized-file", str(weights)]
    command += ["--model-file", str(handlers / "digits_net.py"), "--handler", str(handlers / "digits.py")]
    command += ["--export-path", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "digits.mar"
