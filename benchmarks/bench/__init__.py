"""Cost of retain compared with what a user would run instead: `make bench`."""
