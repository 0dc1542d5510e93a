"""What connects decisions with messages: controller, worker, session, launch and end."""
