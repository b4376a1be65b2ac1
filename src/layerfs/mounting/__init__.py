"""One mount: starting it, serving it, committing it while it is in use, ending it."""
