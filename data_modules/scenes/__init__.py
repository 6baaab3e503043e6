"""The embedded data: short procedural clips with sound, picture, captions, events, boxes and masks."""
