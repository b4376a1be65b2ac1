"""Tar and its dialects: what is read into a layer, and what is written of one."""
