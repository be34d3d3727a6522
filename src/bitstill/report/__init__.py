"""Tables, plots and pages that a person wants to look at."""
