"""The API: Docker's Engine API and our own routes, on a store and its mounts."""
