"""Tasks in processes of their own: where these come from, what they run, and the rank that lives on."""
