"""The client: verify a server against a policy, then talk to it with the code one already has.

    adapter = SealedAdapter(policy="policy.toml")
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    session.post("http://host:8080/predictions/digits", data=scan)

Nothing is sent to a server before its evidence satisfied the policy, and nothing ever falls back
to plaintext. Importing this package imports no torch (docs/protocol.md sections 4 and 6).
"""
