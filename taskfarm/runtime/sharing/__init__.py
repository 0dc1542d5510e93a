"""Objects whose arrays are held once per host."""
