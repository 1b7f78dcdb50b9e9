"""Files, processes and progress: what every other package stands on."""
