"""What a trace says: reading the file, a summary, a picture. `taskfarm.runtime.recorder` records."""
