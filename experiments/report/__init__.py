"""Tables, figures and the report of finished runs."""
