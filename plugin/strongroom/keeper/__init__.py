"""The process that alone holds model keys and channel keys, and alone talks to the attester and the broker."""
