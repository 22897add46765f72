"""Voice activity (silero-vad, TorchScript): 512 samples of 16 kHz float32 in, one float32 out."""

import torch
from ts.torch_handler.base_handler import BaseHandler


class VadHandler(BaseHandler):
    def preprocess(self, data):
        return [torch.frombuffer(bytearray(row["body"]), dtype=torch.float32)[None] for row in data]

    def inference(self, chunks):
        answers = []
        for chunk in chunks:
            self.model.reset_states()
            answers.append(self.model(chunk, 16000))
        return answers

    def postprocess(self, answers):
        return [answer.detach().numpy().tobytes() for answer in answers]
