"""Parts shared by every package; imports nothing else of ours."""
