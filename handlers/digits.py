"""An ordinary TorchServe handler for the digits model. It knows nothing of strongroom.

A request is one scan: JSON (`{"pixels": [64 numbers from 0 to 16]}` or the bare list), 64 raw
bytes, or a form with those bytes in a part named `data`. The answer is
`{"digit": 7, "confidence": 0.9987}`.
"""

import torch
from ts.torch_handler.base_handler import BaseHandler

PIXELS = 64
BRIGHTEST = 16


class DigitsHandler(BaseHandler):
    """Scans in, labels out; a scan that cannot be read gets its own 400."""

    def preprocess(self, data):
        scans, self.unreadable = [], set()
        for index, row in enumerate(data):
            try:
                scans.append(self.read_scan(row.get("data", row.get("body"))))
            except (TypeError, ValueError, KeyError, OverflowError):
                self.unreadable.add(index)
                scans.append([0.0] * PIXELS)
        return torch.tensor(scans).reshape(-1, 1, 8, 8).to(self.device) / BRIGHTEST

    @staticmethod
    def read_scan(body):
        pixels = body["pixels"] if isinstance(body, dict) else list(body)
        scan = [float(pixel) for pixel in pixels]
        if len(scan) != PIXELS or not all(0 <= pixel <= BRIGHTEST for pixel in scan):
            raise ValueError("a scan is 64 numbers from 0 to 16")
        return scan

    def postprocess(self, logits):
        answers = []
        for index, (confidence, digit) in enumerate(zip(*logits.softmax(dim=1).max(dim=1), strict=True)):
            if index in self.unreadable:
                self.context.set_response_status(code=400, phrase="Bad Request", idx=index)
                answers.append({"error": "a scan is 64 numbers from 0 to 16"})
            else:
                answers.append({"digit": int(digit), "confidence": round(float(confidence), 4)})
        return answers
