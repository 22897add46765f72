"""A stateful handler for sequence batching: each sequence has a sum of its own."""

import json

sums = {}


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        sequence = context.get_sequence_id(index)
        context.set_response_header(index, context.header_key_sequence_id, sequence)
        headers = context.get_all_request_header(index)
        if headers.get(context.header_key_sequence_start) == "True":
            sums[sequence] = 0
        sums[sequence] = sums.get(sequence, -1000) + row["body"]["add"]
        answers.append(json.dumps({"sequence": sequence, "sum": sums[sequence], "batch": len(data)}))
    return answers
