"""Public and credentialed data sets, read from the files that their authors publish, kept as array records."""
