"""The encrypted channel: HPKE, Binary HTTP, Oblivious HTTP, the keys and the replay memory.

Nothing in this room opens a socket, reads a clock or knows what evidence is: bytes and the
present moment come in as arguments, bytes and values go out (docs/protocol.md).
"""
