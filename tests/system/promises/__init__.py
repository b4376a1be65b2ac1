"""Programs that note what a filesystem promises them, a power cut, and a check of what is left of it."""
