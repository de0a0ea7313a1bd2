"""The report: table, figures and page."""
