"""Safety evaluations: named suites over local files, their scorers, one report, and its comparison with another."""
