"""Reports: from run folders to statistics, tables, figures and one page that says what they show."""
