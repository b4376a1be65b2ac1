"""The engine: one process, and one socket, for a whole store.

It holds no mount's data path: every mount has a daemon of its own, every container a supervisor. They all go
on when the engine is restarted, upgraded or killed.
"""
