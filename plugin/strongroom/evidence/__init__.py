"""Evidence in, verdict out: pure functions of bytes and a clock (RFC 9334)."""
