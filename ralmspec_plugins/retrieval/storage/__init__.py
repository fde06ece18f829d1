"""The on-disk format of knowledge bases: building, resuming, checks and opening."""
