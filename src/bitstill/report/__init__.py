"""Reports for people: tables, plots and pages."""
