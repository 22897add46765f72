"""A small convolutional network for 8x8 scans of handwritten digits."""

import torch
from torch import nn


class DigitsNet(nn.Module):
    """Two convolutions and two linear layers: (N, 1, 8, 8) float in [0, 1] to (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(64 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(scans))
