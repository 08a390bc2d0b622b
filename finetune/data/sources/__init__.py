"""Where a data set comes from: bundled, a file or folder, the hub."""
