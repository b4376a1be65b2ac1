"""Builds: a Dockerfile becomes an image, each step that changes files a commit."""
