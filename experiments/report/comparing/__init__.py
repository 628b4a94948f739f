"""What is different between two studies, as a table and as a page."""
