"""Which clients a strategy leaves out, for the rates of detection."""
