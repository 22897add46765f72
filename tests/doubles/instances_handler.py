"""A handler as request envelopes want one: a list of instances in, a list of answers out."""


def handle(data, context):
    if data is None:
        return None
    return [{"seen": each, "type": type(each).__name__} for each in data]
