"""What can be added to any method's training: one small file each, found by themselves, as methods are."""
