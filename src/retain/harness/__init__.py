"""lm-evaluation-harness on a run: general ability, outside of the stream."""
