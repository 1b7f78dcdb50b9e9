"""SEEKR: selective attention-guided knowledge retention (arXiv 2411.06171)."""
