"""The CREPE network at its full size; everything but the number of channels is `pitch_net`'s."""

from pitch_net import PitchNet


class PitchNetFull(PitchNet):
    CHANNELS = (1, 1024, 128, 128, 128, 256, 512)
    FEATURES = 2048
