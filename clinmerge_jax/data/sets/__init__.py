"""Public and credentialed data sets, read from their authors' files and kept as array records."""
