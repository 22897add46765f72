"""A handler that answers with what it was given: rows, request headers and its own surroundings.

Packaged into an archive and served plain and sealed, it shows whether a handler can tell the two apart.
"""

import json
import os


def _plain(value):
    if isinstance(value, (bytes, bytearray)):
        return {"type": type(value).__name__, "hex": bytes(value).hex()}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {"type": type(value).__name__, "value": value}


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        seen = {"row": _plain(row), "headers": context.get_all_request_header(index)}
        # Python leaves its cache in a plain server's folder; a room has none, since nothing is written there.
        seen["files"] = sorted(set(os.listdir(context.system_properties["model_dir"])) - {"__pycache__"})
        seen["manifest"] = context.manifest
        seen["yaml"] = context.model_yaml_config
        seen["model_name"] = context.model_name
        seen["batch_size"] = context.system_properties["batch_size"]
        seen["cwd_is_model_dir"] = os.path.samefile(os.getcwd(), context.system_properties["model_dir"])
        headers = context.get_all_request_header(index)
        wanted = headers.get("x-echo-status")
        if wanted:
            context.set_response_status(code=int(wanted), phrase="Chosen", idx=index)
        context.set_response_header(index, "x-echo", "yes")
        if headers.get("x-echo-type"):
            context.set_response_content_type(index, headers["x-echo-type"])
        answers.append(json.dumps(seen, sort_keys=True))
    return answers
