"""Pictures and videos: files on one side, uint8 frames on the other."""
