"""What decides: slots, tasks, calls, mailboxes. No input or output, no clock, no pickle, no MPI."""
