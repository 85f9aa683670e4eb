"""Attention that the sample of one text takes over from that of another."""
