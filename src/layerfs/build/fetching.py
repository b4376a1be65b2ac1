"""What comes from elsewhere: files by HTTP, repositories by git; bounded in time and size."""

from __future__ import annotations
