"""A handler that does what its request says: stream pieces, wait, fail, die, or answer at length.

A request is a JSON object: `pieces` (texts to send midway), `pause` (seconds before each), `last` (what is
returned), `status`, `type`, `raise` (after the pieces), `exit` (the process ends after the pieces), `wait`
(seconds, without pieces), `size` (answer with so many bytes instead). Anything else is answered with a 400.
"""

import json
import os
import signal
import time

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException

calls = 0


def handle(data, context):
    global calls
    if data is None:
        return None
    calls += 1
    wishes = [row.get("body") for row in data]
    for index, wish in enumerate(wishes):
        if not isinstance(wish, dict):
            context.set_response_status(code=400, phrase="Bad Request", idx=index)
            continue
        context.set_response_status(code=wish.get("status", 200), phrase="", idx=index)
        if "type" in wish:
            context.set_response_content_type(index, wish["type"])
        context.set_response_header(index, "x-batch", str(len(data)))
        context.set_response_header(index, "x-calls", str(calls))
    steps = max((len(wish.get("pieces", ())) for wish in wishes if isinstance(wish, dict)), default=0)
    for step in range(steps):
        speaking = [n for n, wish in enumerate(wishes) if isinstance(wish, dict) and step < len(wish.get("pieces", ()))]
        time.sleep(max(wishes[n].get("pause", 0) for n in speaking))
        pieces = {n: wishes[n]["pieces"][step] for n in speaking}
        ids = {n: context.request_ids[n] for n in speaking}
        send_intermediate_predict_response(pieces, ids, "Intermediate Prediction success", 200, context)
    for wish in wishes:
        if isinstance(wish, dict):
            time.sleep(wish.get("wait", 0))
            if "exit" in wish:
                os.kill(os.getpid(), signal.SIGKILL)
            if "raise" in wish:
                raise PredictionException(wish["raise"], 418) if wish.get("kind") == "prediction" else ValueError("no")
    return [answer(wish) for wish in wishes]


def answer(wish):
    if not isinstance(wish, dict):
        return json.dumps({"error": "not an object"})
    if "size" in wish:
        return b"x" * wish["size"]
    return wish.get("last", "")
