"""What the machine offers: run directories, locks, the mount table, processes and their cgroups."""
