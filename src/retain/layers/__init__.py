"""What a method installs in a backbone."""
