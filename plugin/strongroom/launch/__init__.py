"""Before the server starts: what is admitted, with which settings, and who watches over it."""
