"""What TorchServe itself answers with a request envelope outside: its own classes, run here on what a client sends."""

from __future__ import annotations

import importlib
import json

from doubles.instances_handler import handle


def enveloped(envelope: str, body: object, *, explain: bool = False) -> object:
    """The answer to a batch of one, by `doubles/instances_handler.py` behind one of TorchServe's envelopes."""
    from ts.context import Context, RequestProcessor
    from ts.model_loader import TsModelLoader

    module = importlib.import_module(f"ts.torch_handler.request_envelope.{envelope}")
    assert module
    wrapped = TsModelLoader()._load_default_envelope(envelope)(handle)
    context = Context("m", "/", {"model": {"modelName": "tensors", "modelVersion": "1.0"}}, 1, None, "0.12.0")
    context.request_processor = [RequestProcessor({"explain": "True" if explain else "False"})]
    context.request_ids = {0: "id"}
    return json.loads(json.dumps(wrapped.handle([{"body": json.loads(json.dumps(body))}], context)[0]))
