"""The original implementations of BLIP and SeViLA, for those who have LAVIS (requirements-lavis.txt)."""
