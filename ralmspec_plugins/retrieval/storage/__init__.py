"""The on-disk format of knowledge bases: how they are built, resumed, checked and opened."""
