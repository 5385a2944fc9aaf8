"""Decoding: functions over logits and iterators over steps."""
