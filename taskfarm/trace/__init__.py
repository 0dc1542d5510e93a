"""What a trace says: reading the file, a summary, a picture. `taskfarm.runtime.recording.recorder` records."""
