"""Plans of jobs: whether one fits a machine and how fast it can be, before the machine is rented."""
