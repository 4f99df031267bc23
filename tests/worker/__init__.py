"""A package, since the suites have files of the same names."""
