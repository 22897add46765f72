"""Sentence embeddings (all-MiniLM-L6-v2, safetensors and tokenizer files) by transformers: text in, floats out."""

import torch
from transformers import AutoModel, AutoTokenizer
from ts.torch_handler.base_handler import BaseHandler


class SentenceHandler(BaseHandler):
    def initialize(self, context):
        self.context = context
        folder = context.system_properties["model_dir"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self.initialized = True

    def handle(self, data, context):
        texts = [row["body"] if isinstance(row["body"], str) else bytes(row["body"]).decode() for row in data]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        means = (states * mask).sum(1) / mask.sum(1)
        return [mean.numpy().tobytes() for mean in means]
